"""Checkpoints that all processes of a run write together."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from pixelhdm.checkpoint_files import META, SPLIT, shard_name, take_apart
from pixelhdm.checkpoints import delete, first_line, not_writable, temporary_name
from pixelhdm.errors import UserError
from pixelhdm.files import sync_folder
from pixelhdm.processes import gather_objects


def write_folder(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint as a folder, which appears whole or not at all; all processes must call it
    together.

    Raises:
        UserError: one of them cannot write its part.
    """
    rank, own = torch.distributed.get_rank(), {}
    split = {key: take_apart(checkpoint[key], key, own) for key in SPLIT}
    temporary, meta = temporary_name(path), {"num_shards": torch.distributed.get_world_size()}

    def begin() -> None:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

    def end() -> None:
        if rank == 0:
            write_file(meta | {"content": checkpoint | split}, temporary / META)
            sync_folder(temporary)
            if path.exists():
                delete(path)
            os.replace(temporary, path)
            sync_folder(path.parent)

    try:
        for step in (begin, lambda: write_file(own, temporary / shard_name(rank)), end):
            together(step, lambda reason: not_writable(path, reason))
    finally:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def write_file(content: dict[str, Any], file: Path) -> None:
    """Write a file that reaches the disk."""
    torch.save(content, file)
    with open(file, "rb") as written:
        os.fsync(written.fileno())


def together(action: Callable[[], Any], sentence: Callable[[str], str] = str) -> Any:
    """Do something in every process, and give what it gives; all must call it together.

    Raises:
        UserError: it fails in one of them; `sentence` makes a person's sentence of the reason.
    """
    error, result = None, None
    try:
        result = action()
    except UserError as caught:
        error, reason = caught, str(caught)
    except (OSError, RuntimeError) as caught:
        error, reason = caught, sentence(first_line(caught))
    reasons = gather_objects(None if error is None else reason)
    failed = next((text for text in reasons if text is not None), None)
    if failed is not None:
        raise UserError(failed) from error
    return result
