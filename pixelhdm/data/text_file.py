"""A file of text states: safetensors, the states ragged and one after another."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16
from numpy.typing import NDArray
from torch import Tensor

from pixelhdm.data.reading.local import ReadError
from pixelhdm.data.reading.storage import Storage
from pixelhdm.errors import UserError
from pixelhdm.files import replacing

KIND = "text states of PixelHDM, version 1"
STATES = "states"
HEAD = 4096  # bytes of a file that are read first; no header is shorter
ITEM = 2  # bytes of a bfloat16
DTYPES = {"I32": np.int32, "U32": np.uint32}
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


class TextFile(NamedTuple):
    """What is known of a file without its states.

    Attributes:
        path: where it lies.
        about: what it was made from, as `write_text_file` was told.
        arrays: by name, `lengths` (tokens of each text) and others.
        width: of a state.
        start: first byte of the states.
    """

    path: str
    about: dict[str, Any]
    arrays: dict[str, NDArray]
    width: int
    start: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return int(self.arrays["lengths"].sum(dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return self.start + ITEM * self.width * self.num_tokens


def read_text_file(storage: Storage, path: str) -> TextFile:
    """All of a file but its states.

    Raises:
        ReadError: it is missing or out of reach.
        UserError: it is no such file, or not whole.
    """
    try:
        head = storage.read(path, 0, HEAD)
        size = int.from_bytes(head[:8], "little")
        header = head[8 : 8 + size]
        if len(header) < size <= storage.size(path):
            header += storage.read(path, HEAD, 8 + size - HEAD)
        entries = json.loads(header)
        about = {key: json.loads(text) for key, text in entries.pop("__metadata__").items()}
        if about.pop("kind") != KIND:
            raise ValueError("another kind of file")
        total, width = entries[STATES]["shape"]
        first, last = entries.pop(STATES)["data_offsets"]
        body = storage.read(path, 8 + size, first)
        arrays = {name: array_in(body, entry) for name, entry in entries.items()}
        found = TextFile(path, about, arrays, width, 8 + size + first)
        if found.num_tokens != total or last - first != ITEM * width * total:
            raise ValueError("lengths that do not fit the states")
        if storage.size(path) != found.num_bytes:
            raise ValueError("an end that is missing")
    except ReadError as error:
        if error.reason != "torn":
            raise
        raise not_one(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise not_one(path, error) from error
    return found


def not_one(path: str, error: Exception) -> UserError:
    """The error for a file that was not written by `write_text_file`."""
    return UserError(
        f"{path} must be a whole file of text states, got: {error}. "
        "Delete it and run main.py cache-text again."
    )


def array_in(body: bytes, entry: Mapping[str, Any]) -> NDArray:
    """An array among the bytes behind a header."""
    first, last = entry["data_offsets"]
    return np.frombuffer(body[first:last], DTYPES[entry["dtype"]])


def states_of(data: bytes, width: int) -> BFloat16[Tensor, "T C"]:
    """States from their bytes."""
    if not data:
        return torch.empty(0, width, dtype=torch.bfloat16)
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(-1, width)


def write_text_file(
    path: Path,
    about: Mapping[str, Any],
    arrays: Mapping[str, NDArray],
    num_texts: int,
    width: int,
    states: Iterable[BFloat16[Tensor, "T C"]],
) -> TextFile:
    """Write states as they come; the file appears whole or not at all.

    Args:
        path: where to; what is there already is replaced.
        about: what the states were made from; anything that JSON holds.
        arrays: what else the file holds, int32 or uint32.
        num_texts: number of texts.
        width: of a state.
        states: of each text, on the CPU.
    """
    texts = {"kind": KIND, **about}
    metadata = {name: json.dumps(value) for name, value in texts.items()}
    lengths = np.zeros(num_texts, np.int32)
    arrays = {**arrays, "lengths": lengths}
    # Its place is kept free before the number of tokens is known.
    longest = header_of(metadata, arrays, width, 2**40)
    size = max(HEAD, math.ceil((8 + len(longest)) / 64) * 64) - 8
    start = 8 + size + sum(array.nbytes for array in arrays.values())
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.seek(start)
        for number, own in enumerate(states):
            lengths[number] = len(own)
            file.write(own.contiguous().view(torch.uint8).numpy())
        header = header_of(metadata, arrays, width, int(lengths.sum(dtype=np.int64)))
        file.seek(0)
        write_head(file, header.ljust(size), arrays)
    return TextFile(str(path), dict(about), arrays, width, start)


def header_of(
    metadata: Mapping[str, str], arrays: Mapping[str, NDArray], width: int, num_tokens: int
) -> bytes:
    """The header of such a file, as safetensors has it."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, array in arrays.items():
        span = [at, at + array.nbytes]
        entries[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": span,
        }
        at = span[1]
    entries[STATES] = {
        "dtype": "BF16",
        "shape": [num_tokens, width],
        "data_offsets": [at, at + ITEM * num_tokens * width],
    }
    return json.dumps(entries).encode()


def write_head(file: BinaryIO, header: bytes, arrays: Mapping[str, NDArray]) -> None:
    """Write what stands before the states."""
    file.write(len(header).to_bytes(8, "little") + header)
    for array in arrays.values():
        file.write(array.data)
