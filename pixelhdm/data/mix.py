"""Several sources as one."""

import math

import numpy as np
from jaxtyping import Int16, Int64, Integer, UInt16

from pixelhdm.data.samplers import generator
from pixelhdm.data.source import ImageSource, Record
from pixelhdm.errors import UserError

FIXED = 2**63  # in the place of an epoch: a draw that no epoch makes


class Mix(ImageSource):
    """Several sources, each with its weight: how often an epoch shows each of its images.

    With weight 2 each image comes twice an epoch, differently cut and mirrored; with 0.25 a quarter
    of the images comes, another in each of four epochs.

    Args:
        sources: what is mixed; all labelled with the same classes, or all captioned.
        weights: one above 0 for each source; 1 for all when empty.
    """

    def __init__(self, sources: list[ImageSource], weights: list[float] | None = None):
        self.sources = sources
        self.weights = [1.0] * len(sources) if weights is None else weights
        good = all(0 < weight < math.inf for weight in self.weights)  # nan is none of them
        if not sources or len(self.weights) != len(sources) or not good:
            raise UserError(
                f"weights must be one number above 0 for each of the {len(sources)} sources, of "
                f"which there must be some, got {self.weights}."
            )
        if any(isinstance(source, Mix) for source in sources):
            raise UserError(
                "sources of a Mix must not be a Mix, got one. Give its sources instead."
            )
        if len({type(source.empty) for source in sources}) > 1:
            raise UserError(
                "sources of a Mix must all have classes or all have captions, got both."
            )
        self.empty = sources[0].empty
        self.knows_sizes = all(source.knows_sizes for source in sources)

    def prepare(self) -> None:
        for source in self.sources:
            source.prepare()

    def open(self) -> None:
        for source in self.sources:
            source.open()
            if source.classes != self.sources[0].classes:
                raise UserError(
                    "sources of a Mix must have the same classes in the same order, got "
                    f"{len(self.sources[0].classes)} and {len(source.classes)}, different ones: "
                    f"{sorted(set(self.sources[0].classes) ^ set(source.classes))[:5]}."
                )
        self.classes = self.sources[0].classes
        self.starts = np.cumsum([0, *map(len, self.sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def leaves(self) -> list[ImageSource]:
        return [leaf for source in self.sources for leaf in source.leaves()]

    def sizes(self) -> UInt16[np.ndarray, "N 2"]:
        return np.concatenate([source.sizes() for source in self.sources])

    def shards(self) -> Integer[np.ndarray, "N"]:
        parts, first = [], 0
        for source in self.sources:
            own = source.shards()
            own = np.zeros(len(source), np.int64) if own is None else own.astype(np.int64)
            parts.append(own + first)
            first += 1 + int(own.max(initial=0))
        return np.concatenate(parts)

    def within(self, index: int) -> tuple[ImageSource, int]:
        """The source that an image belongs to, and its index there."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sources[number], index - int(self.starts[number])

    def load(self, index: int, seed: int, height: int, width: int) -> Record:
        source, own = self.within(index)
        return source.load(own, seed, height, width)

    def place(self, index: int) -> dict[str, str | int]:
        source, own = self.within(index)
        return source.place(own) | {"index": index}

    def problems(self) -> tuple[str, ...]:
        return tuple(problem for source in self.sources for problem in source.problems())

    def fingerprint(self) -> str:
        parts = zip(self.sources, self.weights, strict=True)
        return " + ".join(f"{weight:g} {source.fingerprint()}" for source, weight in parts)

    def rows(
        self, bucket: Int16[np.ndarray, "N"], seed: int, epoch: int
    ) -> Int64[np.ndarray, "M"] | None:
        if all(weight == 1 for weight in self.weights):
            return None
        parts = []
        for number, weight in enumerate(self.weights):
            first, last = int(self.starts[number]), int(self.starts[number + 1])
            copies = int(weight)
            parts += [np.arange(first, last) + copy * len(self) for copy in range(copies)]
            if weight > copies:
                chosen = rotating(bucket[first:last], weight - copies, seed + number, epoch)
                parts.append(chosen + first + copies * len(self))
        return np.concatenate(parts)


def rotating(
    bucket: Int16[np.ndarray, "N"], share: float, seed: int, epoch: int
) -> Int64[np.ndarray, "M"]:
    """A share of each bucket's images, the same number in every epoch, those that come next in a
    fixed random order; in ascending order.
    """
    order = generator(seed, FIXED).permutation(len(bucket))
    order = order[np.argsort(bucket[order], kind="stable")]
    of = bucket[order]
    chosen = []
    for number in np.unique(of[of >= 0]):
        first, last = np.searchsorted(of, [number, number + 1])
        have = int(last - first)
        take = max(1, round(share * have))
        chosen.append(order[first + (epoch * take + np.arange(take)) % have])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
