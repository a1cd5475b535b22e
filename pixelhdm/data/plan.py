"""Which sample comes when: the same plan on every process, from numbers alone."""

import numpy as np
from jaxtyping import Int, UInt64

PADDING = -1


def epoch_plan(
    num_samples: int, global_batch: int, seed: int, epoch: int, shuffle: bool
) -> Int[np.ndarray, "steps global_batch"]:
    """All global batches of an epoch: each sample once, the last batch filled up with -1.

    Each process takes its own columns. `shuffle` gives a new order for every (seed, epoch).
    """
    order = np.arange(num_samples)
    if shuffle:
        key = np.array([seed, epoch], dtype=np.uint64)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(num_samples)
    return np.pad(order, (0, -num_samples % global_batch), constant_values=PADDING).reshape(
        -1, global_batch
    )


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
