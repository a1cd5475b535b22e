"""What a source holds: its images, where their bytes lie and what is known of them."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pixelhdm.data.reading.storage import Storage

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm"),
)
TEXT_ENDINGS = (".json", ".caption", ".txt")  # in the order in which their captions are taken

# Why an image is left out, in the words of the report and in its order.
REASONS = {
    "duplicate": "same bytes as another image",
    "no_caption": "no caption",
    "missing": "file not there",
    "unreadable": "cannot be read",
    "second_image": "second image of a sample",
    "empty": "empty file",
    "broken": "does not decode",
    "unsupported": "no format that training reads",
    "animated": "animation or several pages",
    "too_large": "too large",
    "too_small": "too small",
    "extreme": "extreme aspect ratio",
}
OTHER_LABEL = ", which has another label"  # said of a duplicate


class Rejection(NamedTuple):
    """An image that is left out.

    Attributes:
        path: its path in the source.
        reason: one of REASONS.
        detail: what exactly, in a few words.
    """

    path: str
    reason: str
    detail: str


class Place(ABC):
    """Where an image's bytes lie; picklable."""

    __slots__ = ()

    @abstractmethod
    def read(self) -> bytes:
        """All of them; an OSError where that fails."""

    @abstractmethod
    def piece(self, offset: int, length: int) -> bytes:
        """Some of what makes the image the same as another; fewer at the end."""


@dataclass(frozen=True, slots=True)
class FilePlace(Place):
    """A file of its own.

    Args:
        path: the file.
    """

    path: str

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()

    def piece(self, offset: int, length: int) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)


@dataclass(frozen=True, slots=True)
class TarPlace(Place):
    """A member of an uncompressed tar, local or remote.

    Args:
        storage: what reads the tar.
        path: the tar's path or URL.
        offset: of the member's first byte.
        length: of the member in bytes.
    """

    storage: Storage
    path: str
    offset: int
    length: int

    def read(self) -> bytes:
        return self.storage.read(self.path, self.offset, self.length) if self.length else b""

    def piece(self, offset: int, length: int) -> bytes:
        length = min(length, self.length - offset)
        return self.storage.read(self.path, self.offset + offset, length) if length > 0 else b""


@dataclass(slots=True)
class Item:
    """One image of a source, and what is known of it without decoding it.

    Attributes:
        path: its path in the source, with "/", which names it and decides its place in the order.
        size: number of its bytes, for arrays of its pixels' bytes.
        place: where they lie.
        folder: the class folder that it lies in, if it lies in one.
        class_name: its class, where the source names one.
        label: its class's number, where the source gives one.
        captions: those that the listing knows.
        texts: files beside it that hold captions, with their endings.
        metadata: what else the listing knows.
    """

    path: str
    size: int
    place: Place
    folder: str | None = None
    class_name: str | None = None
    label: int | None = None
    captions: tuple[str, ...] = ()
    texts: tuple[tuple[str, Place], ...] = ()
    metadata: dict[str, Any] | None = None

    @property
    def may_have_captions(self) -> bool:
        """Whether captions are known, or may stand beside it."""
        return bool(self.captions or self.texts)


@dataclass
class Listing:
    """All images of a source, in the order of their paths.

    Attributes:
        kind: what the source was recognised as, for people.
        items: the images.
        classes: names of the classes in the order of their numbers; empty where unlabelled.
        rejected: what is known to be unusable already.
        notes: what the report tells about the source.
        others: number of files that are no images, by their endings.
    """

    kind: str
    items: list[Item]
    classes: tuple[str, ...] = ()
    rejected: list[Rejection] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def digest(self) -> str:
        """A short text that differs when images, their sizes, labels or known captions do."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for item in self.items:
            known = (item.path, item.size, item.label, item.captions, len(item.texts))
            digest.update(repr(known).encode())
        return digest.hexdigest()[:16]
