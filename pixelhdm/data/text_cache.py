"""The text states of a set of shards' captions, made before the training (main.py cache-text)."""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import BFloat16, Integer
from numpy.typing import NDArray
from torch import Tensor

from pixelhdm.data.indexing.index import Index
from pixelhdm.data.reading.local import ReadError
from pixelhdm.data.reading.storage import Storage
from pixelhdm.data.source import BadSample
from pixelhdm.data.text_file import ITEM, TextFile, read_text_file, states_of
from pixelhdm.data.text_places import PROMPTS, beside, text_path
from pixelhdm.errors import UserError

NUM_THREADS = 32  # files that are read at once
AGAIN = "Run main.py cache-text with the config of this training."


class TextCache:
    """The text states of all captions of an index's shards, one file a shard.

    Where each text lies is kept in memory, 16 bytes a text and 12 more a sample at most; states
    are read when they are asked for, from any thread.

    Args:
        index: of the shards.
        storage: reads the files.
        folder: where they lie; beside the shards when None.

    Raises:
        UserError: a file is missing, or is not of these shards.
    """

    def __init__(self, index: Index, storage: Storage, folder: str | None):
        self.storage, self.rows = storage, first_rows(index)
        self.prompts_path = beside(index.shards[0], PROMPTS, folder)
        used = np.flatnonzero(np.diff(self.rows))
        self.paths = {int(number): text_path(index.shards[number], folder) for number in used}
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            found = list(pool.map(partial(found_file, storage), self.paths.values()))
        if missing := [
            path for path, file in zip(self.paths.values(), found, strict=True) if not file
        ]:
            raise UserError(
                f"cached_text must find a file for each of {len(found)} shards, got none for "
                f"{len(missing)} of them, such as {missing[0]}. {AGAIN}"
            )
        for number, file in zip(self.paths, found, strict=True):
            check_shard(file, index, number)
        self.take(found)

    def take(self, files: list[TextFile]) -> None:
        """Keep where each text lies."""
        self.starts = dict(zip(self.paths, (file.start for file in files), strict=True))
        self.made_by = {str(made_by(file)): file for file in files}  # one of each kind
        self.width = files[0].width
        self.crc32 = np.concatenate([file.arrays["crc32"] for file in files])
        self.texts = sums([file.arrays["counts"] for file in files])
        self.tokens = sums([file.arrays["lengths"] for file in files])

    def check_encoder(self, settings: Mapping[str, Any], files: str) -> None:
        """Raise unless all states are those of an encoder.

        Args:
            settings: of the encoder.
            files: digest of its files; empty where they are not on this machine.
        """
        for file in self.made_by.values():
            check_encoder(file, settings, files)

    def single_texts(self) -> dict[str, BFloat16[Tensor, "T C"]]:
        """The states of prompts and of the empty text."""
        file = found_file(self.storage, self.prompts_path)
        if file is None:
            raise UserError(f"cached_text must find {self.prompts_path}, got no such file. {AGAIN}")
        self.made_by.setdefault(str(made_by(file)), file)
        size = file.num_bytes - file.start
        states = states_of(self.storage.read(file.path, file.start, size), file.width)
        each = states.split(file.arrays["lengths"].tolist())
        return dict(zip(file.about["texts"], each, strict=True))

    def states(
        self, shard: int, row: int, captions: list[str], chosen: int
    ) -> BFloat16[Tensor, "T C"]:
        """The states of one of a sample's captions.

        Args:
            shard: number of the sample's shard.
            row: number of the sample.
            captions: of the sample, as the shard has them.
            chosen: number of the caption.

        Raises:
            BadSample: they cannot be read, or are those of other captions.
        """
        first, end = int(self.texts[row]), int(self.texts[row + 1])
        if end - first != len(captions) or self.crc32[row] != crc32_of(captions):
            raise BadSample("text", "its captions have changed since main.py cache-text ran")
        base = int(self.tokens[self.texts[self.rows[shard]]])
        at, after = (int(self.tokens[first + chosen + one]) for one in (0, 1))
        size = ITEM * self.width
        offset = self.starts[shard] + size * (at - base)
        try:
            data = self.storage.read(self.paths[shard], offset, size * (after - at))
        except ReadError as error:
            raise BadSample(error.reason, str(error)) from error
        return states_of(data, self.width)


def found_file(storage: Storage, path: str) -> TextFile | None:
    """A file without its states; None where there is none."""
    try:
        return read_text_file(storage, path)
    except ReadError as error:
        if error.reason == "missing":
            return None
        raise UserError(f"{path} must be readable, got: {error}.") from error


def first_rows(index: Index) -> Integer[np.ndarray, "S"]:
    """Number of the first sample of each shard, and of all samples."""
    return np.searchsorted(index.shard, np.arange(len(index.shards) + 1))


def rows_digest(index: Index, shard: int) -> str:
    """A short text that differs where a shard's samples lie elsewhere or are of another length."""
    first, last = np.searchsorted(index.shard, [shard, shard + 1])
    digest = hashlib.sha256()
    for name in ("offset", "length", "text_length"):
        digest.update(index.columns[name][first:last].astype(np.uint64).tobytes())
    return digest.hexdigest()[:16]


def crc32_of(captions: list[str]) -> int:
    """A checksum of a sample's captions."""
    return zlib.crc32("\0".join(captions).encode("utf-8", "surrogatepass"))


def check_shard(file: TextFile, index: Index, shard: int) -> None:
    """Raise unless a file's states are those of a shard of an index."""
    first, last = np.searchsorted(index.shard, [shard, shard + 1])
    arrays, name = file.arrays, index.shards[shard]
    if {"counts", "crc32"} - arrays.keys() or "rows" not in file.about:
        raise UserError(f"{file.path} must hold the states of a shard, got others. {AGAIN}")
    if len(arrays["counts"]) != last - first:
        raise UserError(
            f"{file.path} must hold the states of the {last - first} samples of {name}, got those "
            f"of {len(arrays['counts'])}. {AGAIN}"
        )
    if file.about["rows"] != rows_digest(index, shard):
        raise UserError(
            f"{file.path} must hold the states of {name} as it is now, got those of other samples "
            f"under its name. {AGAIN}"
        )


def made_by(file: TextFile) -> tuple[dict[str, Any], str]:
    """Settings of the encoder that made a file's states, and digest of its files."""
    return file.about.get("settings", {}), file.about.get("files", "")


def check_encoder(file: TextFile, settings: Mapping[str, Any], files: str) -> None:
    """Raise unless a file's states are those of an encoder, naming what differs."""
    own, own_files = made_by(file)
    known = {"name"} if files and own_files else set()  # the files say more than their folder
    for name in dict.fromkeys([*settings, *own]):
        if name in known:
            continue
        if own.get(name) != settings.get(name):
            raise UserError(
                f"cached text must be made by the training's text encoder, got {name} "
                f"{settings.get(name)!r}, where the cache {file.path} has {own.get(name)!r}. "
                f"{AGAIN}"
            )
    if files and own_files and files != own_files:
        raise UserError(
            f"cached text must be made by the training's text encoder, got other files of "
            f"{settings.get('name')} than the cache {file.path} was made with. {AGAIN}"
        )


def sums(parts: Iterable[NDArray]) -> Integer[np.ndarray, "N"]:
    """0 and the sums of the first 1, 2, … numbers, in as few bytes as they need."""
    total = np.concatenate([np.zeros(1, np.int64), *parts]).cumsum(dtype=np.int64)
    return total.astype(np.uint32) if total[-1] < 2**32 else total
