"""The weights that sweep compares, as checkpoint files."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pixelhdm.callbacks.image_facts import digest_of_checkpoint
from pixelhdm.checkpoints import (
    EMA_PREFIX,
    PROFILES_PREFIX,
    RECONSTRUCTION,
    AtomicCheckpointIO,
    Weights,
    choose_weights,
    profile_name,
    read_checkpoint,
    step_of,
)
from pixelhdm.errors import UserError
from pixelhdm.reconstruct import KEPT, reconstruct_ema
from pixelhdm.snapshots import snapshots_of

FOLDER = "averages"
PATIENCE = 0.2  # seconds


class Averaged(NamedTuple):
    """Where the weights of a setting are.

    Attributes:
        file: the checkpoint.
        weights: which of its weights.
    """

    file: Path
    weights: Weights


def averages_of(
    emas: list[str], checkpoint: Path, folder: Path, is_global_zero: bool
) -> dict[str, Averaged]:
    """The weights that settings ask for: run, raw, or relative lengths, whose averages the first
    process writes into `folder` where they are not there yet; the others wait for the files, as
    there is no group of processes before the first drawing.

    Raises:
        UserError: the checkpoint has no such average and there are no snapshots at its step from
            which to make it, or it is out of their reach.
    """
    own: dict[str, Weights] = {"run": "ema", "raw": "raw"}
    digest = digest_of_checkpoint(checkpoint)[:8]  # another run's can have the same name
    name = f"{digest}_step{step_of(checkpoint):08d}.ckpt"
    found = {
        ema: Averaged(checkpoint, own[ema])
        if ema in own
        else Averaged(folder / FOLDER / f"ema_sigma{ema}_{name}", "ema")
        for ema in emas
    }
    missing = {ema: average.file for ema, average in found.items() if not average.file.exists()}
    if is_global_zero and (missing or "run" in emas):
        content = read_checkpoint(checkpoint)
        if "run" in emas:
            choose_weights(content["state_dict"], "ema", checkpoint, "--sweep.emas [raw]")
        for ema, file in missing.items():
            if kept := profile(content["state_dict"], float(ema)):
                write_profile(float(ema), content, kept, checkpoint, file)
            else:
                reconstruct(float(ema), checkpoint, file)
    while not all(average.file.exists() for average in found.values()):
        time.sleep(PATIENCE)
    return found


def profile(state: Mapping[str, Tensor], sigma_rel: float) -> dict[str, Tensor]:
    """The average of this length in a checkpoint's state, under the raw names; empty where there
    is none.
    """
    prefix = f"{PROFILES_PREFIX}{profile_name(sigma_rel)}."
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def write_profile(
    sigma_rel: float,
    content: Mapping[str, Any],
    kept: Mapping[str, Tensor],
    checkpoint: Path,
    file: Path,
) -> None:
    """Write an average that a checkpoint holds as such a file as `main.py ema` writes."""
    state = choose_weights(content["state_dict"], "raw", checkpoint)
    step = content["global_step"]
    written = {
        "state_dict": state | {EMA_PREFIX + key: value for key, value in kept.items()},
        "pytorch-lightning_version": content["pytorch-lightning_version"],
        "global_step": step,
        "callbacks": {key: part for key, part in content["callbacks"].items() if key in KEPT},
        RECONSTRUCTION: {"sigma_rel": sigma_rel, "step": step, "raw": checkpoint.name},
    }
    AtomicCheckpointIO().save_checkpoint(written, file)


def reconstruct(sigma_rel: float, checkpoint: Path, file: Path) -> None:
    """Write an average that the snapshots of the checkpoint's run give.

    Raises:
        UserError: there is none of its step, or the average is out of their reach.
    """
    run, step = checkpoint.resolve().parent.parent, step_of(checkpoint)
    steps = sorted({found.step for found in snapshots_of(run).values()})
    if step not in steps:
        there = f"those of steps {steps[0]} … {steps[-1]}" if steps else "none"
        raise UserError(
            "sweep.emas must be averages in the checkpoint or within reach of snapshots of its "
            f"step, got {sigma_rel:g} for {checkpoint.name}, where {run} has {there}. Train with "
            "--ema.sigma_rel and --ema.snapshot_every_n_steps, or take run and raw alone."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    reconstruct_ema(str(run), sigma_rel, step, str(file))
