"""Checkpoints: written whole, read with a reason when they cannot be, and fitted by key."""

import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from pixelhdm.checkpoint_files import META, CheckpointFolder, load_file
from pixelhdm.errors import UserError
from pixelhdm.files import TEMPORARY, replacing

Weights = Literal["ema", "raw"]
FOLDER, ENDING = "checkpoints", ".ckpt"
FULL_DISK = ("inline_container", "iostream")  # in torch's words for it
LOADABLE = ("pytorch-lightning_version", "global_step", "loops", "optimizer_states", "callbacks")
WHOLE = (*LOADABLE, "training")
RECONSTRUCTION = "reconstruction"  # part of a file that the command `ema` wrote
CONVERTED = "converted"  # part of one that `convert` wrote: source and licence of the weights
EMA_PREFIX, LOSS_PREFIX, PROFILES_PREFIX = "ema.", "loss.", "profiles."


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin, made safe: a file appears whole, or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            raise UserError(not_writable(path, first_line(error))) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        check_loadable(checkpoint, path)
        return checkpoint


def not_writable(path: str | Path, reason: str) -> str:
    """What to tell a person whose checkpoint could not be written."""
    if any(word in reason for word in FULL_DISK):
        reason = f"no room on the disk, most likely ({reason})"
    return (
        f"checkpoint {path} must be writable, got: {reason}. Earlier ones are intact; make room, "
        "then resume or run the command again."
    )


def check_loadable(checkpoint: Mapping[str, Any], source: str | Path) -> None:
    """Raise a UserError if Lightning could not load this checkpoint."""
    if RECONSTRUCTION not in checkpoint:
        check_parts(checkpoint, source, LOADABLE)


def check_whole(checkpoint: Mapping[str, Any], source: str | Path) -> None:
    """Raise a UserError if a run could not go on from this checkpoint."""
    check_parts(checkpoint, source, WHOLE)


def check_parts(checkpoint: Mapping[str, Any], source: str | Path, parts: tuple[str, ...]) -> None:
    """Raise a UserError if a part is not there."""
    lacking = [part for part in parts if part not in checkpoint]
    if lacking:
        raise UserError(
            f"checkpoint {source} must be a whole one of a run, got one without "
            f"{', '.join(lacking)}. If it holds weights alone, use --model.init_from instead."
        )


def read_checkpoint(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint, a file or a folder, to the CPU, without running any code that is inside
    it; with `mapped` the tensors of a file are read when they are used.

    Raises:
        UserError: it is missing, torn, or not one of PixelHDM's.
    """
    check_there(path)
    with readable(path):
        is_folder = Path(path).is_dir()
        checkpoint = CheckpointFolder(path).whole() if is_folder else load_file(path, mapped)
    check_state(checkpoint, path)
    return checkpoint


def open_folder(
    path: str | Path, checked: Callable[[int], Iterable[int]] = range
) -> CheckpointFolder:
    """A checkpoint's folder, see CheckpointFolder, whose tensors are read when they are asked for.

    Raises:
        UserError: it is torn, or not one of PixelHDM's.
    """
    with readable(path):
        folder = CheckpointFolder(path, checked)
    check_state(folder.content, path)
    return folder


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is that of a checkpoint: a file, or a folder which processes have written."""
    path = Path(path)
    is_folder = path.is_dir() and (path.suffix == ENDING or (path / META).is_file())
    return is_folder or path.is_file()


def check_there(path: str | Path) -> None:
    """Raise a UserError unless a path is that of a checkpoint."""
    if not is_checkpoint(path):
        what = "is another folder" if Path(path).is_dir() else "does not exist"
        raise UserError(
            f"checkpoint must be a file or a folder step_…{ENDING}, got {path}, which {what}. Look "
            f"into runs/*/{FOLDER}/."
        )


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong in reading a checkpoint into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        if held := unreadable_class(error):
            raise UserError(
                f"checkpoint {path} must hold plain values and tensors alone, got {held}, which "
                "cannot be read without running code. A callback of the run that wrote it has put "
                "it there."
            ) from error
        raise UserError(
            f"checkpoint {path} is torn or not a checkpoint ({first_line(error)}). Use an earlier "
            "one from the same folder."
        ) from error


def check_state(checkpoint: Any, path: str | Path) -> None:
    """Raise a UserError unless there are weights in what was read."""
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"checkpoint {path} must hold a state_dict of tensors, got a file without one. Is it "
            "from PixelHDM?"
        )


def unreadable_class(error: Exception) -> str | None:
    """The class in a file that torch.load does not build; None where the file is damaged."""
    if not isinstance(error, UnpicklingError):
        return None
    name = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.\w+)", str(error))
    return name[1] if name else None


def check_readable(state: Any, owner: str) -> None:
    """Raise a UserError if a state would make the checkpoint that holds it unreadable."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"the state of {owner} must be plain values and tensors, got "
            f"{unreadable_class(error) or first_line(error)}, which no checkpoint is read with. "
            "Turn it into a number, text, list, dict or tensor in state_dict."
        ) from error


def first_line(error: Exception) -> str:
    """The beginning of an error's text."""
    return str(error).split("\n")[0][:200]


def checkpoints_of(run_folder: str | Path) -> list[Path]:
    """The whole checkpoints in a run's folder."""
    return list((Path(run_folder) / FOLDER).glob(f"*{ENDING}"))


def last_checkpoint(run_folder: str | Path) -> Path:
    """The checkpoint of the run with the most steps.

    Raises:
        UserError: there is none.
    """
    found = checkpoints_of(run_folder)
    if not found:
        raise UserError(
            f"--ckpt_path last needs a checkpoint in {Path(run_folder) / FOLDER}, which has none. "
            "Start without --ckpt_path, or set --trainer.default_root_dir to the run's folder."
        )
    return max(found, key=step_of)


def trained_file(path: str | Path, name: str = "init_from") -> Path:
    """The checkpoint that a path means: itself, or the one with the most steps of a run's folder;
    `name` is that of the setting.

    Raises:
        UserError: there is none.
    """
    if str(path) == "":
        raise UserError(f"{name} must be a file or a run's folder, got nothing. Leave it out.")
    if is_checkpoint(path):
        return Path(path)
    found = checkpoints_of(path)
    if not found:
        what = f"has none in {FOLDER}/" if Path(path).is_dir() else "does not exist"
        raise UserError(
            f"{name} must be a checkpoint or the folder of a run with one, got {path}, which "
            f"{what}. Train it first, or name another file or folder."
        )
    return max(found, key=step_of)


def check_new_run(run_folder: str | Path) -> None:
    """Raise a UserError if the folder of a new run holds an older run's checkpoints."""
    if checkpoints_of(run_folder):
        raise UserError(
            f"a new run must not overwrite an old one, got default_root_dir={run_folder}, which "
            f"holds {last_checkpoint(run_folder).name}. Go on with --ckpt_path last, or choose "
            "another folder with --trainer.default_root_dir, or delete this one."
        )


def check_resumed_run(run_folder: str | Path, resumed: str | Path) -> None:
    """Raise a UserError if the run's folder holds checkpoints later than the one to resume.

    They would pass for the resumed run's, and be kept where its own are deleted.
    """
    files, start = checkpoints_of(run_folder), step_of(Path(resumed))
    later = sorted(file.name for file in files if step_of(file) > start)
    if later:
        raise UserError(
            f"a resumed run must start from its folder's last checkpoint, got {resumed} where "
            f"{run_folder} holds {', '.join(later[:3])}. Move those away, or choose another "
            "folder with --trainer.default_root_dir."
        )


def step_of(file: Path) -> int:
    """The optimizer step in a checkpoint's name, -1 where there is none."""
    digits = re.search(r"(\d+)" + re.escape(ENDING) + "$", file.name)
    return int(digits[1]) if digits else -1


def remove_leftovers(run_folder: str | Path) -> None:
    """Delete the unfinished checkpoints that a killed run of this folder left behind."""
    for left in (Path(run_folder) / FOLDER).glob(f".*{TEMPORARY}"):
        delete(left)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint, which is whole or not there at any moment."""
    if not checkpoint.is_dir():
        checkpoint.unlink()
        return
    gone = temporary_name(checkpoint)
    if gone != checkpoint:
        shutil.rmtree(gone, ignore_errors=True)
    os.replace(checkpoint, gone)
    shutil.rmtree(gone)


def temporary_name(checkpoint: Path) -> Path:
    """The name of a checkpoint's folder while it is not whole."""
    name = checkpoint.name
    return checkpoint.with_name(name if name.endswith(TEMPORARY) else f".{name}{TEMPORARY}")


def raw_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The raw weights, those of loss terms among them."""
    return {k: v for k, v in state.items() if not k.startswith((EMA_PREFIX, PROFILES_PREFIX))}


def choose_weights(
    state: Mapping[str, Tensor],
    weights: Weights,
    source: str | Path,
    remedy: str = "--model.weights raw",
) -> dict[str, Tensor]:
    """The averaged or the raw weights of a training checkpoint, under the raw ones' names; loss
    terms have raw ones alone.

    Raises:
        UserError: the average is asked for and not there; it names the flag that helps.
    """
    raw = raw_in(state)
    if weights == "raw":
        return raw
    average = {k.removeprefix(EMA_PREFIX): v for k, v in state.items() if k.startswith(EMA_PREFIX)}
    if not average:
        raise UserError(f"checkpoint {source} must hold an EMA average, got none. Use {remedy}.")
    return {key: value for key, value in raw.items() if key.startswith(LOSS_PREFIX)} | average


def profile_name(sigma_rel: float) -> str:
    """The name of a profile's average in a module, where a point may not stand."""
    return str(sigma_rel).replace(".", "_")
