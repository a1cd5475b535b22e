import itertools
import operator
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelhdm.data.batches import Batch, Executor
from pixelhdm.data.loader import Bucketed, EpochLoader, Sharing
from pixelhdm.data.samplers import RandomPlan, SequentialPlan
from pixelhdm.data.source import ImageSource, Record
from tests.stubs import Numbers

NUM, BATCH = 23, 4
TENSORS = ("image", "condition", "weight", "seed", "index", "share")


def bucketed(source: ImageSource, table: Sequence[tuple[int, int]] = ((2, 2),)) -> Bucketed:
    """A source whose images go to the buckets of a table in turn."""
    bucket = np.arange(len(source)) % len(table)
    return Bucketed(source, list(table), bucket.astype(np.int16))


def loader(
    endless: bool = True,
    rank: int = 0,
    world: int = 1,
    threads: int = 0,
    batch: int = BATCH,
    executor: Executor = "thread",
) -> EpochLoader:
    plan = RandomPlan() if endless else SequentialPlan()
    sharing = Sharing(rank, world, threads, executor)
    return EpochLoader(bucketed(Numbers(NUM)), [batch], plan, 5, endless, sharing)


def take(of: EpochLoader, count: int) -> list[Batch]:
    """The next batches, over the ends of epochs, as a trainer takes them."""
    endless = itertools.chain.from_iterable(iter(of) for _ in itertools.count())
    return list(itertools.islice(endless, count))


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            same = torch.equal if isinstance(one[key], torch.Tensor) else operator.eq
            assert same(one[key], other[key])


def test_an_epoch_gives_every_image_once_with_its_own_label_and_seed():
    batches = take(loader(), len(loader()))
    assert len(batches) == len(loader()) == 6
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in TENSORS}
    real = whole["weight"] > 0
    assert whole["weight"].tolist() == [1.0] * 23 + [0.0]
    assert sorted(whole["index"][real].tolist()) == list(range(NUM))
    assert (whole["image"][:, 1, 1, 0] == whole["index"] % 251)[real].all()
    assert (whole["image"][:, 0, 0, 0] == whole["seed"] % 251)[real].all()
    assert (whole["image"][~real] == 0).all()
    assert (whole["condition"] == whole["index"] % 10)[real].all()
    assert len(whole["seed"][real].unique()) == NUM


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("done", range(14))
def test_resuming_at_any_position_gives_the_remaining_batches(done, threads):
    expected = take(loader(), 14)
    first = loader(threads=threads)
    assert_same(take(first, done), expected[:done])
    again = loader(threads=threads)
    again.restore(*first.position())
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
    batches = take(loader(), 12)
    first, second = (
        torch.cat([b["seed"][b["weight"] > 0] for b in batches[i : i + 6]]) for i in (0, 6)
    )
    assert not set(first.tolist()) & set(second.tolist())


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing_and_end(threads):
    expected, before = take(loader(), 9), set(threading.enumerate())
    first = loader(threads=threads)
    assert_same(take(first, 9), expected)  # broken off in the middle of an epoch
    own = set(threading.enumerate()) - before
    assert own
    first.close()
    for thread in own:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_step(world):
    whole = take(loader(batch=6), 4)
    parts = [take(loader(batch=6 // world, rank=rank, world=world), 4) for rank in range(world)]
    for step, batch in enumerate(whole):
        for key in TENSORS:
            joined = torch.cat([part[step][key] for part in parts])
            assert torch.equal(joined, batch[key])


def test_a_loader_that_does_not_shuffle_restarts_and_repeats_its_draws():
    val = loader(endless=False)
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
        def load(self, index: int, seed: int, height: int, width: int) -> Record:
            if index == 13:
                raise OSError("image 13")
            return Record(np.zeros((2, 2, 3), dtype=np.uint8), 0)

    with pytest.raises(OSError, match="image 13"):
        take(
            EpochLoader(
                bucketed(Broken(NUM)), [BATCH], RandomPlan(), 0, True, Sharing(num_workers=threads)
            ),
            6,
        )


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


@pytest.mark.parametrize("endless", [True, False])
def test_waiting_is_timed_from_asking_to_giving(monkeypatch, endless):
    class Clock:
        now = 0.0

    class Slow(Numbers):
        def load(self, index: int, seed: int, height: int, width: int) -> Record:
            Clock.now += 0.25
            return super().load(index, seed, height, width)

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    of = EpochLoader(bucketed(Slow(NUM)), [BATCH], SequentialPlan(), 5, endless, Sharing())
    batches = iter(of)
    for start in (7.0, 13.0, 19.0):
        Clock.now = start
        next(batches)
        assert (of.asked, of.given) == (start, start + BATCH * 0.25)


# Buckets --------------------------------------------------------------------------------------

TABLE = ((2, 2), (4, 2), (2, 6))


def of_buckets(
    sizes: Sequence[int], rank: int = 0, world: int = 1, num: int = 50, **sharing: object
) -> EpochLoader:
    source = Numbers(num, bad=(7, 11))
    data = bucketed(source, TABLE)
    data.bucket[5] = -1
    return EpochLoader(data, list(sizes), RandomPlan(), 3, True, Sharing(rank, world, **sharing))


def seen(batches: list[Batch]) -> list[int]:
    """Images of weight 1, and bad ones."""
    bad = [entry["index"] for batch in batches for entry in batch["bad"]]
    return sorted(bad + [int(i) for b in batches for i in b["index"][b["weight"] > 0]])


ALL = [number for number in range(50) if number != 5]


def test_each_batch_has_its_buckets_size_and_every_image_comes_once():
    of = of_buckets([4, 3, 2])
    batches = take(of, len(of))
    for batch in batches:
        size = tuple(batch["image"].shape[1:3])
        number = TABLE.index(size)
        assert len(batch["image"]) == of.batch_sizes[number]
        real = batch["index"][batch["weight"] > 0]
        assert (real % 3 == number).all()
    assert seen(batches) == ALL


def test_a_bad_sample_has_weight_zero_and_is_named():
    of = of_buckets([4, 3, 2])
    batches = take(of, len(of))
    found = {entry["index"]: entry for batch in batches for entry in batch["bad"]}
    assert found.keys() == {7, 11}
    assert found[7] == {"epoch": 0, "index": 7, "reason": "decode", "detail": "it is bad"}
    for batch in batches:
        for entry in batch["bad"]:
            slot = batch["index"].tolist().index(entry["index"])
            assert batch["weight"][slot] == 0
            assert (batch["image"][slot] == 0).all()


@pytest.mark.parametrize("world", [2, 4])
def test_processes_take_equal_steps_of_one_bucket(world):
    sizes = [8, 4, 4]
    whole = take(of_buckets(sizes), 10)
    parts = [
        take(of_buckets([size // world for size in sizes], rank, world), 10)
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        for key in TENSORS:
            joined = torch.cat([part[step][key] for part in parts])
            assert torch.equal(joined, batch[key])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 30)), min_size=2, max_size=4))
def test_with_batches_of_other_sizes_what_is_left_comes_once(changes):
    """Interrupted again and again, with other batch sizes each time, over an epoch's end too."""
    position, given_out = (0, 0, []), []
    for size, steps in changes:
        of = of_buckets([size, size + 1, max(1, size - 1)])
        epoch, step, history = position
        before = of_buckets(history[-1][0]) if history else None
        of.restore(epoch, step, history)
        assert of.step + len(of.planned(epoch)[1]) - step == len(of)
        batches = take(of, min(steps, len(of) - of.step)) if steps else []
        given_out += batches
        epoch, step, history = of.position()
        position = (epoch, 0, [*history, (of.slots.tolist(), step)])
        assert before is None or epoch == 0
    rest = of_buckets([5, 2, 3])
    rest.restore(*position)
    given_out += take(rest, len(rest) - rest.step)
    assert seen(given_out) == ALL
    assert seen(take(rest, len(rest))) == ALL  # the next epoch is whole again


def test_the_shares_of_a_step_add_up_over_buckets():
    of = of_buckets([4, 3, 2])
    of.accumulate = 3
    batches = take(of, 3 * len(of))
    for epoch in range(3):
        own = batches[epoch * len(of) : (epoch + 1) * len(of)]
        for start in range(0, len(of), 3):
            step = own[start : start + 3]
            shares = [batch["share"][0].item() for batch in step]
            images = [batch["weight"].sum().item() + len(batch["bad"]) for batch in step]
            expected = [3 * count / sum(images) for count in images]
            assert shares == pytest.approx(expected)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_the_executor_changes_nothing(executor):
    plain = take(of_buckets([4, 3, 2]), 14)
    ahead = of_buckets([4, 3, 2], num_workers=2, executor=executor)
    assert_same(take(ahead, 14), plain)
    ahead.close()


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_process_that_never_gets_an_image_keeps_in_step(executor):
    """Eight slots for each of two processes, six images: the second has none, for ever."""
    sharing = Sharing(1, 2, num_workers=1, executor=executor)
    of = EpochLoader(bucketed(Numbers(6)), [8], RandomPlan(), 0, True, sharing)
    batches = take(of, 5)
    of.close()
    assert all(not batch["weight"].any() for batch in batches)
    assert [tuple(batch["image"].shape) for batch in batches] == [(8, 2, 2, 3)] * 5
