from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelhdm.data.plan import EpochPlan, plan_epoch, sample_seeds

numbers = st.integers(0, 2**64 - 1)
GOLDEN = [
    [1279368494785126216, 1700482428262628912, 6432871004036475287],
    [3089262931397903863, 2784815459986059030, 8996094636605165085],
]


@st.composite
def bucketed(draw) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of samples in an epoch's order, and slots of a batch of each bucket."""
    slots = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    bucket = draw(st.lists(st.integers(0, len(slots) - 1), min_size=1, max_size=200))
    return np.array(bucket, dtype=np.int16), np.array(slots, dtype=np.int64)


def batches(plan: EpochPlan) -> list[list[int]]:
    return [plan.batch(step).tolist() for step in range(len(plan))]


@settings(deadline=None)
@given(bucketed())
def test_every_sample_comes_exactly_once_in_a_batch_of_its_bucket(case):
    bucket, slots = case
    plan = plan_epoch(bucket, slots)
    found = batches(plan)
    assert sorted(chain(*found)) == list(range(len(bucket)))
    for batch, of in zip(found, plan.bucket, strict=True):
        assert set(bucket[batch]) == {of}
        assert batch == sorted(batch)  # the epoch's order holds within a bucket


@settings(deadline=None)
@given(bucketed())
def test_only_the_last_batch_of_a_bucket_is_short(case):
    bucket, slots = case
    plan = plan_epoch(bucket, slots)
    for number, most in enumerate(slots):
        counts = plan.count[plan.bucket == number]
        have = (bucket == number).sum()
        assert len(counts) == -(-have // most)
        assert (counts[:-1] == most).all()
        assert counts.sum() == have


@settings(deadline=None)
@given(bucketed())
def test_a_batch_comes_when_the_order_reaches_its_last_sample(case):
    lasts = [batch[-1] for batch in batches(plan_epoch(*case))]
    assert lasts == sorted(lasts)


@settings(deadline=None)
@given(bucketed(), st.integers(0, 300))
def test_taken_are_the_samples_of_the_first_batches(case, steps):
    plan = plan_epoch(*case)
    steps = min(steps, len(plan))
    expected = chain(*batches(plan)[:steps])
    assert np.flatnonzero(plan.taken(steps)).tolist() == sorted(expected)


@settings(deadline=None)
@given(bucketed(), st.data())
def test_what_is_left_under_other_sizes_comes_once_in_at_most_as_many_batches(case, data):
    """A changed run goes on with the rest, twice."""
    bucket, slots = case
    left, seen = np.arange(len(bucket)), []
    for _ in range(3):
        plan = plan_epoch(bucket[left], slots)
        whole = plan_epoch(bucket, slots)
        assert len(plan) <= len(whole)
        steps = data.draw(st.integers(0, len(plan)))
        taken = plan.taken(steps)
        seen += left[taken].tolist()
        left = left[~taken]
        slots = np.array([data.draw(st.integers(1, 12)) for _ in slots], dtype=np.int64)
    assert sorted(seen + left.tolist()) == list(range(len(bucket)))


def test_seeds_are_distinct_over_seeds_epochs_and_samples():
    index = np.arange(1000)
    seeds = [sample_seeds(seed, epoch, index) for seed in range(10) for epoch in range(10)]
    flat = np.concatenate(seeds)
    assert flat.dtype == np.int64
    assert flat.min() >= 0
    assert len(np.unique(flat)) == len(flat)


def test_seeds_do_not_repeat_when_the_numbers_change_places():
    triples = [sample_seeds(a, b, np.arange(50)) for a in range(9) for b in range(9)]
    assert len(np.unique(triples)) == 9 * 9 * 50


@given(numbers, st.integers(0, 10**6), st.lists(st.integers(0, 10**9), min_size=1, max_size=5))
def test_seed_of_a_sample_does_not_depend_on_its_batch(seed, epoch, index):
    together = sample_seeds(seed, epoch, np.array(index))
    alone = [sample_seeds(seed, epoch, np.array([i]))[0] for i in index]
    assert together.tolist() == alone


def test_seeds_stay_what_they_are():
    """Golden: other values would change every resumed run."""
    assert sample_seeds(0, 0, np.arange(3)).tolist() == GOLDEN[0]
    assert sample_seeds(42, 7, np.array([0, 1796, 10**9])).tolist() == GOLDEN[1]


def reference(seed: int, epoch: int, index: int) -> int:
    """The same in Python's whole numbers."""
    mixed = 0
    for part in (seed, epoch, index):
        x = ((mixed ^ part) + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        mixed = x ^ x >> 31
    return mixed >> 1


@given(numbers, numbers, st.integers(0, 2**63 - 1))
def test_seeds_are_splitmix(seed, epoch, index):
    assert sample_seeds(seed, epoch, np.array([index])).tolist() == [reference(seed, epoch, index)]
