"""A prediction as text, and as numbers."""

from typing import Any

from pixelhdm.planning.advice import cheapest, flags
from pixelhdm.planning.forecast import MODES, Forecast
from pixelhdm.planning.gpus import GIB, Gpu
from pixelhdm.planning.memory import Setting
from pixelhdm.planning.speed import BANDWIDTH_SHARE, PRODUCT_SHARE

HOUR, DAY = 3600.0, 86400.0
EACH = 100_000  # steps that are told where the run has no end


def facts(forecast: Forecast, gpu: Gpu, batch_tokens: int | None) -> dict[str, Any]:
    """Everything that is predicted for one kind of GPU."""
    own, job = forecast.own, forecast.job
    total, free = forecast.total(own), gpu.bytes - forecast.total(own)
    images = own.num * own.accumulate * job.num_processes
    step = forecast.step_seconds(own, gpu)
    fits = forecast.fits(own, gpu)
    better = None if fits else cheapest(forecast, gpu)
    return {
        "gib": {name: size / GIB for name, size in forecast.memory(own).items() if size},
        "total_gib": total / GIB,
        "free_gib": free / GIB,
        "fits": fits,
        "step_seconds": step,
        "images_per_second": images / step,
        "mfu": mfu(forecast, gpu, own),
        "gflop_per_image": forecast.flop_per_image(own) / 1e9,
        "seconds_to_end": whole_seconds(forecast, gpu, own),
        "flop_to_end": num_steps(forecast) * images * forecast.flop_per_image(own),
        "largest_batch": {
            mode: largest(forecast, gpu, own._replace(mode=mode)) for mode in modes_of(forecast)
        },
        "flags_that_fit": None if better is None else flags(own, better, batch_tokens),
        "step_seconds_that_fit": better and forecast.step_seconds(better, gpu),
        "gib_that_fit": better and forecast.total(better) / GIB,
    }


def modes_of(forecast: Forecast) -> list[str]:
    """The modes of checkpointing, those that keep most first."""
    slope = {mode: forecast.passed(mode).passes.kept.slope for mode in MODES}
    return sorted(MODES, key=lambda mode: -slope[mode])


def largest(forecast: Forecast, gpu: Gpu, setting: Setting) -> dict[str, float]:
    """The largest batch that fits in a setting, and images a second with it."""
    num = forecast.most_images(setting, gpu)
    if num == 0:
        return {"images": 0, "images_per_second": 0.0}
    time = forecast.step_seconds(setting._replace(num=num), gpu) / setting.accumulate
    return {"images": num, "images_per_second": num / time}


def mfu(forecast: Forecast, gpu: Gpu, setting: Setting) -> float:
    """Model FLOP utilisation: 3 forward passes of the network over the GPU's peak
    (arXiv:2204.02311, appendix B).
    """
    images = setting.num * setting.accumulate
    flop = forecast.model_flop * images / forecast.step_seconds(setting, gpu)
    return flop / gpu.peak(forecast.job.dtype)


def num_steps(forecast: Forecast) -> int:
    """Steps of the run, or EACH."""
    return forecast.job.max_steps or EACH


def whole_seconds(forecast: Forecast, gpu: Gpu, setting: Setting) -> float:
    """Time of all steps, those after the end of REPA without its teacher."""
    steps, repa = num_steps(forecast), forecast.job.repa_steps
    time = steps * forecast.step_seconds(setting, gpu)
    if repa is not None and 0 < repa < steps:
        spared = setting.num * setting.accumulate * forecast.repa_seconds(gpu)
        time -= (steps - repa) * spared
    return time


def text(forecast: Forecast, gpus: list[Gpu], batch_tokens: int | None) -> str:
    """The whole plan for a person."""
    lines = heading(forecast)
    found = {gpu: facts(forecast, gpu, batch_tokens) for gpu in gpus}
    if len(gpus) == 1:
        lines += [*memory_lines(found[gpus[0]], gpus[0]), ""]
    lines += [*table(found, forecast), ""]
    lines += [f"* {note}" for note in forecast.notes]
    lines += verdict(found, forecast)
    return "\n".join(lines)


def heading(forecast: Forecast) -> list[str]:
    """What is trained."""
    job, shape, own = forecast.job, forecast.job.shapes[0], forecast.own
    kind = type(job.parts.network).__name__
    dtype = str(job.dtype).removeprefix("torch.")
    batches = f"{own.num} images a batch" + f", {own.accumulate} batches a step" * (
        own.accumulate > 1
    )
    state, count = checkpoint_bytes(forecast), forecast.num_trained
    return [
        f"{kind}, {count:,} trained parameters, {shape.height}x{shape.width}, {dtype} products, "
        f"{'compiled' if job.is_compiled else 'eager'}",
        f"{batches}, {job.num_processes} process{'es' * (job.num_processes > 1)}"
        f"{' (weights shared out)' * own.is_sharded}; checkpoint {state / 1e9:.2f} GB on disk",
        f"{forecast.model_flop / 1e9:,.4g} GFLOP of the network for a training image, "
        f"{forecast.flop_per_image(own) / 1e9:,.4g} with all that runs; grad_checkpoint "
        f"{own.mode}",
        f"Predicted, nothing was run: kernels reach {PRODUCT_SHARE:.0%} of a data sheet's TFLOP/s "
        f"and {BANDWIDTH_SHARE:.0%} of its bandwidth (planning/speed.py).",
        "",
    ]


def checkpoint_bytes(forecast: Forecast) -> float:
    """Bytes of a checkpoint: weights, averages, optimizer states."""
    static = forecast.static
    return static.gradients + static.averages + static.states


def memory_lines(found: dict[str, Any], gpu: Gpu) -> list[str]:
    """The memory of one device, part by part."""
    rows = [f"{'memory of one device':28} {'GiB':>8}"]
    rows += [f"  {name:26} {size:8.2f}" for name, size in found["gib"].items()]
    return [*rows, f"  {'together':26} {found['total_gib']:8.2f} of {gpu.gib:.1f}"]


def table(found: dict[Gpu, dict[str, Any]], forecast: Forecast) -> list[str]:
    """A row a GPU: its own batch, and the largest batch of each mode with its images a second."""
    modes = modes_of(forecast)
    ends = "days" if forecast.job.max_steps else f"days/{EACH // 1000}k"
    header = f"{'':20} {'GiB':>7} {'fits':>5} {'steps/s':>8} {'img/s':>8} {'MFU':>6} {ends:>9}"
    lines = [
        f"{'':20} {'with the batch of the config':^47} largest batch: img/s",
        header + "".join(f" {mode:>14}" for mode in modes),
    ]
    for gpu, one in found.items():
        row = f"{gpu.name[:20]:20} {one['total_gib']:7.1f} {'yes' if one['fits'] else 'no':>5}"
        row += f" {1 / one['step_seconds']:8.3g} {one['images_per_second']:8.4g}"
        row += f" {one['mfu']:6.1%} {one['seconds_to_end'] / DAY:9.3g}"
        for mode in modes:
            most = one["largest_batch"][mode]
            cell = f"{most['images']}: {most['images_per_second']:.4g}" if most["images"] else "-"
            row += f" {cell:>14}"
        lines.append(row)
    return lines


def verdict(found: dict[Gpu, dict[str, Any]], forecast: Forecast) -> list[str]:
    """One sentence a GPU: fits or not, and what does."""
    lines = []
    for gpu, one in found.items():
        if one["fits"]:
            steps = forecast.job.max_steps
            until = f"{steps:,} steps" if steps else f"each {EACH:,} steps"
            lines.append(
                f"{gpu.name}: fits with {one['free_gib']:.1f} GiB free; {until} take "
                f"{duration(one['seconds_to_end'])}, {one['flop_to_end']:.3g} FLOP."
            )
        elif one["flags_that_fit"] is None:
            lines.append(
                f"{gpu.name}: does not fit, {-one['free_gib']:.1f} GiB too much, nor do the "
                "savings that are known. Take a smaller network or image, or more or larger GPUs."
            )
        else:
            slower = one["step_seconds_that_fit"] / one["step_seconds"]
            lines.append(
                f"{gpu.name}: does not fit, {-one['free_gib']:.1f} GiB too much. With "
                f"{one['flags_that_fit']} it takes {one['gib_that_fit']:.1f} GiB and {slower:.2f} "
                "times as long."
            )
    return lines


def duration(time: float) -> str:
    """A time for a person."""
    if time < 2 * HOUR:
        return f"{time / 60:.3g} minutes"
    return f"{time / HOUR:.3g} hours" if time < 2 * DAY else f"{time / DAY:.3g} days"
