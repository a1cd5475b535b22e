"""What a person wants to know of a run at first sight."""

import time
from collections.abc import Iterable
from typing import Any

import torch

from pixelhdm.checkpoints import EMA_PREFIX
from pixelhdm.errors import one_line
from pixelhdm.inference.exports.training_facts import class_name, devices
from pixelhdm.reporting.markup import duration, readable
from pixelhdm.reporting.run import Run

RECENT = 600.0  # seconds since its last file, within which a run may be training still
LAST = 20  # logged steps whose mean is the last loss


def facts_of(run: Run) -> dict[str, str]:
    """Facts by name; those that nothing tells are left out."""
    last = run.starts[-1] if run.starts else {}
    facts = {
        "state": state(run, time.time()),
        "steps": f"{run.step:,}" + (f" of {target(run):,}" if target(run) else ""),
        "wall time": wall_time(run),
        "images seen": images_seen(run),
        "speed": speed(run),
        "loss": loss(run, "train/total", LAST),
        "held-out loss": loss(run, "val/total", 1),
        "network": class_name(run.setting("model.network")),
        "parameters": parameters(run),
        "data": class_name(run.setting("data.train")),
        "devices": devices(last),
        "precision": last.get("precision"),
        "last checkpoint": run.checkpoints[-1].name if run.checkpoints else "none",
    }
    return {name: str(value) for name, value in facts.items() if value}


def target(run: Run) -> int | None:
    """Steps that the run was to take; None where its end was set otherwise."""
    steps = run.setting("trainer.max_steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def state(run: Run, now: float) -> str:
    """Whether it has ended, as far as its files tell."""
    if target(run) and run.step >= target(run):
        return "finished"
    if not run.signs:
        return "nothing logged yet"
    ago = max(now - run.signs[-1], 0.0)
    if ago < RECENT:
        return f"training, or stopped just now: last file {duration(ago)} ago{left(run)}"
    end = " before its end" if target(run) else " or ended"
    return f"stopped{end}: last file {duration(ago)} ago"


def left(run: Run) -> str:
    """How long training will take from here, by its speed so far."""
    if target(run) is None or not run.lives or not run.starts:
        return ""
    begun, ended = run.lives[-1]
    done = run.step - run.starts[-1]["step"]
    if done <= 0 or ended <= begun:
        return ""
    return f"; about {duration((target(run) - run.step) * (ended - begun) / done)} to go"


def wall_time(run: Run) -> str | None:
    """Time from each start to its last file, summed up."""
    if not run.lives:
        return None
    total = duration(sum(ended - begun for begun, ended in run.lives))
    starts = len(run.starts)
    return total if starts == 1 else f"{total} in {starts} starts"


def images_seen(run: Run) -> str | None:
    """Images of all steps, copies of the same one counted again; None where batches differ."""
    size = run.setting("data.batch_size")
    if not isinstance(size, int) or run.setting("data.batch_tokens") or not run.starts:
        return None
    size *= run.setting("trainer.accumulate_grad_batches") or 1
    firsts = [start["step"] for start in run.starts]
    spans = zip(run.starts, firsts, [*firsts[1:], run.step], strict=True)
    return f"{sum(size * start['processes'] * (end - first) for start, first, end in spans):,}"


def speed(run: Run) -> str | None:
    """The typical speed of training alone."""
    if "throughput/images_per_s" not in run.curves:
        return None
    values = run.curves["throughput/images_per_s"].finite.values
    return (
        f"{readable(float(sorted(values)[len(values) // 2]), 3)} images/s" if len(values) else None
    )


def loss(run: Run, key: str, num: int) -> str | None:
    """The mean of the last values, with the lowest so far where it is one value."""
    if key not in run.curves or not len(run.curves[key].finite.steps):
        return None
    steps, values = run.curves[key].finite
    if num > 1:
        num = min(num, len(values))
        return f"{readable(float(values[-num:].mean()))}, mean of the last {num} logged"
    best = int(values.argmin())
    told = "the lowest" if best == len(values) - 1 else "lowest "
    if told != "the lowest":
        told += f"{readable(float(values[best]))} at {int(steps[best]):,}"
    return f"{readable(float(values[-1]))} at {int(steps[-1]):,}, {told}"


def parameters(run: Run) -> str | None:
    """How many parameters are trained to draw, as the last checkpoint has them."""
    if not run.checkpoints:
        return None
    try:
        held = torch.load(run.checkpoints[-1], map_location="cpu", mmap=True, weights_only=True)
        state: dict[str, Any] = held["state_dict"]
    except Exception as error:  # a damaged file can fail in any way
        return f"unknown: {run.checkpoints[-1].name} cannot be read ({one_line(error)[:80]})"
    network = count(value for name, value in state.items() if name.startswith("network."))
    condition = count(value for name, value in state.items() if name.startswith("conditioner."))
    average = "" if any(name.startswith(EMA_PREFIX) for name in state) else ", no average"
    return f"{network + condition:,}, {condition:,} of them for the condition{average}"


def count(tensors: Iterable[torch.Tensor]) -> int:
    """Numbers in tensors."""
    return sum(tensor.numel() for tensor in tensors)
