"""What evaluations have found: tables, curves over steps, sweeps."""

from collections import defaultdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pixelhdm.evaluation.scores import Score, from_record, notes, readable
from pixelhdm.loggers import flattened
from pixelhdm.reporting.chart import COLOURS, Line, line_chart
from pixelhdm.reporting.curve_sections import QUALITY, Asked, chart, charts, keys_of
from pixelhdm.reporting.curves import Curve
from pixelhdm.reporting.markup import Section, folded, note, table
from pixelhdm.reporting.run import Run

FLOOR = "_floor"
HEAD = ("score", "value", "real at n", "images", "real images", "extractor", "resize")
FEW = 10  # evaluations, or settings of a sweep, that stand open
TITLES = {"test": "Test", "geneval": "GenEval", "dpg": "DPG-Bench"}


def quality(runs: list[Run]) -> Section:
    """Scores drawn and computed while the run trained, and those of evaluations since."""
    keys = [key for key in keys_of(runs) if key.startswith(QUALITY) and not key.endswith(FLOOR)]
    parts = [
        chart(
            runs,
            f"{key.removeprefix(QUALITY)} while training",
            [Asked("drawn", key), Asked("as many real images", key + FLOOR)],
            may_be_log=True,
        )
        for key in keys
    ]
    own = [
        (place, entry)
        for place, run in enumerate(runs)
        for entry in run.evaluations
        if entry["kind"] != "sweep"
    ]
    body = charts(parts + over_steps(own, runs))
    named = [f"{run.name}: " if len(runs) > 1 else "" for run in runs]
    tables = [evaluation(named[place], entry) for place, entry in reversed(own)]
    body += "".join(tables[:FEW])
    if tables[FEW:]:
        body += folded(f"{len(tables) - FEW} earlier evaluations", "".join(tables[FEW:]))
    return Section("quality", "Quality", body)


def over_steps(own: list[tuple[int, dict[str, Any]]], runs: list[Run]) -> list[str]:
    """A chart of each score that was found at several steps with equal settings."""
    points: dict[str, dict[tuple, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for place, entry in own:
        for score in scores_of(entry):
            scale = entry["settings"].get("scale")
            label = entry["weights"] + ("" if scale is None else f", scale {scale:g}")
            label += f", {score.num_images:,} images"
            same = (place, label, str(entry["settings"]), str(entry["reference"]))
            points[score.name][same][entry["step"]] = score.value
    found = []
    for name, groups in points.items():
        lines = []
        for number, ((place, label, *_), values) in enumerate(groups.items()):
            if len(values) > 1 or len(runs) > 1:
                label = f"{runs[place].name}, {label}" if len(runs) > 1 else label
                lines.append(Line(label, by_step(values), COLOURS[number % len(COLOURS)]))
        found.append(line_chart(name, lines))
    return found


def by_step(values: dict[int, float]) -> Curve:
    """Values by step as a curve."""
    steps = np.array(sorted(values), dtype=np.float64)
    return Curve(steps, np.array([values[int(step)] for step in steps], dtype=np.float64))


def scores_of(entry: dict[str, Any]) -> list[Score]:
    """The scores of an entry."""
    return [from_record(record) for record in entry["scores"]]


def evaluation(named: str, entry: dict[str, Any]) -> str:
    """One evaluation, with what its heading begins with: how it was made, and its scores."""
    title = f"{named}{TITLES.get(entry['kind'], entry['kind'])} at step {entry['step']:,}"
    facts = {
        "weights": entry["weights"],
        **flattened(entry["settings"]),
        "reference": entry["reference"],
        "at": entry["time"],
        "images in": entry["folder"],
    }
    told = " · ".join(f"{name} {value}" for name, value in facts.items() if value)
    scores = scores_of(entry)
    remarks = "".join(note(text) for text in notes(scores)) if entry["kind"] == "test" else ""
    rows = table(list(HEAD), [score_row(score) for score in scores], "numbers")
    return f"<h3>{escape(title)}</h3>{note(told)}{rows}{remarks}"


def score_row(score: Score) -> list[str]:
    """The cells of a score, as HTML."""
    arrow = "↓" if score.better == "lower" else "↑"
    return [
        f"{escape(score.name)} {arrow}",
        f"<b>{shown(score)}</b>",
        "–" if score.floor is None else readable(score.floor),
        f"{score.num_images:,}",
        "–" if score.num_real is None else f"{score.num_real:,}",
        escape(score.extractor),
        escape(score.resize),
    ]


def shown(score: Score) -> str:
    """A score with its error."""
    error = "" if score.error is None else f" ± {readable(score.error, 2)}"
    return readable(score.value) + error


def sweeps(runs: list[Run]) -> Section:
    """The settings that sweeps have tried, the best first."""
    parts = []
    for run in runs:
        groups: dict[tuple, dict[str, dict[str, Any]]] = defaultdict(dict)
        for entry in run.evaluations:
            if entry["kind"] == "sweep":
                place = Path(str(entry["folder"]))
                same = (entry["step"], entry["num_images"], str(entry["reference"]), place.parent)
                setting = str((entry["checkpoint"], entry["weights"], entry["settings"]))
                groups[same][setting] = entry  # the last of each counts
        named = f"{run.name}: " if len(runs) > 1 else ""
        parts += [sweep(named, list(entries.values())) for entries in groups.values()]
    return Section("sweep", "Sweep", "".join(parts))


def sweep(named: str, entries: list[dict[str, Any]]) -> str:
    """The settings of one sweep as a table; the best of each score stands out."""
    settings = [
        {
            "weights": entry["weights"],
            "checkpoint": Path(str(entry["checkpoint"])).stem,  # tells averages apart
            **flattened(entry["settings"]),
        }
        for entry in entries
    ]
    names = list(dict.fromkeys(name for own in settings for name in own))
    differ = [name for name in names if len({str(own.get(name)) for own in settings}) > 1]
    by_name = [{score.name: score for score in scores_of(entry)} for entry in entries]
    heads = list(dict.fromkeys(name for own in by_name for name in own))
    best = {name: min((own[name] for own in by_name if name in own), key=rank) for name in heads}
    rows = []
    metric = next((name for name in heads if name.startswith(("KID", "KD-"))), heads[0])
    order = sorted(range(len(entries)), key=lambda n: rank(by_name[n].get(metric, best[metric])))
    for number in order:
        cells = [escape(str(settings[number].get(name, "–"))) for name in differ]
        for name in heads:
            score = by_name[number].get(name)
            text = "–" if score is None else shown(score)
            cells.append(f"<mark>{text}</mark>" if score == best[name] else text)
        rows.append(cells)
    first = entries[0]
    title = f"{named}{len(entries)} settings at step {first['step']:,}"
    top = best[metric]
    words = ", ".join(f"{name} {settings[order[0]].get(name, '–')}" for name in differ)
    told = f"Best by {top.name}: {words or 'the only one'}: {shown(top)}"
    floors = [f"{s.name} {readable(s.floor)}" for s in by_name[order[0]].values() if s.floor]
    if floors:
        told += f". As many real images: {', '.join(floors)}"
    about = f"{first['num_images']:,} images each, {top.extractor}, {top.resize}. "
    about += f"Reference {first['reference']}."
    head = [escape(name) for name in [*differ, *heads]]
    body = table(head, rows[:FEW], "numbers")
    if rows[FEW:]:
        body += folded(f"{len(rows) - FEW} more settings", table(head, rows[FEW:], "numbers"))
    return f"<h3>{escape(title)}</h3><p>{escape(told)}.</p>{note(about)}{body}"


def rank(score: Score) -> float:
    """A number that is the lower the better the score."""
    value = -score.value if score.better == "higher" else score.value
    return value if np.isfinite(value) else np.inf
