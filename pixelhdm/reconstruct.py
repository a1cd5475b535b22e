"""The command `ema`: the average of any length, made after the training."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixelhdm.checkpoints import (
    EMA_PREFIX,
    FOLDER,
    RECONSTRUCTION,
    AtomicCheckpointIO,
    checkpoints_of,
    choose_weights,
    last_checkpoint,
)
from pixelhdm.errors import UserError
from pixelhdm.snapshots import read_snapshot, snapshots_of
from pixelhdm.training.power_ema import Profile, combine

MOST_RESIDUAL = 0.5
ROUNDING = 2**-12  # relative, of a float16
KEPT = {"RepaEarlyStop"}  # state of callbacks: validate must know whether a teacher is needed


def reconstruct_ema(
    run: str, sigma_rel: float, step: int | None = None, out: str | None = None
) -> None:
    """Make the weights' average of another length from the snapshots of a training run.

    Writes a checkpoint from which predict and validate take it (arXiv:2312.02696, section 3.2).

    Args:
        run: the run's folder; it was trained with --ema.sigma_rel.
        sigma_rel: relative length of the average: the standard deviation of its weights in time,
            as a part of the training until `step`; 0.05 to 0.15 are usual.
        step: last optimizer step that counts, one of a snapshot; empty takes the last.
        out: file to write; empty makes <run>/ema_sigma….ckpt.

    Raises:
        UserError: there is no snapshot or checkpoint, or sigma_rel or step is out of reach.
    """
    snapshots = snapshots_of(run)
    if not snapshots or not checkpoints_of(run):
        raise UserError(
            f"run must be the folder of a run with EMA snapshots and a checkpoint, got {run}, "
            f"which has {len(snapshots)} snapshots and {len(checkpoints_of(run))} checkpoints. "
            "Train with --ema.sigma_rel and --ema.snapshot_every_n_steps."
        )
    steps = sorted({profile.step for profile in snapshots.values()})
    step = steps[-1] if step is None else step
    if step not in steps:
        near = sorted(steps, key=lambda other: abs(other - step))[:3]
        raise UserError(
            f"step must be one of a snapshot, {steps[0]} … {steps[-1]}, got {step}. "
            f"Near it are {', '.join(map(str, sorted(near)))}."
        )
    snapshots = {path: profile for path, profile in snapshots.items() if profile.step <= step}
    target = Path(out or Path(run) / f"ema_sigma{sigma_rel}_step{step:08d}.ckpt")
    if target.parent.name == FOLDER:
        raise UserError(
            f"out must lie outside of {FOLDER}, whose files are a run's own, got {out}."
        )
    factors, distance = combine(list(snapshots.values()), Profile(sigma_rel, step))
    if distance > MOST_RESIDUAL:
        raise UserError(
            f"sigma_rel must be within reach of the run's snapshots, got {sigma_rel}, from which "
            f"their best sum differs by {distance:.0%}. Choose one nearer to theirs, or train with "
            "a smaller --ema.snapshot_every_n_steps."
        )
    rounding = ROUNDING * math.hypot(*factors)
    average = {"sigma_rel": sigma_rel, "step": step, "residual": distance, "rounding": rounding}
    write(target, last_checkpoint(run), dict(zip(snapshots, factors, strict=True)), average)
    print(
        f"Wrote {target}: sigma_rel {sigma_rel} at step {step} from {len(snapshots)} snapshots, "
        f"residual {distance:.2%} (over 5 % there are too few snapshots for it), rounding of the "
        f"snapshots {rounding:.2%}."
    )


def write(
    target: Path, source: Path, factors: Mapping[Path, float], facts: Mapping[str, float]
) -> None:
    """Write the state of the checkpoint `source` with the snapshots' weighted sum as its average.

    It says itself that no run can go on from it: optimizer, loops and callbacks are not there.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(source)
    state = checkpoint["state_dict"]
    shapes = {
        key.removeprefix(EMA_PREFIX): value.shape
        for key, value in state.items()
        if key.startswith(EMA_PREFIX)
    }
    average = weighted_sum(factors, shapes)
    content = {
        "state_dict": choose_weights(state, "raw", source)
        | {EMA_PREFIX + key: value for key, value in average.items()},
        "pytorch-lightning_version": checkpoint["pytorch-lightning_version"],
        "global_step": facts["step"],
        "callbacks": {key: part for key, part in checkpoint["callbacks"].items() if key in KEPT},
        RECONSTRUCTION: {**facts, "raw": source.name},
    }
    AtomicCheckpointIO().save_checkpoint(content, target)


def weighted_sum(
    factors: Mapping[Path, float], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """The sum of the snapshots' tensors times their factors, float32.

    Raises:
        UserError: a snapshot has other tensors than these shapes, or no number in one.
    """
    total = {key: torch.zeros(shape) for key, shape in shapes.items()}
    for path, factor in factors.items():
        state = read_snapshot(path)
        if {key: value.shape for key, value in state.items()} != shapes:
            raise UserError(
                f"snapshot {path} must hold the tensors that the run's last checkpoint averages, "
                "got others. Is it of another run?"
            )
        for key, value in state.items():
            total[key].add_(value.float(), alpha=factor)
    if not all(value.isfinite().all() for value in total.values()):
        raise UserError("snapshots must be finite, got NaN or infinity. Take an earlier --step.")
    return total
