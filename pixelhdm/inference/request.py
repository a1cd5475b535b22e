"""What is to be drawn."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pixelhdm.data.start_files import SOURCE_SCALE
from pixelhdm.inference.samplers import Image
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context


class Start(NamedTuple):
    """Images to begin from, in the place of noise.

    Attributes:
        image: the images, in [-1, 1].
        strength: 0 gives them back, 1 ignores them; the way begins at t = 1 - strength.
        mask: 1 where they are drawn anew, 0 where they stay; None draws anew everywhere.
        source: what they show, for FlowEdit, which leads from it to the condition; None for plain
            image to image.
        source_scale: strength of the guidance towards `source`.
    """

    image: Image
    strength: float
    mask: Float[Tensor, "B H W 1"] | None = None
    source: Any = None
    source_scale: float = SOURCE_SCALE

    def to(self, device: torch.device, dtype: torch.dtype) -> "Start":
        """The same on a device, its images of a type."""
        mask = None if self.mask is None else self.mask.to(device, dtype)
        return self._replace(image=self.image.to(device, dtype), mask=mask)

    def given(self, conditioner: Conditioner) -> Context:
        """The context of what they show."""
        return conditioner(placed(self.source, conditioner))

    def away(self, conditioner: Conditioner) -> Context:
        """The empty context."""
        return conditioner.empty(len(self.image))


class Request(NamedTuple):
    """Images to draw in one batch.

    Attributes:
        condition: class numbers or prompts, as the conditioner takes them.
        seeds: seed of each image.
        height: height in pixels.
        width: width in pixels.
        negative: prompts to lead away from; None or empty ones for the empty condition.
        start: images to begin from; None for noise.
    """

    condition: Any
    seeds: list[int]
    height: int
    width: int
    negative: list[str] | None = None
    start: Start | None = None

    def given(self, conditioner: Conditioner) -> Context:
        """The context of what is to be seen.

        Raises:
            UserError: the conditioner takes no such conditions.
        """
        conditioner.check(self.condition)
        return conditioner(placed(self.condition, conditioner))

    def away(self, conditioner: Conditioner) -> Context:
        """The context of what guidance leads away from."""
        if self.negative is None or not any(self.negative):
            return conditioner.empty(len(self.seeds))
        return conditioner(self.negative)


def placed(condition: Any, conditioner: Conditioner) -> Any:
    """A condition where its conditioner computes; texts stay."""
    if isinstance(condition, list):
        return condition
    return condition.to(next(conditioner.parameters()).device)
