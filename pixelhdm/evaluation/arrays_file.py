"""Reading of .npz files, whoever has written them."""

import glob
import math
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from pixelhdm.errors import UserError, reason_of
from pixelhdm.files import TEMPORARY

BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError)
STALE = 60  # seconds without a byte, after which nobody is taken to write on


class ArraysFile:
    """An opened .npz file, of which only what is asked for is read, and no pickle ever.

    Args:
        file: where it lies.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """

    def __init__(self, file: Path):
        self.file = file
        if not file.is_file():
            raise UserError(
                f"reference must be a .npz file of statistics, got {file}, which does not exist. "
                "Make one with main.py stats."
            )
        try:
            self.archive = zipfile.ZipFile(file)
        except BROKEN as error:
            raise self.refusal(error) from error
        ends = (name for name in self.archive.namelist() if name.endswith(".npy"))
        self.names = {name.removesuffix(".npy") for name in ends}

    def __enter__(self) -> "ArraysFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.archive.close()

    def array(self, name: str) -> np.ndarray:
        """A whole array."""
        try:
            with self.archive.open(f"{name}.npy") as member:
                return np.lib.format.read_array(member, allow_pickle=False)
        except BROKEN as error:
            raise self.refusal(error) from error

    def crc32(self, name: str) -> int:
        """The checksum of an array, which the archive holds itself."""
        return self.archive.getinfo(f"{name}.npy").CRC

    def layout(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array whose rows follow each other, read from its header.

        Raises:
            UserError: its columns follow each other.
        """
        try:
            with self.archive.open(f"{name}.npy") as member:
                shape, is_fortran, dtype = header(member)
        except BROKEN as error:
            raise self.refusal(error) from error
        if is_fortran:
            raise UserError(
                f"{name} of a reference must lie row by row, got Fortran's order in {self.file}. "
                "Save it again from numpy.ascontiguousarray."
            )
        return shape, dtype

    def rows(self, name: str, batch_size: int) -> Iterator[np.ndarray]:
        """An array's rows in batches, the whole never in memory."""
        shape, dtype = self.layout(name)
        try:
            with self.archive.open(f"{name}.npy") as member:
                header(member)
                size = dtype.itemsize * math.prod(shape[1:])
                for start in range(0, shape[0], batch_size):
                    num = min(batch_size, shape[0] - start)
                    rows = np.frombuffer(member.read(num * size), dtype)
                    yield rows.reshape(num, *shape[1:])
        except BROKEN as error:
            raise self.refusal(error) from error

    def refusal(self, error: Exception) -> UserError:
        """What a person is told of an error of reading."""
        return UserError(
            f"reference must be a whole .npz file of statistics, got {self.file}, which cannot be "
            f"read ({reason_of(error)}). Copy it again, or make one with main.py stats."
        )


def header(member: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape of the array whose bytes follow, whether it lies in Fortran's order, and its type.

    Raises:
        ValueError: it has no rows, or is no array.
    """
    is_first = np.lib.format.read_magic(member) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(member)
    if dtype.hasobject or not shape:
        raise ValueError("not an array of rows")
    return shape, is_fortran, dtype


def remove_leftovers(file: Path) -> None:
    """Delete the unfinished files that killed calls left beside `file`, not one that another call
    writes now.
    """
    for left in file.parent.glob(f".{glob.escape(file.name)}.*{TEMPORARY}"):
        try:
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
        except FileNotFoundError:  # another call has finished it
            continue
