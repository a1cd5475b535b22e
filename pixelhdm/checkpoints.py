"""Checkpoint files: written whole, read with a reason when they cannot be, and fitted by key."""

import io
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.files import TEMPORARY, replacing

Weights = Literal["ema", "raw"]
FOLDER, ENDING = "checkpoints", ".ckpt"
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
            raise UserError(
                f"checkpoint {path} must be writable, got: {first_line(error)}. Earlier ones are "
                "intact; make room, then resume or run the command again."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        if RECONSTRUCTION not in checkpoint:
            check_parts(checkpoint, path, LOADABLE)
        return checkpoint


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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without running any code that is inside it.

    Raises:
        UserError: it is missing, torn, or not one of PixelHDM's.
    """
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "does not exist"
        raise UserError(
            f"checkpoint must be a file, got {path}, which {what}. Look into runs/*/{FOLDER}/."
        )
    try:
        with ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise BadZipFile(f"wrong checksum of {damaged}")
        checkpoint = load_file(path)
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
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"checkpoint {path} must hold a state_dict of tensors, got a file without one. Is it "
            "from PixelHDM?"
        )
    return checkpoint


def load_file(path: str | Path) -> Any:
    """The content of a file; states of torchao's optimizers are readable once it is imported."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "torchao" not in str(error):
            raise
        try:
            import_module("torchao.optim")
        except ModuleNotFoundError as missing:
            raise UserError(
                f"checkpoint {path} must be read with torchao, whose optimizer states it holds, "
                "got none. Run pip install torchao."
            ) from missing
        return torch.load(path, map_location="cpu", weights_only=True)


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
    """The checkpoint that a path means: a file, or the one with the most steps of a run's folder;
    `name` is that of the setting.

    Raises:
        UserError: there is none.
    """
    if str(path) == "":
        raise UserError(f"{name} must be a file or a run's folder, got nothing. Leave it out.")
    if Path(path).is_file():
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
    """Delete the unfinished files that a killed run of this folder left behind."""
    for file in (Path(run_folder) / FOLDER).glob(f".*{TEMPORARY}"):
        file.unlink()


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
