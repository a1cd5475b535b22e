"""Which image goes to which shard."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from pixelhdm.data.prepare.items import Item
from pixelhdm.errors import UserError

OVERHEAD = 2048  # bytes that a sample takes beside its image, about: headers, padding, JSON
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "": 1, "B": 1}
DIGITS = 5  # of a shard's number, at least
KEY_DIGITS = 9


@dataclass
class Plan:
    """The shuffled images, cut into shards of about equal size; it depends on the listing alone.

    Args:
        order: numbers of the images in their shuffled order.
        starts: place in `order` where each shard begins, and the end.
    """

    order: Int64[np.ndarray, "N"]
    starts: Int64[np.ndarray, "S"]

    @classmethod
    def of(
        cls, items: list[Item], seed: int, shard_bytes: int, images_per_shard: int | None
    ) -> "Plan":
        """The plan of a listing's images.

        Args:
            items: the images.
            seed: of the shuffle.
            shard_bytes: highest size of a shard, about.
            images_per_shard: highest number of images in a shard, in place of its size.
        """
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(items))
        sizes = np.array([item.size + OVERHEAD for item in items], dtype=np.int64)[order]
        if images_per_shard is not None:
            sizes[:], shard_bytes = 1, images_per_shard
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        num_shards = max(1, -(-total // shard_bytes))
        limits = [total * number // num_shards for number in range(1, num_shards + 1)]
        cuts = np.searchsorted(ends, np.array(limits), side="right")
        return cls(order, np.unique(np.concatenate([[0], cuts])).astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, shard: int) -> Int64[np.ndarray, "n"]:
        """Numbers of a shard's images in their order."""
        return self.order[self.starts[shard] : self.starts[shard + 1]]

    def name(self, shard: int) -> str:
        """A shard's file name without its ending."""
        return f"{shard:0{max(DIGITS, len(str(len(self) - 1)))}d}"

    def key(self, shard: int, number: int) -> str:
        """The key of the image at a place in a shard; no other shard has it."""
        digits = max(KEY_DIGITS, len(str(len(self.order))))
        return f"{int(self.starts[shard]) + number:0{digits}d}"


def parse_bytes(size: str) -> int:
    """Bytes of a size such as 256MB, 1GB or 1000000.

    Raises:
        UserError: it is none, or 0.
    """
    text = size.strip().upper().replace(" ", "")
    number = text.rstrip("KMGB")
    try:
        parsed = int(float(number) * UNITS[text[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        parsed = 0
    if parsed < 1:
        raise UserError(f"shard_size must be a size such as 256MB, 1GB or 1000000, got {size}.")
    return parsed


def parse_part(part: str | None) -> tuple[int, int]:
    """i and n of "i/n"; 1/1 for None.

    Raises:
        UserError: it is none, or i does not lie in 1 … n.
    """
    first, slash, last = (part or "1/1").partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(
            f"part must be i/n with 1 ≤ i ≤ n, such as 1/4 for the first of four, got {part}."
        )
    return int(first), int(last)
