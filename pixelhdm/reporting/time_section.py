"""Held-out losses by time t, from noise at 0 to the image at 1."""

import re

import numpy as np

from pixelhdm.reporting.chart import COLOURS, Line, line_chart
from pixelhdm.reporting.curve_sections import charts, keys_of, loss_terms
from pixelhdm.reporting.curves import Curve
from pixelhdm.reporting.markup import Section, compact, note
from pixelhdm.reporting.run import Run

KEY = re.compile(r"(val(?:_\w+)?)_t/(.+)/([\d.]+)-([\d.]+)")
MOST_TIMES = 5  # validations in the chart over t


def losses_by_time(runs: list[Run]) -> Section:
    """Of each term: the loss over t at several validations, and the loss of each bin of t over
    steps.
    """
    found = [key.groups() for key in map(KEY.fullmatch, keys_of(runs)) if key]
    binned = {term for stage, term, *_ in found if stage == "val"}
    terms = [term for term in loss_terms(runs) if term in binned]
    parts = []
    for term in terms:
        lines = [line for number in range(len(runs)) for line in profiles(runs, number, term)]
        parts.append(line_chart(f"{term} over t", lines, True, x_name="t"))
        for run in runs:
            title = f"{term} by t" + (f", {run.name}" if len(runs) > 1 else "")
            parts.append(line_chart(title, bins_over_steps(run, term), True))
    told = "Of held-out images, in ten equal parts of t: 0 is noise, 1 the image."
    body = charts(parts)
    return Section("times", "Losses by time", body and note(told) + body)


def bins_of(run: Run, stage: str, term: str) -> dict[tuple[float, float], Curve]:
    """The curves of a term's bins, from noise to image."""
    found = {}
    for name, curve in run.curves.items():
        key = KEY.fullmatch(name)
        if key and key[1] == stage and key[2] == term:
            found[float(key[3]), float(key[4])] = curve.finite
    return dict(sorted(found.items()))


def profiles(runs: list[Run], number: int, term: str) -> list[Line]:
    """A run's loss over t: at several validations, or at its last one where there are more runs."""
    run = runs[number]
    bins = bins_of(run, "val", term)
    steps = np.unique(np.concatenate([curve.steps for curve in bins.values()] or [np.array([])]))
    if not len(steps):
        return []
    if len(runs) > 1:
        colour = COLOURS[number % len(COLOURS)]
        return [Line(f"{run.name}, step {compact(steps[-1])}", over_t(bins, steps[-1]), colour)]
    places = np.unique(np.linspace(0, len(steps) - 1, MOST_TIMES).round().astype(int))
    shown = steps[places]
    lines = [
        Line(f"step {compact(step)}", over_t(bins, step), shade(number / max(len(shown) - 1, 1)))
        for number, step in enumerate(shown)
    ]
    for other in ("raw", "ema"):
        if both := bins_of(run, f"val_{other}", term):
            lines.append(
                Line(f"{other}, at the last", over_t(both, steps[-1]), "var(--ink)", "3 3")
            )
    return lines


def over_t(bins: dict[tuple[float, float], Curve], step: float) -> Curve:
    """The loss in the middle of each bin at a step."""
    points = [
        ((low + high) / 2, float(curve.values[curve.steps == step][0]))
        for (low, high), curve in bins.items()
        if step in curve.steps
    ]
    middles, values = np.array(points).reshape(-1, 2).T
    return Curve(middles, values)


def bins_over_steps(run: Run, term: str) -> list[Line]:
    """The loss of each bin over steps; one validation alone shows nothing new."""
    bins = bins_of(run, "val", term)
    if max((len(curve.steps) for curve in bins.values()), default=0) < 2:
        return []
    return [
        Line(f"{low:g}–{high:g}", curve, shade((low + high) / 2))
        for (low, high), curve in bins.items()
    ]


def shade(share: float) -> str:
    """A colour between the first, 0, and the last, 1, readable on light and dark."""
    return f"hsl({round(265 - 235 * share)} 65% 55%)"
