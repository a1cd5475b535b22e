"""From the plan to batches of tensors."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pixelhdm.data.plan import PADDING, epoch_plan, sample_seeds
from pixelhdm.data.source import ImageSource

Batch = dict[str, Tensor]


class EpochLoader:
    """Batches of one epoch after another, this process's share, from a position that can be set.

    `epoch` and `step` count batches given out, so they are a complete state between two batches. A
    plain iterable: Lightning must neither rebuild it nor add a sampler. A shuffled loader never
    ends, it goes on with the next epoch: who takes a part of an epoch, as limit_train_batches
    does, gets the rest next.

    Args:
        source: an opened source.
        batch_size: images per process and step.
        seed: seed of order, flips, noise and time.
        shuffle: a new order every epoch; false gives the source's order and the same draws each
            time.
        rank: number of this process.
        world_size: number of processes.
        num_threads: threads that load ahead; 0 loads in the training thread.
        accumulate: batches whose gradients make one optimizer step.

    Attributes:
        trainer_epoch: batches after which the trainer's epoch ends, and with it an optimizer step;
            a whole epoch unless it takes a part alone.
        asked: when the latest batch was asked for, in seconds of time.perf_counter.
        given: when it was given out; training waited for it from `asked` to `given`.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rank: int,
        world_size: int,
        num_threads: int,
        accumulate: int = 1,
    ):
        self.accumulate = accumulate
        self.source, self.seed, self.shuffle, self.num_threads = source, seed, shuffle, num_threads
        self.global_batch = batch_size * world_size
        self.columns = slice(rank * batch_size, (rank + 1) * batch_size)
        self.epoch, self.step, self.trainer_epoch = 0, 0, len(self)
        self.asked = self.given = 0.0

    def __len__(self) -> int:
        """Steps of a whole epoch, wherever the position is; the resuming trainer counts the rest
        itself.
        """
        return -(-len(self.source) // self.global_batch)

    def __iter__(self) -> Iterator[Batch]:
        self.asked = time.perf_counter()
        for batch in self.batches():
            self.given = time.perf_counter()
            yield batch
            self.asked = time.perf_counter()

    def batches(self) -> Iterator[Batch]:
        """One epoch where the order is fixed, else one epoch after another without end."""
        if not self.shuffle:
            self.step = 0
            yield from self.rest_of_epoch()
            return
        while True:
            if self.step >= len(self):
                self.epoch, self.step = self.epoch + 1, 0
            yield from self.rest_of_epoch()

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches from the position to the end of the epoch."""
        plan = epoch_plan(len(self.source), self.global_batch, self.seed, self.epoch, self.shuffle)
        for batch in self.ahead(plan[self.step :, self.columns]):
            share = torch.full_like(batch["weight"], self.share())
            self.step += 1
            yield batch | {"share": share}

    def share(self) -> float:
        """Images in the next batch over the mean number in the batches that its optimizer step
        averages.

        It differs from 1 where batches or steps are not full: at an epoch's end, the data's or the
        trainer's.
        """
        number = self.epoch * len(self) + self.step
        done = number % self.trainer_epoch
        first = done - done % self.accumulate
        last = min(first + self.accumulate, self.trainer_epoch)
        images = sum(self.images(number - done + batch) for batch in range(first, last))
        return self.accumulate * self.images(number) / images

    def images(self, number: int) -> int:
        """Images in a batch, numbered over all epochs."""
        start = number % len(self) * self.global_batch
        return min(self.global_batch, len(self.source) - start)

    def ahead(self, plan: np.ndarray) -> Iterator[Batch]:
        """Load the rows of `plan` in order, a few of them ahead of time."""
        if not self.num_threads:
            yield from map(self.load, plan)
            return
        waiting: deque = deque()
        with ThreadPoolExecutor(self.num_threads) as pool:
            try:
                for row in plan:
                    waiting.append(pool.submit(self.load, row))
                    if len(waiting) > 2 * self.num_threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def load(self, index: np.ndarray) -> Batch:
        """One batch: image uint8 B H W 3, condition, weight (0 where padded), seed and index, each
        B; share is added later.
        """
        real = np.where(index == PADDING, 0, index)
        seeds = sample_seeds(self.seed, self.epoch, real)
        records = [self.source.load(int(i), int(s)) for i, s in zip(real, seeds, strict=True)]
        return {
            "image": torch.from_numpy(np.stack([record.image for record in records])),
            "condition": torch.tensor([record.label for record in records]),
            "weight": torch.from_numpy((index != PADDING).astype(np.float32)),
            "seed": torch.from_numpy(seeds),
            "index": torch.from_numpy(real.astype(np.int64)),
        }
