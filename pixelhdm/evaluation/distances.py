"""Numbers that compare two sets of features.

KID, inception score, precision and recall are torch-fidelity's own functions on our features, in
float64.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.evaluation.moments import Moments

SIGMA, SCALE = 10.0, 1000.0  # of CMMD
ROWS = 2048  # images whose kernel values or distances are in memory at once, times all others
NUM_SUBSETS, SUBSET = 100, 1000  # of KID: how many, and of how many images at most
NUM_SPLITS = 10  # of the inception score
NEIGHBOURS = 3  # of precision and recall


class Spread(NamedTuple):
    """A number that was found several times, on parts of the images.

    Attributes:
        value: its mean.
        error: its standard deviation; None where there is only one part.
    """

    value: float
    error: float | None


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), of two normal distributions (arXiv:1706.08500,
    equation 6).

    With Σ = A·Aᵀ the trace of (Σ₁Σ₂)^½ is the sum of the singular values of A₁ᵀ·A₂, which are real
    and not negative also where fewer images than features make the covariances singular.

    Raises:
        UserError: the features have different widths.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"features must have one width, got {len(a.mean)} and {len(b.mean)}. "
            "They are of different extractors."
        )
    shift = (a.mean - b.mean).square().sum()
    shared = torch.linalg.svdvals(a.root().T @ b.root()).sum()
    distance = shift + a.cov.trace() + b.cov.trace() - 2 * shared
    return max(distance.item(), 0.0)  # rounding may leave equal ones a little below


def cmmd(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """1000 times the squared maximum mean discrepancy of CLIP embeddings, with the kernel
    exp(-|x - y|² / 2σ²), σ = 10 (arXiv:2401.09603, equations 4 and 5).

    As google-research/cmmd computes it: the biased estimate, pairs of an image with itself
    included, which is above 0 for two samples of one distribution. In float64: the kernel is so
    wide that all its values lie near 1, and float32 would keep three digits of their difference.
    """
    within = mean_kernel(a, a) + mean_kernel(b, b)
    return SCALE * (within - 2 * mean_kernel(a, b))


def mean_kernel(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """Mean of exp(-|x - y|² / 2σ²) - 1 over all pairs, in blocks; the 1 drops out of CMMD."""
    others = b.double()
    total = 0.0
    for rows in a.split(ROWS):
        squares = torch.cdist(rows.double(), others).square_()
        total += torch.expm1(squares.div_(-2 * SIGMA**2)).sum().item()
    return total / (len(a) * len(b))


def kernel_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> Spread:
    """KID: the unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³, mean and
    deviation over 100 pairs of random subsets of 1000 images (arXiv:1801.01401, section 4).

    A subset is half of the images at most: were it all of them, the deviation would tell of the
    other side's choice alone, or nothing. It is above that of the mean.
    """
    found = fidelity("metric_kid").kid_features_to_metric(
        a.double(),
        b.double(),
        kid_subsets=NUM_SUBSETS,
        kid_subset_size=min(SUBSET, len(a) // 2, len(b) // 2),
        verbose=False,
    )
    mean, deviation = (found[f"kernel_inception_distance_{own}"] for own in ("mean", "std"))
    return Spread(mean, deviation)


def inception_score(logits: Float[Tensor, "N C"]) -> Spread:
    """exp E KL(p(y|x) ‖ p(y)), mean and deviation over 10 parts of the shuffled images
    (arXiv:1606.03498, section 4).
    """
    found = fidelity("metric_isc").isc_features_to_metric(logits.double(), splits=NUM_SPLITS)
    return Spread(found["inception_score_mean"], found["inception_score_std"])


def precision_recall(
    drawn: Float[Tensor, "N D"], real: Float[Tensor, "M D"]
) -> tuple[float, float]:
    """Share of drawn images within the real ones' manifold, and of real ones within the drawn's;
    a manifold is balls that reach each image's third neighbour (arXiv:1904.06991, equations 1-3).
    """
    found = fidelity("metric_prc").prc_features_to_metric(
        drawn.double(),
        real.double(),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return found["precision"], found["recall"]


def fidelity(name: str) -> ModuleType:
    """A module of torch-fidelity, imported when it is first needed: that takes seconds.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(f"torch_fidelity.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch_fidelity":
            raise
        raise UserError(
            "torch-fidelity must be installed for these scores, got none. "
            "pip install torch-fidelity"
        ) from error
