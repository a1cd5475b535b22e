import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pixelhdm.data.plan import PADDING, epoch_plan, sample_seeds

sizes = st.integers(1, 300)
batches = st.integers(1, 40)
numbers = st.integers(0, 2**64 - 1)
GOLDEN = [
    [1279368494785126216, 1700482428262628912, 6432871004036475287],
    [3089262931397903863, 2784815459986059030, 8996094636605165085],
]


@settings(deadline=None)
@given(sizes, batches, numbers, st.integers(0, 10**9), st.booleans())
def test_every_sample_comes_exactly_once(num, batch, seed, epoch, shuffle):
    plan = epoch_plan(num, batch, seed, epoch, shuffle)
    flat = plan.flatten()
    assert plan.shape == (-(-num // batch), batch)
    assert np.sort(flat[flat != PADDING]).tolist() == list(range(num))
    assert (flat[num:] == PADDING).all()  # at the end of the last batch alone
    assert (flat[:num] != PADDING).all()


@settings(deadline=None)
@given(sizes, st.integers(1, 8), st.integers(1, 5), numbers)
def test_processes_share_what_one_process_sees(num, batch, world, seed):
    """Twice the processes at half the batch size train on the same images in every step."""
    one = epoch_plan(num, batch * world, seed, 3, True)
    parts = [one[:, rank * batch : (rank + 1) * batch] for rank in range(world)]
    assert np.array_equal(np.concatenate(parts, axis=1), one)
    assert sum((part != PADDING).sum() for part in parts) == num


@settings(deadline=None)
@given(st.integers(20, 300), batches, numbers, st.integers(0, 10**6))
@example(50, 8, 2**63 + 1, 0)
def test_order_belongs_to_seed_and_epoch(num, batch, seed, epoch):
    plan = epoch_plan(num, batch, seed, epoch, True)
    assert np.array_equal(plan, epoch_plan(num, batch, seed, epoch, True))
    assert not np.array_equal(plan, epoch_plan(num, batch, seed, epoch + 1, True))
    assert not np.array_equal(plan, epoch_plan(num, batch, seed ^ 1, epoch, True))
    same_order = epoch_plan(num, batch + 1, seed, epoch, True).flatten()[:num]
    assert np.array_equal(plan.flatten()[:num], same_order)


def test_unshuffled_order_is_the_sources():
    for epoch in (0, 1):
        plan = epoch_plan(5, 2, 7, epoch, False)
        assert plan.tolist() == [[0, 1], [2, 3], [4, PADDING]]


def test_shuffling_is_uniform():
    firsts = [epoch_plan(4, 4, 0, epoch, True)[0] for epoch in range(2000)]
    counts = np.array([np.bincount(column, minlength=4) for column in np.transpose(firsts)])
    assert abs(counts - 500).max() < 100  # five standard deviations


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
