"""A picture that the demo has drawn, with how it was made."""

from pathlib import Path
from typing import NamedTuple

from pixelhdm.demo.settings import Settings
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.sweep import described


class Picture(NamedTuple):
    """A picture that was drawn.

    Attributes:
        file: its PNG, which carries the facts.
        animation: its way from noise to image; None where none was asked for.
        settings: what the form said, with this picture's own seed.
        facts: how it was made.
    """

    file: Path
    animation: Path | None
    settings: Settings
    facts: dict[str, str]


def own_facts(settings: Settings, drawing: Drawing) -> dict[str, str]:
    """How one picture is drawn, by the names that predict uses."""
    if isinstance(settings.condition, str):
        shown = {"prompt": settings.condition, "negative_prompt": settings.negative or ""}
    else:
        shown = {"class": str(settings.condition)}
    sampler, guidance, time_grid = drawing
    return shown | {
        "seed": str(settings.seed),
        "scale": f"{guidance.scale:.12g}",
        "size": f"{settings.height}x{settings.width}",
        "sampler": described(sampler),
        "steps": str(sampler.num_steps),
        "interval": "{:g} … {:g}".format(*guidance.interval),
        "rescale": f"{guidance.rescale:g}",
        "shift": str(time_grid.shift),
    }
