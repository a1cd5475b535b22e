"""The files of checkpoints: one that holds everything, or a folder with a part of each process."""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from pixelhdm.errors import UserError

META = "meta.pt"
SPLIT = ("state_dict", "optimizer_states")  # whose tensors processes may hold in parts


class CheckpointFolder:
    """A checkpoint in a folder: everything but the tensors that processes hold in parts, in
    meta.pt, and the rows of those that process n has, in shard_n.pt.

    A split tensor is the parts of all files in the order of the processes, one behind the other
    along the first axis. Neither kind of file runs code when it is read.

    Args:
        path: the folder.
        checked: numbers of the shards whose checksums are compared; empty: of all.

    Attributes:
        content: the checkpoint, with tensors on the meta device in the place of the split ones.
        parts: the rows in each shard, by name; read when they are used.

    Raises:
        Exception: a file is missing or damaged.
    """

    def __init__(self, path: str | Path, checked: Callable[[int], Iterable[int]] = range):
        meta = load_file(present(Path(path) / META))
        self.content: dict[str, Any] = meta["content"]
        names = map(shard_name, range(meta["num_shards"]))
        files = [present(Path(path) / name) for name in names]
        for number in checked(len(files)):
            check_sums(files[number])
        self.parts = [load_file(file, mapped=True, is_checked=True) for file in files]

    def rows(self, name: str, like: Tensor, start: int, stop: int) -> Tensor:
        """Rows of a split tensor of the shape of `like`."""
        found, at = [like.new_empty(0, *like.shape[1:], device="cpu")], 0
        for part in self.parts:
            if name in part:
                found.append(part[name][max(0, start - at) : max(0, stop - at)])
                at += len(part[name])
        if at != len(like):
            raise ValueError(f"{at} of {len(like)} rows of {name}")
        return torch.cat(found)

    def whole(self) -> dict[str, Any]:
        """The checkpoint with all tensors put together."""
        split = {key: self.filled(self.content[key], key) for key in SPLIT if key in self.content}
        return self.content | split

    def filled(self, value: Any, name: str) -> Any:
        """A part of the checkpoint with all tensors in it put together."""
        if isinstance(value, dict):
            return {key: self.filled(part, f"{name}/{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [self.filled(part, f"{name}/{key}") for key, part in enumerate(value)]
        if isinstance(value, Tensor) and value.is_meta:
            return self.rows(name, value, 0, len(value))
        return value


def take_apart(value: Any, name: str, own: dict[str, Tensor]) -> Any:
    """A part of a checkpoint with tensors on the meta device in the place of the split ones, whose
    rows of this process go into `own`; all others on the CPU.
    """
    if isinstance(value, dict):
        return {key: take_apart(part, f"{name}/{key}", own) for key, part in value.items()}
    if isinstance(value, list):
        return [take_apart(part, f"{name}/{key}", own) for key, part in enumerate(value)]
    if not isinstance(value, Tensor):
        return value
    if not is_split(value):
        return whole_on_cpu(value)
    own[name] = value.detach().to_local().to("cpu", copy=True)  # what is saved has no padding then
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def put_together(value: Any, keep: bool) -> Any:
    """A part of a checkpoint with all tensors in it whole, on the CPU, where this process is to
    `keep` them; all processes must call it together.
    """
    if isinstance(value, dict):
        return {key: put_together(part, keep) for key, part in value.items()}
    if isinstance(value, list):
        return [put_together(part, keep) for part in value]
    if not isinstance(value, Tensor):
        return value
    whole = full(value.detach())
    return whole_on_cpu(whole) if keep else None


def full(value: Tensor) -> Tensor:
    """A sharded tensor put together; any other as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def whole_on_cpu(value: Tensor) -> Tensor:
    """A tensor that every process has, on the CPU."""
    value = value.detach()
    return (value.to_local() if hasattr(value, "to_local") else value).cpu()


def is_split(value: Tensor) -> bool:
    """Whether each process has some rows of a tensor."""
    return any(placement.is_shard() for placement in getattr(value, "placements", ()))


def present(file: Path) -> Path:
    """The same file, which must be there."""
    if not file.is_file():
        raise FileNotFoundError(f"without {file.name}")
    return file


def shard_name(number: int) -> str:
    """The name of the file with a process's part."""
    return f"shard_{number:05d}.pt"


def check_sums(file: Path) -> None:
    """Raise where a file is damaged: torch.load does not look at the checksums."""
    with ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BadZipFile(f"wrong checksum of {damaged}")


def load_file(path: str | Path, mapped: bool = False, is_checked: bool = False) -> Any:
    """The content of a file, on the CPU and without running code; states of torchao's optimizers
    are readable once it is imported.

    Args:
        path: the file.
        mapped: read the tensors when they are used.
        is_checked: whether its checksums were compared before.
    """
    if not is_checked:
        check_sums(Path(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
