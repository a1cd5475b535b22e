"""Images that have the same bytes."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor

from pixelhdm.data.prepare.items import Item
from pixelhdm.data.prepare.texts import read_texts

PIECE = 4096  # bytes
THREADS = 16  # they wait for a disk


def find_duplicates(items: list[Item], with_captions: bool = False) -> dict[int, int]:
    """The number of the image that stays by that of each other with the same bytes.

    Of several the first with a caption stays, or the first where none has any. Only images of equal
    size are looked at; of these three pieces are compared before all bytes. One that cannot be read
    is no duplicate.

    Args:
        items: the images.
        with_captions: leave out those that cannot have captions: such a one must not stand for
            another that has some.
    """
    able = [
        row
        for row, item in enumerate(items)
        if item.size and (item.may_have_captions or not with_captions)
    ]
    alike = collisions(able, lambda row: items[row].size)
    with ThreadPoolExecutor(THREADS) as pool:
        for digest in (pieces_digest, whole_digest):
            rows = [row for group in alike for row in group]
            found = pool.map(digest, [items[row] for row in rows])
            digests = dict(zip(rows, found, strict=True))
            known = [row for row in rows if digests[row]]
            alike = collisions(known, lambda row, by=digests: (items[row].size, by[row]))
    stays = [next((row for row in group if has_captions(items[row])), group[0]) for group in alike]
    groups = zip(stays, alike, strict=True)
    return {row: first for first, group in groups for row in group if row != first}


def has_captions(item: Item) -> bool:
    """Whether an image has a caption; its texts are read."""
    return item.may_have_captions and bool(read_texts(item).captions)


def collisions(rows: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """The groups of more than one row that share a key, in the order of rows."""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return [group for group in groups.values() if len(group) > 1]


def pieces_digest(item: Item) -> bytes:
    """A digest of an image's first, middle and last bytes; empty where it cannot be read."""
    last = max(0, item.size - PIECE)
    try:
        pieces = [item.place.piece(at, PIECE) for at in sorted({0, last // 2, last})]
    except OSError:  # it is rejected with its reason when its turn comes
        return b""
    return hashlib.blake2b(b"".join(pieces), digest_size=16).digest()


def whole_digest(item: Item) -> bytes:
    """SHA-256 of all bytes of an image; empty where it cannot be read."""
    try:
        data = item.place.piece(0, max(1, item.size))
    except OSError:
        return b""
    return hashlib.sha256(data).digest()
