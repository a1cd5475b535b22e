"""Guidance: how two predictions become one velocity that keeps closer to the condition."""

import copy
import math
from collections.abc import Callable
from numbers import Real
from typing import Literal

import torch

from pixelhdm.checkpoints import Weights
from pixelhdm.errors import UserError, check_one_of
from pixelhdm.inference.model import Model
from pixelhdm.inference.samplers import Image, Velocity
from pixelhdm.inference.weaker import Weaker
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.network import Network
from pixelhdm.training.draws import SeededRoutes

Embed = Callable[[Conditioner], Context]
ScaleSchedule = Literal["constant", "linear", "cosine", "quadratic"]
RESCALE_EPS = 1e-8


class Guidance:
    """Classifier-free guidance u + g (c - u), arXiv:2207.12598, eq. 6, on velocities.

    c is the prediction with the condition, u the one without, or with the negative prompt. Both run
    in one batched call; where g is 1, as outside of the interval, u is not computed. With `weak`, u
    is the weaker model's prediction with the condition (autoguidance, arXiv:2406.02507, eq. 3).

    With `routed`, u is the network's own prediction with the condition, some tokens of which go
    around the blocks in the middle as in training (Sparse Guidance, arXiv:2601.01608): for networks
    trained so, which answer weakly to the empty condition. Which tokens, is drawn anew in each call
    from the image's seed, so that no place of the image is guided less than others. It is a call of
    its own, cheaper than c's.

    Args:
        scale: g; 1 samples the learned distribution, larger values keep closer to the condition.
        schedule: how g goes from scale at t = 0, noise, to end_scale at t = 1, the image: constant
            stays; linear in t; cosine with (1 + cos(pi t)) / 2; quadratic in t^2.
        end_scale: g at t = 1; not used by constant.
        interval: times [from, to] with guidance (arXiv:2404.07724); outside of them g is 1.
        rescale: 0 … 1, how far the guided velocity gets the standard deviation of c, image by image
            (arXiv:2305.08891, eq. 15-16); against glaring colours at large scales.
        weak: checkpoint of a weaker model with the same config, such as an earlier one of the run,
            or the folder of an exported one, which may have another network.
        weak_weights: which weights of that checkpoint: ema or raw.
        routed: whether u takes the route of the network's `routing`.
    """

    def __init__(
        self,
        scale: float = 1.0,
        schedule: ScaleSchedule = "constant",
        end_scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        rescale: float = 0.0,
        weak: str | None = None,
        weak_weights: Weights = "ema",
        routed: bool = False,
    ):
        check_one_of(ScaleSchedule, schedule=schedule)
        check_one_of(Weights, weak_weights=weak_weights)
        for name, value in (("scale", scale), ("end_scale", end_scale)):
            if not math.isfinite(value):
                raise UserError(f"{name} must be a finite number, got {value}.")
        if not 0 <= interval[0] < interval[1] <= 1:
            raise UserError(
                f"interval must be two rising times in 0 … 1, noise to image, got {interval}."
            )
        if not 0 <= rescale <= 1:
            raise UserError(f"rescale must lie in 0 … 1, got {rescale}.")
        if routed and weak is not None:
            raise UserError(
                f"guidance.weak must be empty beside guidance.routed, got {weak}. Both take the "
                "place of the empty condition; leave out one."
            )
        self.scale, self.schedule, self.end_scale = scale, schedule, end_scale
        self.interval, self.rescale = interval, rescale
        self.weaker = None if weak is None else Weaker(weak, weak_weights)
        self.routed = routed

    def at(self, scale: float | None) -> "Guidance":
        """The same guidance of another strength; None keeps it."""
        if scale is not None and not (isinstance(scale, Real) and math.isfinite(scale)):
            raise UserError(f"scale must be a finite number, got {scale!r}.")
        other = copy.copy(self)
        other.scale = self.scale if scale is None else scale
        return other

    @property
    def is_off(self) -> bool:
        """Whether g is 1 at all times."""
        return self.scale == 1 and (self.schedule == "constant" or self.end_scale == 1)

    @property
    def idle_negative(self) -> str | None:
        """Why a negative prompt has no effect, and what helps; None where it has one."""
        if self.is_off:
            return "at guidance scale 1. Raise it, or leave the negative prompt out"
        if self.weaker is not None:
            return "beside a weaker model, which takes its place. Leave one of both out"
        if self.routed:
            return "beside routed guidance, which takes its place. Leave one of both out"
        return None

    def scale_at(self, t: float) -> float:
        """g at a time."""
        if not self.interval[0] <= t <= self.interval[1]:
            return 1.0
        left = {
            "constant": 1.0,
            "linear": 1 - t,
            "cosine": (1 + math.cos(math.pi * t)) / 2,
            "quadratic": 1 - t**2,
        }[self.schedule]
        return left * self.scale + (1 - left) * self.end_scale

    def check_routes(self, network: Network, height: int, width: int) -> None:
        """Raise a UserError where the network has no route that guidance asks for."""
        if self.is_off or not self.routed or network.num_kept(height, width) is not None:
            return
        if network.routing is None:
            raise UserError(
                "guidance.routed must be false for a network without routing, got true. Set "
                "model.network.init_args.routing as it was trained, or guidance.routed to false."
            )
        num, least = height * width // network.patch_size**2, network.routing.min_tokens
        raise UserError(
            f"guidance.routed must be false for images of {height}x{width}, whose {num} tokens are "
            f"fewer than min_tokens={least} of the routing, got true. Draw larger ones."
        )

    def velocity(self, model: Model, given: Embed, away: Embed, seeds: list[int]) -> Velocity:
        """The guided velocity as a function of (z, t).

        `given` and `away` make a conditioner's contexts of c and u; `away` is not called where it
        is not needed. `seeds` are the images', for their routes.
        """
        context = given(model.conditioner)
        if self.is_off:
            return lambda z, t: model.velocity(z, t, context)
        if self.routed:
            routes = SeededRoutes(seeds)

            def pair(z: Image, t: float) -> tuple[Image, Image]:
                size = z.shape[1:3]
                self.check_routes(model.network, *size)
                around = context._replace(route=routes.fresh(model.network, *size, z.device))
                return model.velocity(z, t, context), model.velocity(z, t, around)
        elif self.weaker is None:
            both = context.cat(away(model.conditioner))

            def pair(z: Image, t: float) -> tuple[Image, Image]:
                c, u = model.velocity(torch.cat([z, z]), t, both).chunk(2)
                return c, u
        else:
            weak = self.weaker.model_like(model)
            weak_context = given(weak.conditioner)

            def pair(z: Image, t: float) -> tuple[Image, Image]:
                return model.velocity(z, t, context), weak.velocity(z, t, weak_context)

        def guided(z: Image, t: float) -> Image:
            scale = self.scale_at(t)
            if scale == 1:
                return model.velocity(z, t, context)
            c, u = pair(z, t)
            return self.rescaled(u + scale * (c - u), c)

        return guided

    def rescaled(self, guided: Image, c: Image) -> Image:
        """With the spread of c, as far as rescale asks for it."""
        if self.rescale == 0:
            return guided
        spread, wanted = (image.std(dim=(1, 2, 3), keepdim=True) for image in (guided, c))
        return guided * (self.rescale * wanted / (spread + RESCALE_EPS) + 1 - self.rescale)
