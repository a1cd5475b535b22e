import itertools
import threading
import time

import numpy as np
import pytest
import torch

from pixelhdm.data.loader import Batch, EpochLoader
from pixelhdm.data.source import Record
from tests.stubs import Numbers

NUM, BATCH = 23, 4


def loader(
    shuffle: bool = True, rank: int = 0, world: int = 1, threads: int = 0, batch: int = BATCH
) -> EpochLoader:
    return EpochLoader(Numbers(NUM), batch, 5, shuffle, rank, world, threads)


def take(of: EpochLoader, count: int) -> list[Batch]:
    """The next batches, over the ends of epochs, as a trainer takes them."""
    endless = itertools.chain.from_iterable(iter(of) for _ in itertools.count())
    return list(itertools.islice(endless, count))


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_epoch_gives_every_image_once_with_its_own_label_and_seed():
    batches = take(loader(), len(loader()))
    assert len(batches) == len(loader()) == 6
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    real = whole["weight"] > 0
    assert whole["weight"].tolist() == [1.0] * 23 + [0.0]
    assert sorted(whole["index"][real].tolist()) == list(range(NUM))
    assert (whole["image"][:, 1, 1, 0] == whole["index"] % 251).all()
    assert (whole["image"][:, 0, 0, 0] == whole["seed"] % 251).all()
    assert (whole["condition"] == whole["index"] % 10).all()
    assert len(whole["seed"][real].unique()) == NUM


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("done", range(14))
def test_resuming_at_any_position_gives_the_remaining_batches(done, threads):
    expected = take(loader(), 14)
    first = loader(threads=threads)
    assert_same(take(first, done), expected[:done])
    again = loader(threads=threads)
    again.epoch, again.step = first.epoch, first.step
    assert_same(take(again, 14 - done), expected[done:])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("part", [2, 3, 4, 5, 6])
def test_a_step_averages_over_its_images_wherever_the_trainers_epoch_ends(accumulate, part):
    """In each step the shares weigh the batches' means by their images; steps end where the
    trainer's epoch ends, which may be anywhere in the data's.
    """
    ours = loader()
    ours.accumulate, ours.trainer_epoch = accumulate, part
    batches = take(ours, 4 * part)
    for epoch in range(4):
        own = batches[part * epoch : part * (epoch + 1)]
        for start in range(0, part, accumulate):
            step = own[start : start + accumulate]
            images = [batch["weight"].sum() for batch in step]
            for batch, count in zip(step, images, strict=True):
                expected = torch.full((BATCH,), accumulate * count / sum(images))
                torch.testing.assert_close(batch["share"], expected)


def test_epochs_differ_in_order_and_in_seeds():
    first, second = (torch.cat([b["seed"] for b in take(loader(), 12)[i : i + 6]]) for i in (0, 6))
    assert not set(first.tolist()) & set(second.tolist())


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing_and_end(threads):
    before = threading.active_count()
    assert_same(take(loader(threads=threads), 9), take(loader(), 9))
    broken_off = iter(loader(threads=threads))
    next(broken_off)
    broken_off.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_step(world):
    whole = take(loader(batch=6), 4)
    parts = [take(loader(batch=6 // world, rank=rank, world=world), 4) for rank in range(world)]
    for step, batch in enumerate(whole):
        joined = {key: torch.cat([part[step][key] for part in parts]) for key in batch}
        assert_same([joined], [batch])


def test_a_loader_that_does_not_shuffle_restarts_and_repeats_its_draws():
    val = loader(shuffle=False)
    first = list(val)
    next(iter(val))
    assert_same(list(val), first)
    index = torch.cat([batch["index"] for batch in first])
    assert index.tolist() == [*range(NUM), 0]


def test_state_counts_batches_that_were_given_out():
    one = loader(threads=2)
    batches = iter(one)
    for count in range(1, 7):
        next(batches)
        assert (one.epoch, one.step) == (0, count)
    next(iter(one))
    assert (one.epoch, one.step) == (1, 1)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_while_loading_is_passed_on(threads):
    class Broken(Numbers):
        def load(self, index: int, seed: int) -> Record:
            if index == 13:
                raise OSError("image 13")
            return Record(np.zeros((2, 2, 3), dtype=np.uint8), 0)

    with pytest.raises(OSError, match="image 13"):
        list(EpochLoader(Broken(NUM), BATCH, 0, True, 0, 1, threads))


@pytest.mark.parametrize("accumulate", [1, 2, 4, 9])
def test_shares_make_accumulated_batches_count_by_their_images(accumulate):
    """Mean over a step's batches of share times the batch's mean = the mean over its images."""
    of = loader()
    of.accumulate = accumulate
    batches = take(of, 12)  # two epochs of 6 batches, the last of each with 3 images of 4
    for epoch in (batches[:6], batches[6:]):
        for start in range(0, 6, accumulate):
            parts = epoch[start : start + accumulate]
            means = [part["index"][part["weight"] > 0].double().mean() for part in parts]
            shares = [part["share"][0].double() for part in parts]
            step = sum(s * m for s, m in zip(shares, means, strict=True)) / accumulate
            whole = torch.cat([part["index"][part["weight"] > 0] for part in parts])
            assert step.item() == pytest.approx(whole.double().mean().item(), rel=1e-6)


@pytest.mark.parametrize("shuffle", [True, False])
def test_waiting_is_timed_from_asking_to_giving(monkeypatch, shuffle):
    class Clock:
        now = 0.0

    class Slow(Numbers):
        def load(self, index: int, seed: int) -> Record:
            Clock.now += 0.25
            return super().load(index, seed)

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    of = EpochLoader(Slow(NUM), BATCH, 5, shuffle, 0, 1, 0)
    batches = iter(of)
    for start in (7.0, 13.0, 19.0):
        Clock.now = start
        next(batches)
        assert (of.asked, of.given) == (start, start + BATCH * 0.25)
