"""The order in which an epoch takes its samples."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from pixelhdm.errors import check_at_least

SHARDS_AHEAD = 10  # of a buffer, where its size is not given


def generator(seed: int, epoch: int) -> np.random.Generator:
    """Random numbers of an epoch, the same on every machine."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))


class Plan(ABC):
    """Base of all orders."""

    @abstractmethod
    def order(
        self, shard: Integer[np.ndarray, "N"] | None, num: int, seed: int, epoch: int
    ) -> Int64[np.ndarray, "N"]:
        """The positions 0 … num - 1, each once, in the epoch's order.

        Args:
            shard: number of the shard that each lies in, those of a shard standing together; none
                where all lie in one.
            num: how many there are.
            seed: seed of the run.
            epoch: number of the epoch.
        """


@dataclass
class SequentialPlan(Plan):
    """The same order in every epoch, that of the shards."""

    def order(
        self, shard: Integer[np.ndarray, "N"] | None, num: int, seed: int, epoch: int
    ) -> Int64[np.ndarray, "N"]:
        return np.arange(num)


@dataclass
class RandomPlan(Plan):
    """A new permutation in every epoch: the best shuffle, whose reads jump over all shards."""

    def order(
        self, shard: Integer[np.ndarray, "N"] | None, num: int, seed: int, epoch: int
    ) -> Int64[np.ndarray, "N"]:
        return generator(seed, epoch).permutation(num)


@dataclass
class BufferedShufflePlan(Plan):
    """Shuffled shards, and then each sample at most `window` places from where it was.

    Reads stay within a few shards at a time, as a shuffle buffer's do, yet the whole order is known
    ahead. Where one window holds all samples it is a permutation, as RandomPlan's.

    Args:
        window: how many places a sample may move; empty takes ten mean shards.
    """

    window: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, window=1 if self.window is None else self.window)

    def order(
        self, shard: Integer[np.ndarray, "N"] | None, num: int, seed: int, epoch: int
    ) -> Int64[np.ndarray, "N"]:
        random = generator(seed, epoch)
        starts = np.zeros(1, dtype=np.int64)
        if shard is not None and num:
            starts = np.concatenate([starts, np.flatnonzero(shard[1:] != shard[:-1]) + 1])
        window = self.window or SHARDS_AHEAD * -(-num // len(starts))
        if window >= num:
            return random.permutation(num)
        by_shard = runs(starts, num, random.permutation(len(starts)))
        return by_shard[jittered(num, window, random)]


def runs(starts: np.ndarray, num: int, order: np.ndarray) -> Int64[np.ndarray, "N"]:
    """0 … num - 1 with its runs, which begin at `starts`, put into another order."""
    lengths = np.diff(starts, append=num)[order]
    ends = np.cumsum(lengths)
    return np.arange(num) + np.repeat(starts[order] - (ends - lengths), lengths)


def jittered(num: int, window: int, random: np.random.Generator) -> Int64[np.ndarray, "N"]:
    """0 … num - 1, stably sorted by each number plus one drawn from 0 … window.

    The numbers stand in the low bits of the keys, so that all keys differ and any sort gives the
    same result.
    """
    bits = np.uint64(max(num - 1, 1).bit_length())
    position = np.arange(num, dtype=np.uint64)
    key = (position + random.integers(0, window, num, dtype=np.uint64, endpoint=True)) << bits
    key |= position
    key.sort()
    return (key & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
