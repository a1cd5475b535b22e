"""The members of a tar: a walk over its headers that verifies each and survives damage."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pixelhdm.data.indexing.tar_header import (
    BLOCK,
    EMPTY,
    FILES,
    GNU_SPARSE,
    LONG_LINK,
    LONG_NAME,
    PAX,
    PAX_GLOBAL,
    SPARSE,
    Header,
    extension,
    parsed,
)
from pixelhdm.data.reading.storage import Storage, is_local

ZEROS = bytes(BLOCK)
LOCAL_READ, REMOTE_READ = 64 << 10, 8 << 20  # a request of a store costs as much as megabytes
SEARCH_READ = 4 << 20
MAX_EXTENSION = 1 << 20  # bytes of a header's extension; a longer one is damage


class Member(NamedTuple):
    """A plain file in a tar.

    Attributes:
        name: its path in the tar.
        offset: of its first byte in the tar.
        length: in bytes.
        facts: what is known of it, under the keys of webshart's index: width, height, crc32,
            label, captions.
    """

    name: str
    offset: int
    length: int
    facts: dict[str, Any]


@dataclass
class Walk:
    """What a walk has found.

    Attributes:
        members: the whole ones, in the order of the tar.
        torn: names of members whose bytes end too early.
        gaps: first and last byte (exclusive) of each stretch without a readable header.
        cut_at: size of the file where it ends before the end of the archive, else None.
    """

    members: list[Member] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    cut_at: int | None = None


class Window:
    """Reads of a file that mostly move forward, served from a few large ones.

    Args:
        storage: reads the file.
        path: of the file.

    Raises:
        ReadError: the file is missing or out of reach.
    """

    def __init__(self, storage: Storage, path: str):
        self.storage, self.path = storage, path
        self.size = storage.size(path)
        self.step = LOCAL_READ if is_local(path) else REMOTE_READ
        self.start, self.data = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes there; fewer where the file ends."""
        at = offset - self.start
        if at < 0 or at + length > len(self.data):
            whole = min(max(length, self.step), self.size - offset)
            if whole <= 0:
                return b""
            self.data, self.start, at = self.storage.read(self.path, offset, whole), offset, 0
        return self.data[at : at + length]


def walk(window: Window, look: Callable[[str, int, int], dict[str, Any]]) -> Walk:
    """Go over all headers of a tar. After a damaged one the next sound one is searched.

    Args:
        window: reads the tar.
        look: gives the facts of a member by its name, offset and length, while its bytes are near.

    Raises:
        ReadError: the file is out of reach, or became shorter meanwhile.
    """
    found = Walk()
    for name, offset, length in files(window, found):
        if offset + length > window.size:
            found.torn.append(name)
        else:
            found.members.append(Member(name, offset, length, look(name, offset, length)))
    return found


def files(window: Window, found: Walk) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of each plain file; gaps and the cut are noted in `found`."""
    at = 0
    said: dict[str, str] = {}  # by long-name and PAX headers, of the file that follows
    while (here := sound_header(window, at, found)) is not None:
        start, header = here
        if start != at:
            said = {}
        data, length = start + BLOCK, 0 if header.kind in EMPTY else header.length
        if header.kind in FILES and said.get("size", "").isdecimal():
            length = int(said["size"])
        at = after(data, length)
        if header.kind == SPARSE:
            at = after_sparse(window, window.read(start, BLOCK), data, length)
        if header.kind == LONG_NAME or header.kind in PAX:
            said |= extension(header.kind, window.read(data, min(length, MAX_EXTENSION)))
        elif header.kind not in (LONG_LINK, PAX_GLOBAL):
            name = said.get("path", header.name)
            if header.kind in FILES and not name.endswith("/") and GNU_SPARSE not in said:
                yield name, data, length
            said = {}


def sound_header(window: Window, at: int, found: Walk) -> tuple[int, Header] | None:
    """The header at a block, or, where there is none, the next one; None at the end."""
    block = window.read(at, BLOCK)
    if header := parsed(block):
        return at, header
    second = window.read(at + BLOCK, BLOCK) if block == ZEROS else ZEROS
    if len(block) < BLOCK or len(second) < BLOCK:
        found.cut_at = window.size
        return None
    following = next_header(window, at + BLOCK)
    if following is None and block == second == ZEROS:
        return None
    found.gaps.append((at, following[0] if following else window.size))
    return following


def next_header(window: Window, at: int) -> tuple[int, Header] | None:
    """The first sound ustar header at or after a block's start."""
    magic = np.frombuffer(b"ustar", np.uint8)
    while at + BLOCK <= window.size:
        length = min(SEARCH_READ, window.size - at) // BLOCK * BLOCK
        blocks = np.frombuffer(window.read(at, length), np.uint8).reshape(-1, BLOCK)
        for row in np.flatnonzero((blocks[:, 257:262] == magic).all(axis=1)):
            if header := parsed(blocks[row].tobytes()):
                return at + int(row) * BLOCK, header
        at += length
    return None


def after(data: int, length: int) -> int:
    """Where the header after a member's bytes starts."""
    return data + -(-length // BLOCK) * BLOCK


def after_sparse(window: Window, header: bytes, data: int, length: int) -> int:
    """Where the header after an old GNU sparse file starts: its map may go on in more blocks."""
    more = header[482]
    while more:
        block = window.read(data, BLOCK)
        data, more = data + BLOCK, len(block) == BLOCK and block[504]
    return after(data, length)
