"""A sweep's results as tables."""

import csv
import io
from pathlib import Path

from pixelhdm.files import replacing
from pixelhdm.sweeping.results import Row, ranked, shown
from pixelhdm.sweeping.setting import span

HEAD = ("ema", "solver", "steps", "scale", "interval", "calls", "predictions", "seconds")
ABOUT = (
    "calls: how often the network is asked for an image; predictions: how many it makes, two in a "
    "call with guidance; seconds: to draw an image, on one process."
)


def cells(row: Row) -> list[str]:
    """What stands in the columns of HEAD."""
    setting = row.setting
    return [
        setting.ema,
        setting.solver,
        str(setting.num_steps),
        f"{setting.scale:.10g}",
        "" if setting.interval is None else span(setting.interval),
        str(row.cost.calls),
        str(row.cost.passes),
        "" if row.seconds is None else f"{row.seconds:.4g}",
    ]


def csv_table(rows: list[Row]) -> str:
    """All settings and scores, each score with its error beside it where it has one."""
    out = io.StringIO()
    first = rows[0].scores
    names = [[score.name, *[f"{score.name} error"] * (score.error is not None)] for score in first]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*HEAD, *(name for part in names for name in part), "images"])
    for row in rows:
        values = []
        for score, part in zip(row.scores, names, strict=True):
            values += [repr(score.value), repr(score.error)][: len(part)]
        writer.writerow([*cells(row), *values, row.scores[0].num_images])
    return out.getvalue()


def markdown(rows: list[Row], metric: str, facts: dict[str, str], told: str) -> str:
    """The same for people, best first, with what all settings share above and the verdict."""
    scores = rows[0].scores
    lines = [f"# Sweep by {metric}", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += [
        f"- {s.name}: {s.extractor}, resize {s.resize}, {s.better} is better{floor(s.floor)}"
        for s in scores
    ]
    names = [*HEAD, *(score.name for score in scores)]
    lines += ["", told.replace("\n", "  \n"), "", "| " + " | ".join(names) + " |"]
    lines.append("|" + "---|" * len(names))
    for row in ranked(rows, metric):
        lines.append("| " + " | ".join([*cells(row), *map(shown, row.scores)]) + " |")
    return "\n".join([*lines, "", ABOUT, ""])


def floor(value: float | None) -> str:
    """The score of real images, in words."""
    return "" if value is None else f", as many real images have {value:.4g}"


def short_table(rows: list[Row], metric: str, num: int = 5) -> str:
    """The best few in columns, for the terminal."""
    head = [*HEAD, metric]
    lines = [head, *([*cells(row), shown(row.score(metric))] for row in ranked(rows, metric)[:num])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write_text(file: Path, text: str) -> None:
    """Write a file whole."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
