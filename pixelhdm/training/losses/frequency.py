"""The frequency loss: errors weighted as JPEG weighs them."""

import math

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pixelhdm.errors import UserError
from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowSample
from pixelhdm.training.losses.loss import LossTerm

SIDE = 8
# Rows and columns are vertical and horizontal frequencies (ITU-T T.81, Annex K, tables K.1, K.2).
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * SIDE for _ in range(4)),
)
# Full-range Y, Cb, Cr from R, G, B without the offset, which a difference does not have (ITU-T
# T.871, section 7).
YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


class FrequencyLoss(LossTerm):
    """JPEG-weighted squared error of the velocity's 8x8 block DCT in YCbCr (DeCo,
    arXiv:2511.19365).

    L = mean over blocks, colours and frequencies of w_c[u, v] DCT(v_pred - v)²[u, v], with w_c =
    (1/Q_c) / mean(1/Q_c) and Q_c the JPEG quantisation table at `quality`. DCT and colour are
    linear, so the whole term is |A e|² of an error block e of 8 x 8 x 3 numbers with one 192 x 192
    matrix A. Sides that are no multiple of 8 are continued by their last pixels.

    Args:
        weight: factor of the term in the total.
        quality: JPEG quality 1 … 100 that sets the tables; 85 is DeCo's, 100 weighs all
            frequencies alike.
    """

    name = "frequency"

    def __init__(self, weight: float = 1.0, quality: int = 90):
        super().__init__(weight)
        colour = torch.tensor(YCBCR, dtype=torch.float64)
        tables = [frequency_weights(base, quality) for base in (LUMINANCE, *[CHROMINANCE] * 2)]
        basis = dct_matrix(SIDE)
        matrix = einsum(
            torch.stack(tables).sqrt(), colour, basis, basis, "c u v, c k, u i, v j -> c u v i j k"
        )
        self.register_buffer(
            "matrix",
            rearrange(matrix, "c u v i j k -> (c u v) (i j k)").float(),
            persistent=False,
        )

    def forward(self, prediction: Prediction, sample: FlowSample) -> Float[Tensor, "B"]:
        error = blocks(prediction.output.float() - sample.v.float())
        with torch.autocast(error.device.type, enabled=False):
            return reduce(F.linear(error, self.matrix).square(), "b n f -> b", "mean")


def blocks(image: Float[Tensor, "B H W c"]) -> Float[Tensor, "B n block"]:
    """Cut into blocks of 8 x 8, row by row; features are ordered (row, column, channel)."""
    height, width = image.shape[1:3]
    if height % SIDE or width % SIDE:
        planes = rearrange(image, "b h w c -> b c h w")
        planes = F.pad(planes, (0, -width % SIDE, 0, -height % SIDE), mode="replicate")
        image = rearrange(planes, "b c h w -> b h w c")
    return rearrange(image, "b (h i) (w j) c -> b (h w) (i j c)", i=SIDE, j=SIDE)


def dct_matrix(side: int) -> Float[Tensor, "side side"]:
    """The orthonormal DCT-II: C x transforms a column x, C X C^T a block X.

    C[k, i] = sqrt(2 / n) cos(pi k (2 i + 1) / 2 n), its first row divided by sqrt(2).
    """
    k, i = (torch.arange(side, dtype=torch.float64) for _ in range(2))
    angle = math.pi * rearrange(k, "k -> k 1") * (2 * i + 1) / (2 * side)
    matrix = math.sqrt(2 / side) * angle.cos()
    matrix[0] /= math.sqrt(2)
    return matrix


def quantisation_table(base: tuple[tuple[int, ...], ...], quality: int) -> Float[Tensor, "8 8"]:
    """A JPEG table at a quality, as libjpeg scales it: clamp(floor((base s + 50) / 100), 1, 255).

    s = 5000 / quality below 50, 200 - 2 quality from 50 on.
    """
    if not 1 <= quality <= 100:
        raise UserError(f"quality must lie in 1 … 100, got {quality}.")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor(base, dtype=torch.float64)
    return ((table * scale + 50) / 100).floor().clamp(1, 255)


def frequency_weights(base: tuple[tuple[int, ...], ...], quality: int) -> Float[Tensor, "8 8"]:
    """Weights of the 64 frequencies, 1/Q with mean 1."""
    inverse = 1 / quantisation_table(base, quality)
    return inverse / inverse.mean()
