"""Guidance: how the predictions with and without the condition become one velocity."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.inference.samplers import Image, Velocity
from pixelhdm.models.conditioners.context import Context

Predict = Callable[[Image, Tensor, Context], Image]


class Guidance:
    """Classifier-free guidance u + scale (c - u), arXiv:2207.12598, eq. 6, on velocities.

    Both halves run in one batched call; at scale 1 the empty half is not computed.

    Args:
        scale: strength; 1 samples the learned distribution, larger values keep closer to the
            condition.
    """

    def __init__(self, scale: float = 1.0):
        if not math.isfinite(scale):
            raise UserError(f"scale must be a finite number, got {scale}.")
        self.scale = scale

    def at(self, scale: float | None) -> "Guidance":
        """The same guidance of another strength; None keeps it."""
        other = copy.copy(self)
        other.scale = self.scale if scale is None else scale
        return other

    def velocity(self, predict: Predict, context: Context, empty: Context) -> Velocity:
        """The guided velocity as a function of (z, t), with the contexts closed over."""
        if self.scale == 1:
            return lambda z, t: predict(z, t, context)
        both = context.cat(empty)

        def guided(z: Image, t: Tensor) -> Image:
            c, u = predict(torch.cat([z, z]), t, both).chunk(2)
            return u + self.scale * (c - u)

        return guided
