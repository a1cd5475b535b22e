"""One combination of what sweep compares."""

import copy
import re
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

from pixelhdm.checkpoints import Weights
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import Sampler
from pixelhdm.inference.sweep import described
from pixelhdm.sweeping.axes import Axes

ORDER = ("scale", "interval", "solver", "steps", "ema")

Interval = tuple[float, float]


class Setting(NamedTuple):
    """How all images of one evaluation are drawn.

    Attributes:
        ema: the weights: run, raw, or the relative length of their average.
        solver: name and settings of the solver but its steps.
        num_steps: its steps.
        interval: times with guidance; None where there is none at any time.
        scale: strength of the guidance.
    """

    ema: str
    solver: str
    num_steps: int
    interval: Interval | None
    scale: float

    @property
    def name(self) -> str:
        """The setting as the name of a folder."""
        text = f"ema={self.ema}_{self.solver}_steps={self.num_steps}_scale={self.scale:.10g}"
        if self.interval is not None:
            text += f"_interval={span(self.interval)}"
        return re.sub(r"[^\w=.,-]+", "_", text)

    def words(self, names: Iterable[str] = ORDER) -> str:
        """The named parts in words."""
        wanted = set(names)
        parts = {
            "scale": f"scale {self.scale:.10g}",
            "interval": "" if self.interval is None else f"interval {span(self.interval)}",
            "solver": self.solver.replace("Sampler", "", 1),
            "steps": f"{self.num_steps} steps",
            "ema": f"EMA {self.ema}" if self.ema != "raw" else "raw weights",
        }
        return ", ".join(parts[name] for name in ORDER if name in wanted and parts[name])


def span(interval: Interval) -> str:
    """An interval in a few letters."""
    return f"{interval[0]:g}-{interval[1]:g}"


def combinations(axes: Axes, own: Drawing, weights: Weights) -> list[Setting]:
    """All combinations, by average, solver, steps, interval and scale; `own` is how the run
    draws, and `weights` with which. Some may be the same way to draw, see `plain`.
    """
    averages = axes.emas or ["run" if weights == "ema" else "raw"]
    samplers = [described(sampler) for sampler in axes.samplers or [own.sampler]]
    return [
        Setting(*values)
        for values in product(
            [ema if isinstance(ema, str) else f"{ema:g}" for ema in averages],
            samplers,
            axes.steps or [own.sampler.num_steps],
            [tuple(interval) for interval in axes.intervals or [own.guidance.interval]],
            axes.scale_list or [own.guidance.scale],
        )
    ]


def plain(setting: Setting, guidance: Guidance) -> Setting:
    """The same for all settings that draw the same: where there is no guidance, at scale 1, the
    interval has no effect.
    """
    return setting._replace(interval=None) if guidance.at(setting.scale).is_off else setting


def drawing_of(setting: Setting, own: Drawing, samplers: dict[str, Sampler]) -> Drawing:
    """How the images of a setting are drawn: as the run's are, but for what the setting says."""
    guidance = copy.copy(own.guidance.at(setting.scale))
    guidance.interval = setting.interval or own.guidance.interval
    sampler = samplers[setting.solver].with_steps(setting.num_steps)
    return own._replace(sampler=sampler, guidance=guidance)
