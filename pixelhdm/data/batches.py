"""From samples to batches of tensors, in this thread, in others, or in other processes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pixelhdm.data.source import BadSample, ImageSource
from pixelhdm.errors import UserError
from pixelhdm.processes import start_helper

Executor = Literal["thread", "process"]
Batch = dict[str, Any]


@dataclass
class Slots:
    """One process's part of a batch, before anything of it is read.

    Attributes:
        epoch: which epoch the batch belongs to.
        step: its number in the epoch.
        size: height and width of its images in pixels.
        num: images of a full batch.
        index: the samples; where there are fewer than `num`, the rest of the slots stay empty.
        seeds: a seed for each sample.
    """

    epoch: int
    step: int
    size: tuple[int, int]
    num: int
    index: Int64[np.ndarray, "n"]
    seeds: Int64[np.ndarray, "n"]


@dataclass
class Filling:
    """A batch while its slots are filled; those that stay empty, or whose sample is bad, are black
    images of weight 0.
    """

    source: ImageSource
    slots: Slots
    pin: bool = False
    bad: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num, (height, width) = self.slots.num, self.slots.size
        self.image = torch.empty(num, height, width, 3, dtype=torch.uint8, pin_memory=self.pin)
        self.pixels = self.image.numpy()
        self.pixels[len(self.slots.index) :] = 0
        self.condition: list[int | str | Tensor] = [self.source.empty] * num
        self.weight = np.zeros(num, dtype=np.float32)

    def fill(self, slot: int) -> None:
        """Read the sample of one slot; any thread may."""
        index, seed = int(self.slots.index[slot]), int(self.slots.seeds[slot])
        try:
            record = self.source.load(index, seed, *self.slots.size)
        except BadSample as bad:
            self.pixels[slot] = 0
            reason = {"reason": bad.reason, "detail": bad.detail}
            self.bad[slot] = {"epoch": self.slots.epoch, **self.source.place(index), **reason}
            return
        np.copyto(self.pixels[slot], record.image)
        self.condition[slot], self.weight[slot] = record.condition, 1.0

    def batch(self) -> Batch:
        """The batch: image uint8 B H W 3; condition, class numbers B or B captions or their
        states; weight, seed and index, each B; bad, what is known of its bad samples.
        """
        empty = self.slots.num - len(self.slots.index)
        numbers = isinstance(self.source.empty, int)
        return {
            "image": self.image,
            "condition": torch.tensor(self.condition) if numbers else self.condition,
            "weight": torch.from_numpy(self.weight),
            "seed": torch.from_numpy(np.pad(self.slots.seeds, (0, empty))),
            "index": torch.from_numpy(np.pad(self.slots.index, (0, empty))),
            "bad": [self.bad[slot] for slot in sorted(self.bad)],
        }


def load_ahead(
    source: ImageSource, parts: Iterator[Slots], num_workers: int, executor: Executor, pin: bool
) -> Iterator[tuple[Slots, Batch]]:
    """The batches of `parts` in order, some of them loaded ahead of time.

    Args:
        source: an opened source.
        parts: what to load.
        num_workers: threads or processes; 0 loads in this thread, when asked.
        executor: which of them. Threads fill the slots of a batch side by side; processes a batch
            each.
        pin: whether images lie in page-locked memory, which a GPU copies from without waiting.
    """
    if not num_workers:
        for slots in parts:
            yield slots, load_batch(source, slots, pin)
    elif executor == "thread":
        yield from by_threads(source, parts, num_workers, pin)
    else:
        yield from by_processes(source, parts, num_workers, pin)


def load_batch(source: ImageSource, slots: Slots, pin: bool = False) -> Batch:
    """One batch, sample after sample."""
    filling = Filling(source, slots, pin)
    for slot in range(len(slots.index)):
        filling.fill(slot)
    return filling.batch()


def by_threads(
    source: ImageSource, parts: Iterator[Slots], num_workers: int, pin: bool
) -> Iterator[tuple[Slots, Batch]]:
    """Keep twice as many samples as threads in work beyond the next batch, one batch at least and
    no more than twice as many batches as threads.
    """
    waiting: deque[tuple[Filling, list[Future]]] = deque()

    def finished() -> tuple[Slots, Batch]:
        filling, futures = waiting.popleft()
        for future in futures:
            future.result()
        return filling.slots, filling.batch()

    def is_enough() -> bool:
        samples = sum(len(later) for _, later in list(waiting)[1:])
        return samples >= 2 * num_workers or len(waiting) > 2 * num_workers

    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="load")
    try:
        for slots in parts:
            filling = Filling(source, slots, pin)
            futures = [pool.submit(filling.fill, slot) for slot in range(len(slots.index))]
            waiting.append((filling, futures))
            while is_enough():
                yield finished()
        while waiting:
            yield finished()
    finally:
        # Without waiting: a read may wait for a server, and a generator that was left alone is
        # closed where garbage is collected, in a thread that might have to wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)


def by_processes(
    source: ImageSource, parts: Iterator[Slots], num_workers: int, pin: bool
) -> Iterator[tuple[Slots, Batch]]:
    """Keep two batches a process in work.

    Raises:
        UserError: a process was killed.
    """
    waiting: deque[tuple[Slots, Future]] = deque()

    def finished() -> tuple[Slots, Batch]:
        slots, future = waiting.popleft()
        batch = unpacked(future.result())
        return slots, {
            name: value.pin_memory() if pin and isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    context = torch.multiprocessing.get_context("spawn")  # decoders' and clients' threads may run
    pool = ProcessPoolExecutor(num_workers, context, initializer=adopt, initargs=(source,))
    try:
        for slots in parts:
            waiting.append((slots, pool.submit(load_adopted, slots)))
            if len(waiting) > 2 * num_workers:
                yield finished()
        while waiting:
            yield finished()
    except BrokenProcessPool as error:
        raise UserError(
            "processes that load images must live as long as the run, got one that was killed, by "
            "a lack of memory as a rule. Set data.num_workers lower, or data.executor to thread."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


adopted: list[ImageSource] = []


def adopt(source: ImageSource) -> None:
    """Take the source that this process loads from."""
    start_helper()
    adopted[:] = [source]


def load_adopted(slots: Slots) -> Batch:
    """One batch of the source that this process has taken."""
    return packed(load_batch(adopted[0], slots))


def packed(batch: Batch) -> Batch:
    """A batch whose states are one tensor, for each tensor on its way between processes takes an
    open file.
    """
    condition = batch["condition"]
    states = [own for own in condition if isinstance(own, Tensor)]
    if isinstance(condition, Tensor) or not states:
        return batch
    lengths = [len(own) if isinstance(own, Tensor) else own for own in condition]
    return batch | {"condition": lengths, "states": torch.cat(states)}


def unpacked(batch: Batch) -> Batch:
    """The batch that was packed."""
    states = batch.pop("states", None)
    if states is not None:
        lengths = [own for own in batch["condition"] if isinstance(own, int)]
        each = iter(states.split(lengths))
        batch["condition"] = [
            next(each) if isinstance(own, int) else own for own in batch["condition"]
        ]
    return batch
