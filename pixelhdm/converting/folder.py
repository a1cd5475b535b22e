"""The folder of a converted model, which looks like that of a run."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from pixelhdm.checkpoints import CONVERTED, ENDING, FOLDER, AtomicCheckpointIO
from pixelhdm.errors import UserError
from pixelhdm.files import TEMPORARY
from pixelhdm.inference.exports.trained import CONFIG


def check_empty(out: Path) -> None:
    """Raise a UserError if the folder to write holds anything."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        what = "is a file" if out.is_file() else "holds files"
        raise UserError(f"out must be a new or empty folder, got {out}, which {what}.")


def write_folder(
    out: Path, state: dict[str, Tensor], step: int, origin: dict[str, str], config: str
) -> None:
    """Write a checkpoint and its config, both or none; `origin` tells where the weights are from
    and what licence they have.
    """
    with appearing(out) as folder:
        file = folder / FOLDER / f"step_{step:08d}{ENDING}"
        AtomicCheckpointIO().save_checkpoint(content(state, step, origin), file)
        (folder / CONFIG).write_text(config, encoding="utf-8")


def content(state: dict[str, Tensor], step: int, origin: dict[str, str]) -> dict[str, Any]:
    """A checkpoint that draws and that a new run starts from; none that a run goes on from."""
    return {
        "state_dict": state,
        "global_step": step,
        "epoch": 0,
        "pytorch-lightning_version": lightning.__version__,
        "loops": None,  # Lightning looks for those of predict in any other value
        "optimizer_states": [],
        "callbacks": {},
        CONVERTED: origin,
    }


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, or is gone after an error."""
    out = out.resolve()  # the name of . is empty
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}{TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)  # of an earlier command that was killed
    try:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
