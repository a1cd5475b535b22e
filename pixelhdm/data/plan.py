"""Which samples make which batch: the same on every process, from numbers alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int16, Int64, UInt64


@dataclass
class EpochPlan:
    """The global batches of an epoch, or of what is left of it; each of one bucket.

    Attributes:
        queue: positions in the epoch's order, bucket after bucket, within each in order.
        bucket: bucket of each batch.
        start: where in the queue each batch begins.
        count: samples of each batch; fewer than its slots where a bucket runs out.
    """

    queue: Int64[np.ndarray, "N"]
    bucket: Int16[np.ndarray, "steps"]
    start: Int64[np.ndarray, "steps"]
    count: Int64[np.ndarray, "steps"]

    def __len__(self) -> int:
        return len(self.start)

    def batch(self, step: int) -> Int64[np.ndarray, "count"]:
        """Positions of a batch's samples in the epoch's order."""
        return self.queue[self.start[step] : self.start[step] + self.count[step]]

    def taken(self, steps: int) -> Bool[np.ndarray, "N"]:
        """For each position in the order whether one of the first batches has it."""
        taken = np.zeros(len(self.queue), dtype=bool)
        for step in range(steps):
            taken[self.batch(step)] = True
        return taken


def plan_epoch(bucket: Int16[np.ndarray, "N"], slots: Int64[np.ndarray, "buckets"]) -> EpochPlan:
    """Cut each bucket's samples, in their order, into batches; the last of each may be short.

    A batch comes when the order has reached its last sample. Time is linear, about 0.2 CPU-seconds
    for 10 million samples; memory 12 bytes a sample for the result.

    Args:
        bucket: bucket of each sample, in the epoch's order.
        slots: samples of a full batch of each bucket, over all processes.
    """
    queue = np.argsort(bucket, kind="stable")  # a radix sort for 16 bits
    counts = np.bincount(bucket, minlength=len(slots))
    batches = -(-counts // slots)
    of = np.repeat(np.arange(len(slots)), batches)
    number = np.arange(len(of)) - np.repeat(np.cumsum(batches) - batches, batches)
    start = (np.cumsum(counts) - counts)[of] + number * slots[of]
    count = np.minimum(slots[of], counts[of] - number * slots[of])
    emitted = np.argsort(queue[start + count - 1])
    return EpochPlan(queue, of[emitted].astype(np.int16), start[emitted], count[emitted])


def sample_seeds(seed: int, epoch: int, index: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
    """A seed in [0, 2^63) for each (seed, epoch, sample): three rounds of splitmix64 over the three
    numbers.
    """
    mixed = np.zeros(len(index), dtype=np.uint64)
    for part in (np.uint64(seed), np.uint64(epoch), index.astype(np.uint64)):
        mixed = splitmix(mixed ^ part)
    return (mixed >> np.uint64(1)).astype(np.int64)


def splitmix(x: UInt64[np.ndarray, "B"]) -> UInt64[np.ndarray, "B"]:
    """One step of the splitmix64 generator (Steele et al. 2014, doi:10.1145/2714064.2660195)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
