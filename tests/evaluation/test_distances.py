import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from pixelhdm.errors import UserError
from pixelhdm.evaluation import distances
from pixelhdm.evaluation.distances import (
    cmmd,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from pixelhdm.evaluation.moments import Moments
from tests.stubs import randn


def pair(num: int = 200, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of correlated features that differ in mean and covariance."""
    mix = randn(dim, dim, seed=7) / dim**0.5
    return randn(num, dim) @ mix, 1.3 * randn(num + 40, dim, seed=9) @ mix.T + 0.4


def test_frechet_distance_of_independent_features_is_the_sum_of_theirs():
    means, spreads = randn(2, 6).numpy(), randn(2, 6, seed=5).abs().numpy()
    one, other = (Moments.given(m, np.diag(s**2), 9) for m, s in zip(means, spreads, strict=True))
    expected = ((means[0] - means[1]) ** 2 + (spreads[0] - spreads[1]) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_scipys_and_torch_fidelitys():
    a, b = (Moments.of(rows) for rows in pair())
    found = frechet_distance(a, b)
    product = scipy.linalg.sqrtm(a.cov.numpy() @ b.cov.numpy()).real
    shift = ((a.mean - b.mean) ** 2).sum().item()
    by_scipy = shift + (a.cov + b.cov).trace().item() - 2 * np.trace(product)
    stats = [{"mu": own.mean.numpy(), "sigma": own.cov.numpy()} for own in (a, b)]
    by_fidelity = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(by_scipy, rel=1e-9)
    assert found == pytest.approx(by_fidelity, rel=1e-9)


def test_frechet_distance_is_right_with_fewer_images_than_features():
    a, b = randn(20, 300).double(), 1.1 * randn(35, 300, seed=4).double() + 0.02
    # The trace of (S1 S2)^½ is the nuclear norm of the product of the centred features themselves.
    centred = [(own - own.mean(0)) / (len(own) - 1) ** 0.5 for own in (a, b)]
    shared = torch.linalg.matrix_norm(centred[0] @ centred[1].T, "nuc")
    spreads = sum(own.square().sum() for own in centred)
    expected = (a.mean(0) - b.mean(0)).square().sum() + spreads - 2 * shared
    found = frechet_distance(Moments.of(a), Moments.of(b))
    assert found == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("num", [15, 400])
def test_frechet_distance_is_a_distance(num):
    rows, others = pair(num, 30)
    a, b = Moments.of(rows), Moments.of(others)
    found = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(found, rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8 * found)
    turn = torch.linalg.qr(randn(30, 30, seed=8).double()).Q
    moved = [Moments.of(3 * (own.double() @ turn) + 5) for own in (rows, others)]
    assert frechet_distance(*moved) == pytest.approx(9 * found, rel=1e-9)


def test_features_of_different_extractors_have_no_distance():
    with pytest.raises(UserError, match="one width, got 3 and 4"):
        frechet_distance(Moments.of(randn(9, 3)), Moments.of(randn(9, 4)))


def test_cmmd_is_the_published_estimate(monkeypatch):
    rows, others = (own / own.norm(dim=1, keepdim=True) for own in pair(90, 16))
    x, y = rows.double().numpy(), others.double().numpy()

    def mean(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 200).mean()

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(rows, others) == pytest.approx(expected, rel=1e-9)
    assert cmmd(rows, rows) == 0
    monkeypatch.setattr(distances, "ROWS", 7)
    assert cmmd(rows, others) == pytest.approx(expected, rel=1e-9)


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """The squared discrepancy with the kernel of KID, written out."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    same = [
        (kernel(own, own).sum() - np.trace(kernel(own, own))) / (len(own) * (len(own) - 1))
        for own in (x, y)
    ]
    return sum(same) - 2 * kernel(x, y).mean()


def test_kid_is_the_mean_unbiased_estimate_of_subsets_of_half_of_few_images():
    rows, others = (own.double().numpy() for own in (pair()[0][:60], pair()[1][:40]))
    found = kernel_distance(torch.from_numpy(rows), torch.from_numpy(others))
    rng = np.random.RandomState(2020)  # torch-fidelity's
    parts = []
    for _ in range(100):
        own, other = (rng.choice(len(part), 20, replace=False) for part in (rows, others))
        parts.append(unbiased(rows[own], others[other]))
    assert found.value == pytest.approx(np.mean(parts), rel=1e-9)
    assert found.error == pytest.approx(np.std(parts), rel=1e-9)


def test_kid_of_subsets_spreads_around_the_estimate_of_all(monkeypatch):
    monkeypatch.setattr(distances, "SUBSET", 60)
    rows, others = pair()
    found = kernel_distance(rows, others)
    expected = unbiased(rows.double().numpy(), others[:200].double().numpy())
    assert found.error > 0
    assert found.value == pytest.approx(expected, abs=3 * found.error)


def test_the_inception_score_is_1_for_one_answer_and_the_number_of_classes_for_sure_ones():
    assert inception_score(randn(1, 7).repeat(100, 1)).value == pytest.approx(1)
    sure = 100 * torch.eye(5).repeat(400, 1)
    assert inception_score(sure).value == pytest.approx(5, rel=0.02)


def test_the_inception_score_is_its_formula(monkeypatch):
    monkeypatch.setattr(distances, "NUM_SPLITS", 1)
    logits = 2 * randn(80, 6)
    p = scipy.special.softmax(logits.double().numpy(), axis=1)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert inception_score(logits).value == pytest.approx(expected, rel=1e-9)


def test_precision_and_recall_are_those_of_the_balls_around_each_image(monkeypatch):
    monkeypatch.setattr(distances, "ROWS", 64)
    drawn, real = randn(90, 3), 1.5 * randn(140, 3, seed=6)

    def inside(points, centres):
        between = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        radius = np.sort(between, axis=1)[:, 3]
        return (np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radius).any(1).mean()

    x, y = drawn.double().numpy(), real.double().numpy()
    expected = inside(x, y), inside(y, x)
    assert precision_recall(drawn, real) == pytest.approx(expected, abs=1e-6)
    assert expected[0] != expected[1]
    assert precision_recall(drawn, real + 100) == (0, 0)


def test_without_torch_fidelity_a_person_is_told_to_install_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="torch_fidelity")

    monkeypatch.setattr(distances.importlib, "import_module", missing)
    with pytest.raises(UserError, match="pip install torch-fidelity"):
        inception_score(randn(20, 3))
