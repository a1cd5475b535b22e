"""What sweep compares, and where it writes."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import Sampler
from pixelhdm.inference.sweep import described
from pixelhdm.training.power_ema import exponent

RANGE = re.compile(r"(-?[\d.]+)\.\.(-?[\d.]+)/([\d.]+)")
DIGITS = 9  # after the point, of numbers in a range
MANY = 1000  # numbers in a range

Average = Literal["run", "raw"] | float


@dataclass(frozen=True)
class Axes:
    """Settings to evaluate, all combinations of them with the same seeds.

    What is left out stays as the run has it. To look at a few images with several settings use
    `predict --sweep`; sweep decides by numbers.

    Args:
        scales: strengths of the guidance: a list, or from..to/step, as 1..4/0.1.
        intervals: times [from, to] with guidance, a list of pairs.
        steps: numbers of steps, for every solver.
        samplers: solvers; sweep.steps says their numbers of steps.
        emas: averages of the weights: run (that of ema.decay), raw (the weights themselves), or
            relative lengths such as 0.05, which come from the checkpoint where it has them and else
            from the run's snapshots, as by `main.py ema`.
        metric: the score that decides, by its name in the table; empty takes KID, the kernel
            distance of the first extractor, which a small number of images does not bias.
        folder: where to write; empty makes <run folder>/sweeps/<checkpoint>_<number of images>.
            Settings that were evaluated there are not drawn again.
        num_grids: images to show with all settings in grids/, each of its own seed.
    """

    scales: list[float] | str | None = None
    intervals: list[tuple[float, float]] | None = None
    steps: list[int] | None = None
    samplers: list[Sampler] | None = None
    emas: list[Average] | None = None
    metric: str | None = None
    folder: str | None = None
    num_grids: int = 4

    def __post_init__(self) -> None:
        check_at_least(0, **{"sweep.num_grids": self.num_grids})
        for name, values in self.values().items():
            if not values:
                raise UserError(f"sweep.{name} must hold something or be left out, got [].")
            if twice := [value for value in values if values.count(value) > 1]:
                raise UserError(
                    f"sweep.{name} must hold different settings, got {twice[0]} twice. Leave one "
                    "out."
                )
        if not all(map(math.isfinite, self.scale_list or [])):
            raise UserError(f"sweep.scales must be finite numbers, got {self.scales}.")
        for number in self.steps or []:
            check_at_least(1, **{"sweep.steps": number})
        for interval in self.intervals or []:
            Guidance(interval=interval)
        for average in self.emas or []:
            if not isinstance(average, str):
                exponent(average)
        for sampler in self.samplers or []:
            if sampler.num_steps != type(sampler)().num_steps:
                raise UserError(
                    "sweep.samplers must have no num_steps of their own, got "
                    f"{sampler.num_steps} for {type(sampler).__name__}. Set sweep.steps, which are "
                    "for every solver."
                )

    @property
    def scale_list(self) -> list[float] | None:
        """The scales, a range spelled out."""
        return spelled_out(self.scales) if isinstance(self.scales, str) else self.scales

    def values(self) -> dict[str, list[Any]]:
        """The values of the axes that are given, as text or numbers that can be compared."""
        samplers = None if self.samplers is None else [described(own) for own in self.samplers]
        found = {
            "scales": self.scale_list,
            "intervals": self.intervals,
            "steps": self.steps,
            "samplers": samplers,
            "emas": self.emas,
        }
        return {name: values for name, values in found.items() if values is not None}


def spelled_out(text: str) -> list[float]:
    """The numbers of a range from..to/step, both ends among them where the step leads there.

    Raises:
        UserError: it is none, or has no or too many numbers.
    """
    match = RANGE.fullmatch(text.strip())
    try:
        start, stop, step = map(float, match.groups()) if match else (0.0, 0.0, 0.0)
    except ValueError:
        step = 0.0
    if step <= 0:
        raise UserError(
            f"sweep.scales must be a list of numbers or from..to/step, as 1..4/0.1, got {text}."
        )
    num = math.floor((stop - start) / step + 1e-6) + 1
    if not 1 <= num <= MANY:
        raise UserError(f"sweep.scales must be 1 … {MANY} numbers, got {num} of them from {text}.")
    return [round(start + number * step, DIGITS) for number in range(num)]
