"""What a sweep leaves behind: tables, a plot, grids and the best setting."""

from pathlib import Path
from typing import NamedTuple

from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.showing.grid import Pixels
from pixelhdm.sweeping.averages import Averaged
from pixelhdm.sweeping.best import full_command, overlay
from pixelhdm.sweeping.grids import FOLDER, draw_grids
from pixelhdm.sweeping.plot import draw_plot
from pixelhdm.sweeping.results import Row, ranked, verdict
from pixelhdm.sweeping.setting import Setting
from pixelhdm.sweeping.table import csv_table, markdown, short_table, write_text

CSV, TABLE, PLOT, BEST = "table.csv", "table.md", "plot.png", "best.yaml"


class Outcome(NamedTuple):
    """All that is known at a sweep's end.

    Attributes:
        metric: name of the score that decides.
        found: the row of every combination; those that draw the same share one.
        facts: what all settings share, by name.
        images: the images to show of each setting.
    """

    metric: str
    found: dict[Setting, Row]
    facts: dict[str, str]
    images: dict[Setting, list[Pixels]]

    @property
    def rows(self) -> list[Row]:
        """The rows, each once."""
        return list({row.setting: row for row in self.found.values()}.values())

    @property
    def best(self) -> Row:
        """The best one."""
        return ranked(self.rows, self.metric)[0]


def write_tables(folder: Path, outcome: Outcome) -> None:
    """table.csv and table.md."""
    told = verdict(outcome.rows, outcome.metric)
    write_text(folder / CSV, csv_table(outcome.rows))
    write_text(folder / TABLE, markdown(outcome.rows, outcome.metric, outcome.facts, told))


def write_all(
    folder: Path, outcome: Outcome, averaged: Averaged, drawing: Drawing, argv: list[str]
) -> str:
    """Write everything; what is to be printed.

    Args:
        folder: where to.
        outcome: what was found.
        averaged: the weights of the best setting.
        drawing: how it draws.
        argv: the command that was called.
    """
    write_tables(folder, outcome)
    combined, metric, best = list(outcome.found), outcome.metric, outcome.best
    about = ", ".join(outcome.facts[name] for name in ("images", "checkpoint"))
    draw_plot(folder / PLOT, combined, outcome.found, metric, about)
    told, head = verdict(outcome.rows, metric), f"{outcome.facts['images']}, {metric}"
    write_text(folder / BEST, overlay(averaged, drawing, f"{told}\n{head}"))
    written = [CSV, TABLE, PLOT, BEST]
    num_shown = min(map(len, outcome.images.values()))
    if num_shown:
        labels = [f"image{number:02d}" for number in range(num_shown)]
        images = {setting: outcome.images[row.setting] for setting, row in outcome.found.items()}
        place = next(setting for setting, row in outcome.found.items() if row is best)
        draw_grids(folder, combined, labels, images, place)
        written.append(f"{FOLDER}/ (image 0 … {num_shown - 1} of every setting)")
    return "\n".join(
        [
            "",
            short_table(outcome.rows, metric),
            "",
            told,
            f"Everything is in {folder}: {', '.join(written)}.",
            f"Evaluate it in full:  {full_command(argv, folder / BEST)}",
        ]
    )
