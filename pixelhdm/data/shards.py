"""Tar shards in WebDataset's format, read by an index."""

import tarfile
import zlib
from typing import Literal

import numpy as np
from jaxtyping import Integer, UInt16

from pixelhdm.data.captions import captions_in
from pixelhdm.data.indexing.index import CRC_KNOWN, NO_LABEL, TEXT_IN_INDEX, TEXT_IS_JSON
from pixelhdm.data.indexing.open_index import open_index
from pixelhdm.data.reading.storage import ReadError, Storage
from pixelhdm.data.source import BadSample, ImageSource, Record
from pixelhdm.data.text_cache import TextCache
from pixelhdm.data.views import Crop, View
from pixelhdm.errors import UserError, check_one_of

Condition = Literal["class", "caption", "none"]
NEAR = 65536  # bytes between image and text over which one read takes both
HEADER = 512


class Shards(ImageSource):
    """Images in tar shards, as `main.py prepare` or img2dataset write them.

    Shards are indexed once; each sample is then one read of its own bytes, from a disk or a
    server, and is checked against its CRC-32 where the index has it.

    Args:
        path: a folder of shards, or paths in webdataset's syntax, such as
            data/{00000..00099}.tar or s3://bucket/train/{00000..00099}.tar; several as a list.
        condition: what images are conditioned on: class (their label), caption (one of their
            captions, another in every epoch), or none (class 0 for all).
        flip_prob: probability of mirroring an image left to right.
        crop: which part of an image is kept where its shape is not the bucket's: center, or
            random, another in every epoch.
        caption_probs: where images have several captions, the probability of the first, of the
            second and so on; where an image has fewer, they keep their ratios. All are as likely
            when empty.
        storage: how often and how long a read is tried.
        index_folder: where the compiled index lies; beside the shards or, where that cannot be,
            in the user's cache when empty.
        cached_text: whether captions come as the text encoder's states, which main.py cache-text
            has made; the training then needs no encoder.
        text_folder: where those lie, a folder or an address; beside the shards when empty.
    """

    def __init__(
        self,
        path: str | list[str],
        condition: Condition = "class",
        flip_prob: float = 0.0,
        crop: Crop = "center",
        caption_probs: list[float] | None = None,
        storage: Storage = Storage(),
        index_folder: str | None = None,
        cached_text: bool = False,
        text_folder: str | None = None,
    ):
        check_one_of(Condition, condition=condition)
        if cached_text and condition != "caption":
            raise UserError(
                f"condition must be caption where cached_text is true, got {condition}."
            )
        self.path, self.condition, self.view = path, condition, View(flip_prob, crop, caption_probs)
        self.storage, self.index_folder = storage, index_folder
        self.cached_text, self.text_folder = cached_text, text_folder
        self.text_cache: TextCache | None = None
        self.empty = "" if condition == "caption" else 0

    def prepare(self) -> None:
        """Build the index where there is none, so that the other processes find it."""
        open_index(self.path, self.storage, self.index_folder)

    def open(self) -> None:
        self.index = open_index(self.path, self.storage, self.index_folder)
        lacks = {
            "class": self.index.label == NO_LABEL,
            "caption": self.index.text_length == 0,
            "none": np.zeros(0, dtype=bool),
        }[self.condition]
        if lacks.any():
            what, remedy = {
                "class": (
                    "a label",
                    "Set the source's condition to caption or none, or prepare the data with them.",
                ),
                "caption": (
                    "a caption",
                    "Prepare the data with --require_captions true, which leaves such images out.",
                ),
            }[self.condition]
            raise UserError(
                f"every image must have {what} for condition {self.condition}, got "
                f"{int(lacks.sum())} of {len(lacks)} without in {self.path}. {remedy}"
            )
        self.classes = self.index.classes if self.condition == "class" else ()
        if self.cached_text:
            self.text_cache = TextCache(self.index, self.storage, self.text_folder)

    def __len__(self) -> int:
        return len(self.index)

    def sizes(self) -> UInt16[np.ndarray, "N 2"]:
        return np.stack([self.index.width, self.index.height], axis=1)

    def shards(self) -> Integer[np.ndarray, "N"]:
        return self.index.shard

    def problems(self) -> tuple[str, ...]:
        return self.index.problems

    def fingerprint(self) -> str:
        return f"shards-{self.index.digest}"

    def place(self, index: int) -> dict[str, str | int]:
        shard, offset = self.index.shards[self.index.shard[index]], int(self.index.offset[index])
        try:
            header = self.storage.read(shard, offset - HEADER, HEADER)
            key = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (ReadError, tarfile.TarError):
            key = "unknown"
        return {"index": index, "shard": shard, "key": key, "offset": offset}

    def load(self, index: int, seed: int, height: int, width: int) -> Record:
        image, text = self.parts(index)
        row = self.index
        if row.flags[index] & CRC_KNOWN and zlib.crc32(image) != row.crc32[index]:
            raise BadSample("crc", "its bytes are not those that the index was made from")
        size = int(row.width[index]), int(row.height[index])
        pixels = self.view.image(image, seed, height, width, size)
        if self.condition == "class":
            return Record(pixels, int(row.label[index]))
        if self.condition == "none":
            return Record(pixels, 0)
        captions = self.read_captions(index, text)
        chosen = self.view.caption(len(captions), seed)
        if self.text_cache is not None:
            shard = int(row.shard[index])
            return Record(pixels, self.text_cache.states(shard, index, captions, chosen))
        return Record(pixels, captions[chosen])

    def captions(self, index: int) -> list[str]:
        """All captions of a sample, its image left alone; errors as of `load`."""
        row = self.index
        first, last = span(row.text_offset[index], row.text_length[index])
        if row.flags[index] & TEXT_IN_INDEX:
            return self.read_captions(index, row.texts[first:last].tobytes())
        try:
            text = self.storage.read(row.shards[row.shard[index]], first, last - first)
        except ReadError as error:
            raise BadSample(error.reason, str(error)) from error
        return self.read_captions(index, text)

    def read_captions(self, index: int, text: bytes) -> list[str]:
        """The captions in a sample's bytes of them, at least one.

        Raises:
            BadSample: there is none, or they cannot be read.
        """
        try:
            captions = captions_in(text, bool(self.index.flags[index] & TEXT_IS_JSON))
        except ValueError as error:
            raise BadSample("text", str(error)) from error
        if not captions:
            raise BadSample("text", "it has no caption")
        return captions

    def parts(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of a sample's image, and of its captions where those are asked for."""
        row = self.index
        shard = row.shards[row.shard[index]]
        start, end = span(row.offset[index], row.length[index])
        first, last = span(row.text_offset[index], row.text_length[index])
        try:
            if self.condition != "caption":
                return self.storage.read(shard, start, end - start), b""
            if row.flags[index] & TEXT_IN_INDEX:
                return self.storage.read(shard, start, end - start), row.texts[first:last].tobytes()
            if max(first - end, start - last) > NEAR:
                image = self.storage.read(shard, start, end - start)
                return image, self.storage.read(shard, first, last - first)
            base = min(start, first)
            both = self.storage.read(shard, base, max(end, last) - base)
        except ReadError as error:
            raise BadSample(error.reason, str(error)) from error
        return both[start - base : end - base], both[first - base : last - base]


def span(offset: np.integer, length: np.integer) -> tuple[int, int]:
    """First byte of a part, and the one after its last."""
    return int(offset), int(offset) + int(length)
