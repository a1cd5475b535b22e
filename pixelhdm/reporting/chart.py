"""Line charts as SVG inside the page, with the values that its script reads out."""

import json
from html import escape
from typing import Any, NamedTuple

import numpy as np

from pixelhdm.reporting.axes import Axis, axis_of
from pixelhdm.reporting.curves import Curve, smoothed, thinned
from pixelhdm.reporting.markup import compact, readable

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 8, 24
DRAWN, DRAWN_RAW = 400, 600  # points of a line, and of the raw values behind it
FROM, WINDOWS = 40, 40  # points from which on a line is smoothed, and windows in it
STEP = "step"
COLOURS = tuple(f"var(--c{number})" for number in range(8))


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: what the legend calls it.
        curve: its points.
        colour: as CSS has it.
        dash: lengths of dashes and gaps; empty for a whole line.
        is_noisy: whether its mean over neighbours is drawn over it, where it has many points.
    """

    name: str
    curve: Curve
    colour: str = COLOURS[0]
    dash: str = ""
    is_noisy: bool = False


class Drawn(NamedTuple):
    """A line with what is drawn of it: its points, and the raw ones behind a smoothed line."""

    line: Line
    curve: Curve
    raw: Curve | None
    window: int


def line_chart(
    title: str, lines: list[Line], may_be_log: bool = False, note: str = "", x_name: str = STEP
) -> str:
    """A figure with lines over steps; empty where none has a finite value."""
    drawn = [prepared(line) for line in lines if len(line.curve.finite.steps)]
    if not drawn:
        return ""
    every = [part for own in drawn for part in (own.curve, own.raw) if part is not None]
    steps = np.concatenate([part.steps for part in every])
    x = Axis(float(steps.min()), float(steps.max()))
    if x.low == x.high:
        x = Axis(x.low - 0.5, x.high + 0.5)
    y = axis_of(np.concatenate([part.values for part in every]), may_be_log)
    windows = sorted({own.window for own in drawn if own.raw is not None})
    told = [note] if note else []
    if windows:
        told.append(f"mean of {' or '.join(map(str, windows))} points over the raw ones")
    caption = f"<figcaption>{escape('; '.join(told))}</figcaption>" if told else ""
    return (
        f'<figure class="chart"><h3>{escape(title)} <output></output></h3>\n'
        f'<div class="legend">{"".join(legend(own, x_name) for own in drawn)}</div>\n'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">\n'
        f"{frame(x, y)}{''.join(paths(own, x, y) for own in drawn)}"
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>\n{caption}'
        f'<script type="application/json">{read_out(drawn, x, y, x_name)}</script></figure>\n'
    )


def prepared(line: Line) -> Drawn:
    """A line as it is drawn."""
    curve = line.curve.finite
    window = 2 * (len(curve.steps) // WINDOWS // 2) + 1
    if not line.is_noisy or len(curve.steps) < FROM or window == 1:
        return Drawn(line, thinned(curve, DRAWN), None, 1)
    return Drawn(line, thinned(smoothed(curve, window), DRAWN), thinned(curve, DRAWN_RAW), window)


def legend(own: Drawn, x_name: str) -> str:
    """A line's entry in the legend, which switches it off and on and shows its value: over steps
    the last one where the pointer is elsewhere.
    """
    line = own.line
    value = readable(float(own.curve.values[-1])) if x_name == STEP else ""
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    return (
        f'<button type="button" aria-pressed="true"><svg viewBox="0 0 22 8"><path d="M1 4H21" '
        f'style="stroke: {line.colour}"{dash}/></svg>{escape(line.name)} <b>{value}</b></button>'
    )


def frame(x: Axis, y: Axis) -> str:
    """Grid lines and the numbers beside them."""
    parts = []
    for tick in y.ticks():
        at = position(y, tick, HEIGHT - BOTTOM, TOP)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4}" class="y">{compact(tick)}</text>')
    for tick in x.ticks():
        at = position(x, tick, LEFT, WIDTH - RIGHT)
        parts.append(f'<text x="{at}" y="{HEIGHT - 6}">{compact(tick)}</text>')
    return f'<g class="frame">{"".join(parts)}</g>'


def position(axis: Axis, value: float, start: float, end: float) -> float:
    """Where a number stands between the ends of an axis in the picture."""
    return round(start + (end - start) * float(axis.place(np.array([value]))[0]), 1)


def paths(own: Drawn, x: Axis, y: Axis) -> str:
    """The strokes of one line."""
    dash = f' stroke-dasharray="{own.line.dash}"' if own.line.dash else ""
    strokes = f'<path d="{path(own.curve, x, y)}"{dash}/>'
    if own.raw is not None:
        strokes = f'<path class="raw" d="{path(own.raw, x, y)}"/>{strokes}'
    dots = ""
    if len(own.curve.steps) <= 30 and own.raw is None:
        dots = "".join(
            f'<circle r="2.2" cx="{across}" cy="{down}"/>'
            for across, down in zip(*places(own.curve, x, y), strict=True)
        )
    colour = f"stroke: {own.line.colour}; fill: {own.line.colour}"
    return f'<g class="line" style="{colour}">{strokes}{dots}</g>\n'


def path(curve: Curve, x: Axis, y: Axis) -> str:
    """A curve as SVG's path data."""
    return "M" + "L".join(f"{a} {d}" for a, d in zip(*places(curve, x, y), strict=True))


def places(curve: Curve, x: Axis, y: Axis) -> tuple[list[float], list[float]]:
    """The points of a curve in the picture."""
    across = LEFT + x.place(curve.steps) * (WIDTH - RIGHT - LEFT)
    down = HEIGHT - BOTTOM - y.place(curve.values) * (HEIGHT - BOTTOM - TOP)
    return across.round(1).tolist(), down.round(1).tolist()


def read_out(drawn: list[Drawn], x: Axis, y: Axis, x_name: str) -> str:
    """What the script needs to read values out, as JSON."""
    lines: list[dict[str, Any]] = [
        {
            "x": [float(f"{step:.10g}") for step in own.curve.steps],
            "y": [float(f"{value:.5g}") for value in own.curve.values],
        }
        for own in drawn
    ]
    box = {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
    facts = {"name": x_name, "x": x[:2], "y": list(y), "box": box, "width": WIDTH, "lines": lines}
    return json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")
