"""Snapshots of the averages that other averages are reconstructed from."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.files import TEMPORARY, replacing
from pixelhdm.training.power_ema import Profile

FOLDER, ENDING = "ema_snapshots", ".safetensors"


def snapshot_file(run_folder: str | Path, profile: Profile) -> Path:
    """Where the snapshot of a profile lies."""
    name = f"sigma{profile.sigma_rel}_step{profile.step:08d}{ENDING}"
    return Path(run_folder) / FOLDER / name


def write_snapshot(run_folder: str | Path, profile: Profile, state: Mapping[str, Tensor]) -> None:
    """Write a snapshot, whole or not at all."""
    path = snapshot_file(run_folder, profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"sigma_rel": str(profile.sigma_rel), "step": str(profile.step)}
    try:
        with replacing(path) as temporary:
            save_file(dict(state), temporary, metadata=facts)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"snapshot {path} must be writable, got: {error}. Make room and resume, or take "
            "snapshots more rarely (--ema.snapshot_every_n_steps)."
        ) from error


def read_snapshot(path: Path) -> dict[str, Tensor]:
    """The tensors of a snapshot, on the CPU."""
    return load_file(path)


def snapshots_of(run_folder: str | Path) -> dict[Path, Profile]:
    """The snapshots in a run's folder, by step.

    Raises:
        UserError: one of them is not a snapshot.
    """
    found = {path: read_profile(path) for path in (Path(run_folder) / FOLDER).glob(f"s*{ENDING}")}
    return dict(sorted(found.items(), key=lambda item: (item[1].step, item[1].sigma_rel)))


def read_profile(path: Path) -> Profile:
    """Which average a snapshot holds."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        return Profile(float(facts["sigma_rel"]), int(facts["step"]))
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"snapshot {path} is torn or not a snapshot of PixelHDM ({error}). Move it away."
        ) from error


def remove_later(run_folder: str | Path, step: int) -> int:
    """Delete the snapshots after `step`, and unfinished files; return the number of snapshots.

    A run that goes on from `step` makes them anew; those of another course would spoil a
    reconstruction.
    """
    for file in (Path(run_folder) / FOLDER).glob(f".*{TEMPORARY}"):
        file.unlink()
    later = [path for path, profile in snapshots_of(run_folder).items() if profile.step > step]
    for path in later:
        path.unlink()
    return len(later)
