"""Which part of the settings goes where in a picture of all of them."""

import math
from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

from pixelhdm.sweeping.setting import Setting, span

PARTS: dict[str, Callable[[Setting], Any]] = {
    "scale": lambda setting: setting.scale,
    "steps": lambda setting: setting.num_steps,
    "ema": lambda setting: setting.ema,
    "interval": lambda setting: setting.interval,
    "solver": lambda setting: setting.solver,
}
AS_PANELS = ("interval", "steps", "solver", "ema")  # which part goes into panels first
MOST_LINES = 6  # in a panel


class Layout(NamedTuple):
    """Which part of the settings goes where.

    Attributes:
        along: the horizontal axis.
        lines: what tells the lines of a panel apart.
        panels: what tells panels apart.
        fixed: what is the same everywhere.
    """

    along: str
    lines: list[str]
    panels: list[str]
    fixed: list[str]


def layout_of(settings: list[Setting]) -> Layout:
    """The scale along the horizontal axis, or else the first part that varies; the others are
    lines, and where these are too many, panels.
    """
    values = {name: {part(setting) for setting in settings} for name, part in PARTS.items()}
    varying = [name for name in PARTS if len(values[name]) > 1]
    along = varying[0] if varying else "scale"
    lines, panels = [name for name in varying if name != along], []
    for name in AS_PANELS:
        if math.prod(len(values[line]) for line in lines) <= MOST_LINES:
            break
        if name in lines and len(lines) > 1:
            lines.remove(name)
            panels.append(name)
    fixed = [name for name in PARTS if name not in (along, *lines, *panels)]
    return Layout(along, lines, panels, fixed)


def grouped(settings: list[Setting], parts: list[str]) -> list[list[Setting]]:
    """The settings that have these parts in common, in the order of the first of each."""

    def key(setting: Setting) -> list[Any]:
        return [PARTS[name](setting) for name in parts]

    order = {tuple(key(setting)): place for place, setting in reversed(list(enumerate(settings)))}
    by_place = sorted(settings, key=lambda setting: order[tuple(key(setting))])
    return [list(group) for _, group in groupby(by_place, key=key)]


def tick(value: Any) -> str:
    """A value at the horizontal axis."""
    return span(value) if isinstance(value, tuple) else str(value)
