import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelhdm.errors import UserError
from pixelhdm.evaluation.moments import Moments
from tests.stubs import randn


def assert_close(moments: Moments, rows: torch.Tensor, rtol: float = 1e-12) -> None:
    rows = rows.double().numpy()
    scale = np.abs(rows - rows.mean(0)).max() ** 2
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=rtol, atol=rtol)
    cov = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(moments.cov.numpy(), cov, rtol=rtol, atol=rtol * scale)
    assert moments.num == len(rows)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=6), order=st.randoms(use_true_random=False))
def test_batches_of_any_size_in_any_order_give_numpys_moments(cuts, order):
    rows = randn(50, 5) * torch.tensor([1, 10, 0.1, 1, 100]) + 3
    edges = [0, *sorted(cuts), 50]
    parts = [rows[a:b] for a, b in itertools.pairwise(edges)]
    order.shuffle(parts)
    moments = Moments.empty(5)
    for part in parts[: len(parts) // 2]:
        moments.add(part)
    others = Moments.empty(5)
    for part in parts[len(parts) // 2 :]:
        others.add(part)
    assert_close(moments + others, rows)


def test_a_mean_far_from_zero_costs_no_digits():
    offset = 1e7
    rows = randn(3000, 4).double()
    moments = Moments.empty(4)
    for part in (rows + offset).split(100):
        moments.add(part)
    torch.testing.assert_close(moments.cov, Moments.of(rows).cov, rtol=1e-7, atol=1e-7)


def test_vectors_are_taken_out_again_exactly():
    rows = randn(300, 6) + 20
    rest = Moments.of(rows).without(Moments.of(rows[:120]))
    assert_close(rest, rows[120:])
    assert_close(rest + Moments.of(rows[:120]), rows)
    with pytest.raises(UserError, match=r"fewer vectors .* got 120"):
        Moments.of(rows[:120]).without(Moments.of(rows[:120]))


def test_the_sum_leaves_its_parts_alone():
    one, other = Moments.empty(3), Moments.of(randn(10, 3))
    total = one + other
    total.add(randn(5, 3))
    assert (one.num, other.num, total.num) == (0, 10, 15)
    assert_close(other, randn(10, 3))


def test_the_root_is_as_narrow_as_the_rank_and_follows_what_is_added():
    few = Moments.of(randn(4, 9))
    assert few.root().shape == (9, 3)
    torch.testing.assert_close(few.root() @ few.root().T, few.cov)
    few.add(randn(20, 9, seed=5))
    assert few.root().shape == (9, 9)
    torch.testing.assert_close(few.root() @ few.root().T, few.cov)


def test_what_is_no_number_is_refused():
    rows = randn(8, 3)
    rows[5, 1] = torch.nan
    with pytest.raises(UserError, match="features must be finite"):
        Moments.of(rows)


@pytest.mark.parametrize(
    ("cov", "words"),
    [
        (np.full((3, 3), np.inf), "be finite"),
        (-np.eye(3), "negative variances"),
        (np.array([[1, 2, 0], [2, 1, 0], [0, 0, 1.0]]), "negative variances"),
        (np.arange(9.0).reshape(3, 3), "symmetric"),
        (np.zeros((3, 3)), None),
        (np.cov(randn(3, 3).numpy(), rowvar=False).astype(np.float32), None),  # of rank 2
    ],
)
def test_a_matrix_that_is_no_covariance_has_a_flaw(cov, words):
    flaw = Moments.given(np.zeros(3), cov, 9).flaw()
    assert words in flaw if words else flaw == ""


def test_moments_of_unknown_number_are_neither_merged_nor_taken_apart():
    cov = np.array([[2.0, 0.5], [0.5, 1.0]])
    foreign = Moments.given(np.array([1.0, 2.0], np.float32), cov, None)
    np.testing.assert_array_equal(foreign.cov.numpy(), cov)
    for act in (lambda: foreign + foreign, lambda: foreign.without(Moments.of(randn(3, 2)))):
        with pytest.raises(UserError, match="must know of how many images"):
            act()
    known = Moments.given(np.zeros(2), cov, 9)
    torch.testing.assert_close(known.cov, torch.from_numpy(cov))


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        _ = Moments.of(randn(1, 3)).cov
