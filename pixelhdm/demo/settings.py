"""What the form of the demo asks for."""

import math
import random
from typing import NamedTuple

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import (
    AdamsSampler,
    DPM2MSampler,
    DPM2SSampler,
    EulerSampler,
    HeunSampler,
    Sampler,
    SDESampler,
)
from pixelhdm.inference.time_grid import TimeGrid

TITLES = {"DPM2M": "DPM++ 2M", "DPM2S": "DPM++ 2S"} | {f"Adams{n}": f"Adams {n}" for n in range(9)}
RANDOM_SEED, MOST_RANDOM, LAST_SEED = -1, 2**31, 2**53  # a page's numbers are exact up to there
MOST_IMAGES, MOST_STEPS = 64, 1000


class Settings(NamedTuple):
    """What the form holds, field by field; a field that is left empty is None.

    Attributes:
        condition: prompt or class number.
        negative: what is not to be seen.
        height: height in pixels.
        width: width in pixels.
        seed: seed of the first image; -1 takes a random one.
        num_images: how many images; their seeds count up.
        solver: its title on the page.
        num_steps: its steps.
        scale: strength of the guidance.
        interval_start: first time with guidance, 0 noise … 1 image.
        interval_end: last one.
        rescale: how far guidance keeps the image's spread, 0 … 1.
        shift: time shift; None takes the one that the flow is trained with.
        is_animated: whether the way from noise to image is kept as an animation.
        strength: how much of a picture to begin with is drawn anew, 0 … 1.
        source: what that picture shows, to edit it; empty for plain image to image.
    """

    condition: str | int | float | None
    negative: str | None
    height: float | None
    width: float | None
    seed: float | None
    num_images: float | None
    solver: str
    num_steps: float | None
    scale: float | None
    interval_start: float
    interval_end: float
    rescale: float
    shift: float | None
    is_animated: bool
    strength: float
    source: str | None

    def checked(self, is_text: bool) -> "Settings":
        """The same with whole numbers, a seed that is not random, and texts without blanks around.

        Raises:
            UserError: a field that must be filled is not, or its number is not a whole one.
        """
        whole = {name: self.whole(name) for name in ("height", "width", "seed")}
        whole["num_images"] = self.whole("num_images", "images")
        check_at_least(1, height=whole["height"], width=whole["width"])
        steps = self.whole("num_steps", "steps")
        check_between(1, MOST_IMAGES, images=whole["num_images"])
        check_between(1, MOST_STEPS, steps=steps)
        if not RANDOM_SEED <= whole["seed"] <= LAST_SEED:
            raise UserError(
                f"seed must lie in 0 … {LAST_SEED}, or be -1 for a random one, got {whole['seed']}."
            )
        if whole["seed"] == RANDOM_SEED:
            whole["seed"] = random.randrange(MOST_RANDOM)
        condition = self.text(self.condition) if is_text else self.whole("condition", "class")
        if condition == "":
            raise UserError("prompt must not be empty. Say what is to be seen.")
        texts = {"negative": self.text(self.negative), "source": self.text(self.source)}
        return self._replace(condition=condition, num_steps=steps, **whole, **texts)

    def whole(self, name: str, title: str = "") -> int:
        """A field that must be a whole number."""
        value = getattr(self, name)
        if not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
            given = "nothing" if value is None else value
            raise UserError(f"{title or name} must be a whole number, got {given}.")
        return int(value)

    @staticmethod
    def text(value: object) -> str:
        """A field of text."""
        return "" if value is None else str(value).strip()

    def drawing(self, own: Drawing) -> Drawing:
        """How these settings draw, with what the page does not ask for from the model's own way.

        Raises:
            UserError: a number is out of its range.
        """
        sampler = solvers(own.sampler)[self.solver].with_steps(self.num_steps)
        if self.scale is None:
            raise UserError("guidance scale must be a number, got nothing. 1 switches it off.")
        guidance = Guidance(
            self.scale,
            own.guidance.schedule,
            own.guidance.end_scale,
            (self.interval_start, self.interval_end),
            self.rescale,
        )
        guidance.weaker, guidance.routed = own.guidance.weaker, own.guidance.routed
        shift = "flow" if self.shift is None else self.shift
        return Drawing(sampler, guidance, TimeGrid(own.time_grid.span, shift))


def solvers(own: Sampler) -> dict[str, Sampler]:
    """The solvers that the page offers, by title; the model's own one as it is set."""
    adams = [AdamsSampler(order=order) for order in range(1, 5)]
    others = [DPM2MSampler(), DPM2SSampler(), SDESampler()]
    offered = {solver.name: solver for solver in (EulerSampler(), HeunSampler(), *adams, *others)}
    return {title_of(solver): solver for solver in (offered | {own.name: own}).values()}


def title_of(solver: Sampler) -> str:
    """What the page calls a solver."""
    return TITLES.get(solver.name, solver.name)


def check_between(least: int, most: int, **values: int) -> None:
    """Raise a UserError that names the first of `values` outside of least … most."""
    for name, value in values.items():
        if not least <= value <= most:
            raise UserError(f"{name} must lie in {least} … {most}, got {value}.")
