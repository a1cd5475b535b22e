"""The files of MNIST and CIFAR-10 as torchvision keeps them."""

import gzip
import io
import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy._core import multiarray
from PIL import Image

from pixelhdm.data.prepare.items import Item, Listing, Place
from pixelhdm.errors import UserError, one_line

MNIST_PREFIX = {"train": "train", "val": "t10k"}
CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_BATCHES = {"train": [f"data_batch_{n}" for n in range(1, 6)], "val": ["test_batch"]}


def encode_latin1(text: str, encoding: str) -> bytes:
    """The bytes of a text that stands for them, in pickles of Python 3 for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"{encoding} is no encoding of bytes")
    return text.encode("latin1")


ALLOWED = {
    ("_codecs", "encode"): encode_latin1,
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True, slots=True)
class PixelPlace(Place):
    """One image of an array of images; its bytes are made: a PNG without loss.

    Args:
        file: the array's file.
        row: number of the image in it.
    """

    file: str
    row: int

    def read(self) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(load_images(self.file)[self.row]).save(stream, "PNG", optimize=True)
        return stream.getvalue()

    def piece(self, offset: int, length: int) -> bytes:
        return load_images(self.file)[self.row].tobytes()[offset : offset + length]


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler of plain values and numpy arrays: nothing else in a file can run."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array") from None


def unpickle(file: Path) -> dict[bytes, Any]:
    """The dictionary in a file of CIFAR-10.

    Raises:
        UserError: it holds anything but plain values and arrays.
    """
    try:
        with open(file, "rb") as stream:
            content = ArrayUnpickler(stream, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} must be a batch of CIFAR-10, got: {one_line(error)}. Get it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must be a batch of CIFAR-10, got a {type(content).__name__}.")
    return content


def read_idx(file: Path) -> UInt8[np.ndarray, "..."]:
    """The array in a file of MNIST's format: 0 0 8, number of axes, their lengths, bytes.

    Raises:
        UserError: the file is torn or of another format.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as stream:
            data = stream.read()
        if data[:3] != b"\0\0\x08":
            raise ValueError("another format")
        axes = np.frombuffer(data, ">u4", count=data[3], offset=4)
        start = 4 + 4 * data[3]
        return np.frombuffer(data, np.uint8, offset=start).reshape([int(n) for n in axes])
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(
            f"{file} must be a whole file of MNIST, got: {one_line(error)}. Get it again."
        ) from error


@lru_cache(maxsize=8)
def load_images(file: str) -> UInt8[np.ndarray, "N H W *c"]:
    """All images of a file."""
    if "idx3" in Path(file).name:
        return read_idx(Path(file))
    flat = unpickle(Path(file))[b"data"]
    return np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def find_mnist(source: Path) -> Path | None:
    """The folder of MNIST's files at or below a source."""
    for folder in (source, source / "raw", source / "MNIST/raw"):
        if any(folder.glob("*-idx3-ubyte*")):
            return folder
    return None


def list_mnist(folder: Path, split: str) -> Listing:
    """MNIST, or one of the sets in its format (Fashion-MNIST, KMNIST).

    Raises:
        UserError: the split's files are not there, or torn.
    """
    files = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{MNIST_PREFIX[split]}-{kind}-ubyte"
        found = [folder / n for n in (name, f"{name}.gz") if (folder / n).exists()]
        if not found:
            raise UserError(f"{folder / name} must be there for split={split}, got nothing.")
        files.append(found[0])
    labels = read_idx(files[1])
    items = array_items(files[0], labels.tolist(), files[0].name.removesuffix(".gz"))
    names = tuple(str(number) for number in range(int(labels.max(initial=0)) + 1))
    return Listing(f"torchvision's MNIST, split {split}", items, names)


def find_cifar(source: Path) -> Path | None:
    """The folder of CIFAR-10's files at or below a source."""
    for folder in (source, source / CIFAR_FOLDER):
        if (folder / "data_batch_1").exists() or (folder / "test_batch").exists():
            return folder
    return None


def list_cifar(folder: Path, split: str) -> Listing:
    """CIFAR-10.

    Raises:
        UserError: the split's files are not there, or hold something else.
    """
    items = []
    for name in CIFAR_BATCHES[split]:
        if not (folder / name).exists():
            raise UserError(f"{folder / name} must be there for split={split}, got nothing.")
        items += array_items(folder / name, unpickle(folder / name)[b"labels"], name)
    meta = folder / "batches.meta"
    names = unpickle(meta)[b"label_names"] if meta.exists() else []
    classes = tuple(name.decode() for name in names)
    return Listing(f"torchvision's CIFAR-10, split {split}", items, classes)


def array_items(file: Path, labels: list[int], name: str) -> list[Item]:
    """The images of one file with their labels."""
    images = load_images(str(file))
    if len(images) != len(labels):
        raise UserError(
            f"{file} must have a label for each image, got {len(images)} and {len(labels)}."
        )
    return [
        Item(f"{name}/{row:05d}", images[row].nbytes, PixelPlace(str(file), row), label=label)
        for row, label in enumerate(labels)
    ]
