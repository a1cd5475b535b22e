"""The position in the data, and the batches from there on."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, Int64

from pixelhdm.data.batches import Batch, Executor, Slots, load_ahead
from pixelhdm.data.plan import EpochPlan, plan_epoch, sample_seeds
from pixelhdm.data.samplers import Plan
from pixelhdm.data.source import ImageSource

History = list[tuple[list[int], int]]


@dataclass
class Bucketed:
    """An opened source whose images have buckets.

    Attributes:
        source: where the images are.
        table: height and width of each bucket in pixels.
        bucket: bucket of each image, -1 where it is dropped.
    """

    source: ImageSource
    table: list[tuple[int, int]]
    bucket: Int16[np.ndarray, "N"]


@dataclass
class Sharing:
    """How the work is shared out.

    Args:
        rank: number of this process.
        world_size: number of processes.
        num_workers: threads or processes that load ahead.
        executor: which of them.
        pin: whether images lie in page-locked memory.
    """

    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    executor: Executor = "thread"
    pin: bool = False


class EpochLoader:
    """Batches of one epoch after another, this process's share, from a position that can be set.

    `epoch`, `history` and `step` count batches given out, so they are a complete state between two
    batches. A plain iterable: Lightning must neither rebuild it nor add a sampler. An endless
    loader goes on with the next epoch: who takes a part of an epoch, as limit_train_batches does,
    gets the rest next.

    Args:
        data: images in their buckets.
        batch_sizes: images per process and step of each bucket.
        sampler: the order of an epoch.
        seed: seed of order, flips, crops, captions, noise and time.
        endless: whether the next epoch follows; else each iteration is the first epoch, with the
            same draws each time.
        sharing: which part of each batch this process loads, and how.
        accumulate: batches whose gradients make one optimizer step.

    Attributes:
        trainer_epoch: batches after which the trainer's epoch ends, and with it an optimizer step;
            a whole epoch unless it takes a part alone.
        history: what was given out of this epoch in batches of other sizes: those, and how many.
        asked: when the latest batch was asked for, in seconds of time.perf_counter.
        num_images: images of an epoch.
        given: when it was given out; training waited for it from `asked` to `given`.
    """

    def __init__(
        self,
        data: Bucketed,
        batch_sizes: list[int],
        sampler: Plan,
        seed: int,
        endless: bool,
        sharing: Sharing,
        accumulate: int = 1,
    ):
        self.data, self.batch_sizes, self.plan, self.seed = data, batch_sizes, sampler, seed
        self.endless, self.sharing, self.accumulate = endless, sharing, accumulate
        self.slots = np.array(batch_sizes, dtype=np.int64) * sharing.world_size
        self.epoch, self.step, self.skipped, self.resumed_at = 0, 0, 0, 0
        self.history: History = []
        self.stream: Iterator[tuple[Slots, Batch]] | None = None
        self.counts: dict[int, np.ndarray] = {}
        self.drops = bool((data.bucket < 0).any())
        bucket = self.in_order(epoch=0)[1]
        in_buckets = np.bincount(bucket, minlength=len(self.slots))
        self.length = int((-(-in_buckets // self.slots)).sum())
        self.num_images = len(bucket)
        self.trainer_epoch = self.length
        self.asked = self.given = 0.0

    def __len__(self) -> int:
        """Steps of a whole epoch, wherever the position is; the resuming trainer counts the rest
        itself.
        """
        return self.length

    # Order ----------------------------------------------------------------------------------------

    def in_order(self, epoch: int) -> tuple[Int64[np.ndarray, "N"], Int16[np.ndarray, "N"]]:
        """The samples of an epoch in its order, and their buckets."""
        source, num = self.data.source, len(self.data.source)
        rows, shard = source.rows(self.data.bucket, self.seed, epoch), source.shards()
        if rows is not None and shard is not None:
            shard = shard[rows % num]
        order = self.plan.order(shard, num if rows is None else len(rows), self.seed, epoch)
        if rows is not None:
            order = rows[order]
        bucket = self.data.bucket[order if rows is None else order % num]
        kept = bucket >= 0
        return (order[kept], bucket[kept]) if self.drops else (order, bucket)

    def planned(self, epoch: int) -> tuple[Int64[np.ndarray, "N"], EpochPlan, int]:
        """The samples left of an epoch in their order, their batches, and how many batches stand
        for what was given out in others.
        """
        samples, bucket = self.in_order(epoch)
        for slots, steps in self.history if epoch == self.epoch else []:
            left = ~plan_epoch(bucket, np.array(slots)).taken(steps)
            samples, bucket = samples[left], bucket[left]
        plan = plan_epoch(bucket, self.slots)
        skipped = self.length - len(plan)
        self.counts = {number: self.counts[number] for number in self.counts if number >= epoch - 1}
        self.counts[epoch] = np.pad(plan.count, (skipped, 0))
        return samples, plan, skipped

    def parts(self) -> Iterator[Slots]:
        """This process's part of each batch from the position on."""
        epoch, step = self.epoch, self.step
        while True:
            samples, plan, skipped = self.planned(epoch)
            for number in range(step, self.length):
                bucket = int(plan.bucket[number - skipped])
                num = self.batch_sizes[bucket]
                first = self.sharing.rank * num
                index = samples[plan.batch(number - skipped)[first : first + num]]
                seeds = sample_seeds(self.seed, epoch, index)
                index = index % len(self.data.source)
                yield Slots(epoch, number, self.data.table[bucket], num, index, seeds)
            if not self.endless:
                return
            epoch, step = epoch + 1, 0

    # Position -------------------------------------------------------------------------------------

    def restore(self, epoch: int, step: int, history: History) -> None:
        """Go to a position.

        Args:
            epoch: number of the epoch.
            step: batches of this run's sizes given out of it after those of the history.
            history: earlier batches of it, of other sizes, and how many.
        """
        self.close()
        self.epoch, self.history = epoch, history
        self.counts = {}
        self.skipped = self.planned(epoch)[2]
        self.step = self.skipped + step
        self.resumed_at = epoch * self.length + self.step

    def position(self) -> tuple[int, int, History]:
        """What `restore` takes to come back here."""
        return self.epoch, self.step - self.skipped, self.history

    def close(self) -> None:
        """Stop loading ahead."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    # Batches --------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        self.asked = time.perf_counter()
        if not self.endless:
            self.close()
            self.step = 0
        if self.stream is None:  # else go on with what was loaded ahead
            sharing = self.sharing
            self.stream = load_ahead(
                self.data.source, self.parts(), sharing.num_workers, sharing.executor, sharing.pin
            )
        for slots, batch in self.stream:
            if slots.epoch != self.epoch:
                self.epoch, self.history, self.skipped = slots.epoch, [], 0
            self.step = slots.step
            share = batch["weight"].new_full((slots.num,), self.share())
            self.step += 1
            self.given = time.perf_counter()
            yield batch | {"share": share}
            self.asked = time.perf_counter()
        self.stream = None

    def share(self) -> float:
        """Images in the next batch over the mean number in the batches that its optimizer step
        averages.

        It differs from 1 where batches are not full, where buckets have batches of different
        sizes, and where steps are not full: at the data's or the trainer's epoch's end.
        """
        number = self.epoch * self.length + self.step
        done = number % self.trainer_epoch
        first = done - done % self.accumulate
        last = min(first + self.accumulate, self.trainer_epoch)
        start = max(number - done + first, self.resumed_at)  # every checkpoint ends a step
        images = sum(self.images(batch) for batch in range(start, number - done + last))
        return self.accumulate * self.images(number) / images

    def images(self, number: int) -> int:
        """Images in a batch, numbered over all epochs."""
        epoch, step = divmod(number, self.length)
        if epoch not in self.counts:
            self.planned(epoch)
        return int(self.counts[epoch][step])
