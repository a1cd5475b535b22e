"""The times at which a solver stops on its way from noise to image."""

import math
from dataclasses import dataclass
from typing import Literal

from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.training.flow import FlowMatching

Span = Literal["trained", "full"]


@dataclass(frozen=True)
class TimeGrid:
    """Times from noise to the clean image, the last of which is 1.

    Even steps u, shifted to s: u / (u + (1 - u) s) (arXiv:2403.03206, eq. 23, with time running the
    other way). The step before 1 ends in the network's clean image.

    Args:
        span: trained: t_eps … 1 - t_eps, the times that training has seen, and 1; the network is
            asked once more, for a first step from pure noise to t_eps. full: 0 … 1, PixelGen's and
            PixelDiT's; the network is asked at times that it never saw, 0 and above 1 - t_eps. A
            network that predicts x goes only a part of the way there, see FlowMatching.prediction.
        shift: s; 1 keeps the steps even, more puts them nearer to noise, for large images. flow
            takes the time shift that the flow is trained with at the size of the image.
    """

    span: Span = "trained"
    shift: float | Literal["flow"] = 1.0

    def __post_init__(self) -> None:
        check_one_of(Span, span=self.span)
        is_word = isinstance(self.shift, str)
        if not (self.shift == "flow" if is_word else 0 < self.shift < math.inf):
            raise UserError(f"shift must be above 0 or flow, got {self.shift}.")

    def times(self, num_steps: int, flow: FlowMatching, height: int, width: int) -> list[float]:
        """The num_steps + 1 times for images of a size."""
        check_at_least(1, num_steps=num_steps)
        shift = flow.time_shift_at(height, width) if self.shift == "flow" else self.shift
        if self.span == "full":
            return [shifted(number / num_steps, shift) for number in range(num_steps + 1)]
        even = (number / max(num_steps - 1, 1) for number in range(num_steps))
        return [flow.t_eps + (1 - 2 * flow.t_eps) * shifted(u, shift) for u in even] + [1.0]


def shifted(u: float, shift: float) -> float:
    """u / (u + (1 - u) shift), for a time 0 … 1."""
    return u / (u + (1 - u) * shift)


def after(times: list[float], start: float) -> list[float]:
    """What is left of `times` for a way that begins at `start`.

    The first step is at least half as long as the grid's there: multistep solvers divide by it.
    """
    left = [t for t in times if t > start]
    if len(left) > 1 and left[0] - start < (left[1] - left[0]) / 2:
        del left[0]
    return [start, *left]
