"""Settings with which a training fits on a GPU, and the cheapest of them."""

from collections.abc import Iterator
from itertools import product

from pixelhdm.planning.forecast import MODES, Forecast
from pixelhdm.planning.gpus import Gpu
from pixelhdm.planning.memory import Setting


def cheapest(forecast: Forecast, gpu: Gpu) -> Setting | None:
    """The fastest setting that fits with the images of a step unchanged; None where none does.

    What changes nothing but speed comes first: checkpointing, smaller batches and more of them;
    then what moves to CPU memory or is shared out over the processes; then 8-bit states.
    """
    for tier in tiers(forecast):
        fitting = [setting for setting in tier if forecast.fits(setting, gpu)]
        if fitting:
            return min(fitting, key=lambda setting: forecast.step_seconds(setting, gpu))
    return None


def tiers(forecast: Forecast) -> Iterator[list[Setting]]:
    """Settings to try, those that change least first."""
    own = forecast.own
    base = list(splits(own))
    yield base
    shared = forecast.job.num_processes > 1 and forecast.job.can_shard
    on_cpu = not forecast.on_cpu
    moved = [
        setting._replace(
            average_on_cpu=average or setting.average_on_cpu,
            offloads=offloads or setting.offloads,
            is_sharded=is_sharded or setting.is_sharded,
        )
        for setting, average, offloads, is_sharded in product(
            base, {False, on_cpu}, {False, on_cpu}, {False, shared}
        )
    ]
    # Neither averages on the CPU nor 8-bit states can be shared out.
    moved = [setting for setting in moved if not (setting.is_sharded and setting.average_on_cpu)]
    yield moved
    if forecast.job.optimizer_name.rpartition(".")[2] == "AdamW":
        yield [s._replace(is_eight_bit=True) for s in moved if not s.is_sharded]


def splits(own: Setting) -> Iterator[Setting]:
    """A setting with its own mode or a sparer one, and its batch in as many parts as divide it."""
    modes = MODES[MODES.index(own.mode) :]
    parts = [n for n in range(1, own.num + 1) if own.num % n == 0]
    for mode, part in product(modes, parts):
        yield own._replace(mode=mode, num=own.num // part, accumulate=own.accumulate * part)


def flags(own: Setting, setting: Setting, by_tokens: int | None) -> str:
    """What a person adds to the command for a setting in the place of their own.

    Args:
        own: the config's.
        setting: the one to take.
        by_tokens: the config's batch_tokens, where it has some.
    """
    found = []
    if setting.mode != own.mode:
        found.append(f"--model.network.init_args.grad_checkpoint {setting.mode}")
    if setting.accumulate != own.accumulate:
        part = setting.accumulate // own.accumulate
        size = f"batch_size {setting.num}"
        if by_tokens is not None:
            size = f"batch_tokens {by_tokens // part}"
        found.append(f"--data.{size} --trainer.accumulate_grad_batches {setting.accumulate}")
    if setting.average_on_cpu and not own.average_on_cpu:
        found.append("--ema.device cpu")
    if setting.offloads and not own.offloads:
        found.append("--model.network.init_args.activation_offload true")
    if setting.is_sharded and not own.is_sharded:
        found.append("--trainer.strategy fsdp2")
    if setting.is_eight_bit and not own.is_eight_bit:
        found.append("--model.optimizer bitsandbytes.optim.AdamW8bit")
    return " ".join(found)
