from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelhdm.data.samplers import (
    BufferedShufflePlan,
    RandomPlan,
    SequentialPlan,
    generator,
    jittered,
    runs,
)
from pixelhdm.errors import UserError

seeds = st.integers(0, 2**64 - 1)
PLANS = [SequentialPlan(), RandomPlan(), BufferedShufflePlan(), BufferedShufflePlan(5)]


def shards_of(lengths: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(lengths)), lengths).astype(np.uint32)


@pytest.mark.parametrize("plan", PLANS, ids=repr)
@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), seed=seeds)
def test_every_position_comes_exactly_once(plan, lengths, seed):
    shard = shards_of(lengths)
    order = plan.order(shard, len(shard), seed, 3)
    assert np.sort(order).tolist() == list(range(len(shard)))
    assert np.array_equal(order, plan.order(shard, len(shard), seed, 3))


@pytest.mark.parametrize("plan", PLANS[1:], ids=repr)
def test_order_belongs_to_seed_and_epoch(plan):
    shard = shards_of([20] * 10)
    orders = [plan.order(shard, 200, seed, epoch).tolist() for seed in (1, 2) for epoch in (1, 2)]
    assert len(set(map(tuple, orders))) == 4


def test_sequential_is_the_same_in_every_epoch():
    assert SequentialPlan().order(None, 4, 7, 3).tolist() == [0, 1, 2, 3]


def test_random_is_uniform():
    firsts = [RandomPlan().order(None, 4, 0, epoch) for epoch in range(2000)]
    counts = np.array([np.bincount(column, minlength=4) for column in np.transpose(firsts)])
    assert abs(counts - 500).max() < 100  # five standard deviations


@settings(deadline=None)
@given(num=st.integers(1, 200), window=st.integers(0, 60), seed=seeds)
def test_jitter_moves_nothing_further_than_its_window(num, window, seed):
    order = jittered(num, window, generator(seed, 0))
    assert np.abs(np.argsort(order) - np.arange(num)).max() <= window


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.randoms())
def test_runs_stay_whole_in_another_order(lengths, random):
    order = np.array(random.sample(range(len(lengths)), len(lengths)))
    ends = np.cumsum(lengths)
    parts = [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    expected = list(chain(*(parts[number] for number in order)))
    assert runs(ends - lengths, int(ends[-1]), order).tolist() == expected


def test_a_buffer_reads_few_shards_at_a_time_and_still_mixes():
    """100 shards of 100: a batch of 100 sees far fewer shards than a random one, yet several."""
    shard = shards_of([100] * 100)
    seen = {}
    for plan in (RandomPlan(), BufferedShufflePlan(1000), SequentialPlan()):
        order = plan.order(shard, 10_000, 0, 0)
        parts = [len(set(part)) for part in shard[order].reshape(-1, 100)]
        seen[type(plan).__name__] = np.mean(parts)
    assert seen["SequentialPlan"] == 1
    assert 6 < seen["BufferedShufflePlan"] < 13
    assert seen["RandomPlan"] > 55


def test_a_buffer_shuffles_shards():
    shard = shards_of([10] * 50)
    order = BufferedShufflePlan(1).order(shard, 500, 0, 0)
    visited = list(dict.fromkeys(shard[order].tolist()))
    assert sorted(visited) == list(range(50))
    assert visited != sorted(visited)


def test_one_shard_or_a_window_of_all_is_a_permutation():
    for plan, shard in (
        (BufferedShufflePlan(), None),
        (BufferedShufflePlan(10**9), shards_of([50, 50])),
    ):
        order = plan.order(shard, 100, 0, 0)
        assert np.abs(order - np.arange(100)).max() > 50


def test_wrong_window():
    with pytest.raises(UserError, match="window must be at least 1, got 0"):
        BufferedShufflePlan(0)
