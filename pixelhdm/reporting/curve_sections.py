"""The parts of the page that show logged numbers over steps."""

import re
from typing import NamedTuple

import numpy as np

from pixelhdm.reporting.chart import COLOURS, Line, line_chart
from pixelhdm.reporting.markup import Section, note
from pixelhdm.reporting.run import Run

DASHES = ("", "7 3", "2 3", "9 3 2 3")
STAGES = ("train", "val", "val_raw", "val_ema")
RATE, SPEED, QUALITY = "train/lr", "throughput/", "quality/"
STEP_FACTS = {  # numbers of a step that are no losses
    "train/grad_norm": "Gradient norm",
    "train/clip_threshold": "clipped above",
    "train/clipped_share": "Share of clipped steps",
    "train/grad_z": "z-score of the gradient norm",
    "train/skipped_steps": "Skipped steps",
    "train/overflows": "Overflows of the scaled loss",
    "train/perceptual_factor": "Factor of the perceptual losses",
}
SPEEDS = {
    "throughput/images_per_s": "Images per second",
    "throughput/tokens_per_s": "Tokens per second",
    "throughput/mfu": "Model FLOP utilisation",
    "throughput/data_share": "Share of time waiting for data",
    "throughput/peak_memory_gib": "Peak memory, GiB",
}
BINNED = re.compile(r"val(?:_\w+)?_t/.+")


class Asked(NamedTuple):
    """One kind of line in a chart.

    Attributes:
        label: what the legend calls it.
        key: the logged number.
        is_noisy: whether it is smoothed.
    """

    label: str
    key: str
    is_noisy: bool = False


def lines_of(runs: list[Run], asked: list[Asked]) -> list[Line]:
    """The lines of a chart: of one run each in its colour, of several each run in one."""
    found = [
        (kind, own) for kind, own in enumerate(asked) if any(own.key in r.curves for r in runs)
    ]
    lines = []
    for number, run in enumerate(runs):
        for place, (kind, own) in enumerate(found):
            if own.key not in run.curves:
                continue
            curve, name = run.curves[own.key], own.label
            colour, dash = COLOURS[kind % len(COLOURS)], ""
            if len(runs) > 1:
                name = f"{run.name} {own.label}" if len(found) > 1 else run.name
                colour, dash = COLOURS[number % len(COLOURS)], DASHES[place % len(DASHES)]
            lines.append(Line(name, curve, colour, dash, own.is_noisy))
    return lines


def chart(
    runs: list[Run], title: str, asked: list[Asked], may_be_log: bool = False, note: str = ""
) -> str:
    """A chart of one or several numbers of all runs; empty where none has them."""
    return line_chart(title, lines_of(runs, asked), may_be_log, note)


def keys_of(runs: list[Run]) -> list[str]:
    """The names of all logged numbers."""
    return sorted({key for run in runs for key in run.curves})


def charts(parts: list[str]) -> str:
    """Charts side by side."""
    return f'<div class="charts">{"".join(parts)}</div>' if any(parts) else ""


def loss_terms(runs: list[Run]) -> list[str]:
    """The loss terms of all runs that are to be shown, the total first."""
    names = all_terms(runs)
    kept = {name for name in names if name == "total" or not is_total(runs, name)}
    return sorted(kept, key=lambda name: (name != "total", name))


def all_terms(runs: list[Run]) -> set[str]:
    """The loss terms of all runs."""
    names = set()
    for key in keys_of(runs):
        stage, _, name = key.partition("/")
        is_train = stage == "train" and key not in STEP_FACTS and not key.startswith(RATE)
        if is_train or stage in STAGES[1:]:
            names.add(name)
    return names


def is_total(runs: list[Run], term: str) -> bool:
    """Whether a term is all of the loss, so that it would be shown twice."""
    return all(
        np.array_equal(curve.values, run.curves[total].values, equal_nan=True)
        for run in runs
        for key, curve in run.curves.items()
        for stage, _, name in [key.partition("/")]
        for total in [f"{stage}/total"]
        if name == term and total in run.curves
    )


def losses(runs: list[Run]) -> Section:
    """Each term in training and on held-out images."""
    parts = []
    for term in loss_terms(runs):
        asked = [Asked("training", f"train/{term}", True), Asked("held out", f"val/{term}")]
        asked += [Asked(f"held out, {w}", f"val_{w}/{term}") for w in ("raw", "ema")]
        parts.append(chart(runs, term, asked, True))
    told = "Without their weights, but for total. Held-out losses are those of the weights that "
    told += "model.weights names, the average as a rule; those of the other ones stand beside them."
    body = charts(parts)
    return Section("losses", "Losses", body and note(told) + body)


def rates_and_norms(runs: list[Run]) -> Section:
    """Learning rate, gradient norms, clipping, skipped steps."""
    rates = [key for key in keys_of(runs) if key.startswith(RATE)]
    asked = [Asked(key.removeprefix(RATE).strip("_") or "rate", key) for key in rates]
    norm = [
        Asked("norm", "train/grad_norm", True),
        Asked("clipped above", "train/clip_threshold"),
    ]
    parts = [chart(runs, "Learning rate", asked), chart(runs, "Gradient norm", norm, True)]
    for key, title in STEP_FACTS.items():
        shown = [run for run in runs if key in run.curves and is_of_interest(key, run)]
        if key not in ("train/grad_norm", "train/clip_threshold") and shown:
            parts.append(chart(runs, title, [Asked(title, key, key == "train/grad_z")]))
    return Section("gradients", "Learning rate and gradients", charts(parts))


def is_of_interest(key: str, run: Run) -> bool:
    """Whether a number is worth a chart: counts of faults are where there are any."""
    return key not in ("train/skipped_steps", "train/overflows") or bool(
        run.curves[key].values.any()
    )


def throughput(runs: list[Run]) -> Section:
    """Speed and memory."""
    known = dict.fromkeys([*SPEEDS, *(key for key in keys_of(runs) if key.startswith(SPEED))])
    parts = [
        chart(runs, title, [Asked(title, key, key != "throughput/peak_memory_gib")])
        for key in known
        for title in [SPEEDS.get(key, key.removeprefix(SPEED))]
    ]
    return Section("throughput", "Throughput", charts(parts))


def others(runs: list[Run]) -> Section:
    """Logged numbers that stand in no other part."""
    shown = {f"{stage}/{term}" for stage in STAGES for term in all_terms(runs)}
    parts = [
        chart(runs, key, [Asked(key, key, True)])
        for key in keys_of(runs)
        if key not in shown | STEP_FACTS.keys()
        and not key.startswith((RATE, SPEED, QUALITY))
        and not BINNED.fullmatch(key)
    ]
    return Section("others", "Other numbers", charts(parts))
