"""The numbers that a run has logged, over its steps."""

import csv
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from pixelhdm.errors import UserError

FOLDERS, FILE = "logs/version_*", "metrics.csv"
NOT_CURVES = ("epoch", "step")


class Curve(NamedTuple):
    """One number over the steps of a run.

    Attributes:
        steps: optimizer steps done, rising.
        values: the number after each of them; NaN and infinities too.
    """

    steps: Float64[np.ndarray, "N"]
    values: Float64[np.ndarray, "N"]

    @property
    def finite(self) -> "Curve":
        """The same without NaN and infinities."""
        keep = np.isfinite(self.values)
        return Curve(self.steps[keep], self.values[keep])


def read_curves(run_folder: Path, starts: list[int]) -> dict[str, Curve]:
    """All numbers in a run's CSV files by name; of steps that were taken twice, the later start's.

    A last line that is still being written is left out.

    Args:
        run_folder: the run's folder.
        starts: the step that each start went on from, oldest first; used where there are as many
            as folders of logs, else the first step in each file.

    Raises:
        UserError: a file is damaged.
    """
    folders = log_folders(run_folder)
    firsts = [start + 1 for start in starts] if len(starts) == len(folders) else None
    found: dict[str, Curve] = {}
    for number, folder in enumerate(folders):
        part = read_file(folder / FILE) if (folder / FILE).exists() else {}
        if not part:
            continue
        first = firsts[number] if firsts else min(curve.steps[0] for curve in part.values())
        found = {name: before(curve, first) for name, curve in found.items()}
        for name, curve in part.items():
            earlier = found.get(name, Curve(curve.steps[:0], curve.values[:0]))
            found[name] = Curve(*map(np.concatenate, zip(earlier, curve, strict=True)))
    return {name: curve for name, curve in found.items() if len(curve.steps)}


def log_folders(run_folder: Path) -> list[Path]:
    """The folders of CSV files of a run's starts, oldest first."""
    return sorted(run_folder.glob(FOLDERS), key=lambda folder: int(re.sub(r"\D", "", folder.name)))


def read_file(file: Path) -> dict[str, Curve]:
    """The numbers in one file by name; a step that stands there twice counts as its last line."""
    lines = whole_lines(file)
    names = next(csv.reader(lines), [])
    cells: dict[str, dict[int, float]] = {name: {} for name in names if name not in NOT_CURVES}
    try:
        for row in csv.DictReader(lines, names):
            step = int(row["step"]) + 1  # Lightning counts them from 0
            for name, own in cells.items():
                if row[name]:
                    own[step] = float(row[name])
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{file} must hold rows of numbers with their step, got others ({error}). Mend it or "
            "move it away."
        ) from error
    return {name: rising(own) for name, own in cells.items() if own}


def whole_lines(file: Path) -> Iterator[str]:
    """The lines of a text file that have been written to their end."""
    with open(file, encoding="utf-8", newline="") as text:
        yield from (line for line in text if line.endswith("\n"))


def rising(values: dict[int, float]) -> Curve:
    """Values by step as a curve."""
    steps = np.array(list(values), dtype=np.float64)
    order = np.argsort(steps)
    return Curve(steps[order], np.array(list(values.values()))[order])


def before(curve: Curve, step: float) -> Curve:
    """The part of a curve before a step."""
    upto = np.searchsorted(curve.steps, step)
    return Curve(curve.steps[:upto], curve.values[:upto])


def smoothed(curve: Curve, window: int) -> Curve:
    """Means over `window` (odd) neighbouring points; at the start over fewer, as many on both
    sides, at the end over those before.
    """
    num = len(curve.steps)
    place = np.arange(num)
    left = np.minimum(place, window // 2)
    right = np.minimum(left, num - 1 - place)
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    means = (sums[place + right + 1] - sums[place - left]) / (left + right + 1)
    return Curve(curve.steps, means)


def thinned(curve: Curve, most: int) -> Curve:
    """At most about `most` points: of each stretch the lowest and the highest, and both ends."""
    num = len(curve.steps)
    if num <= most:
        return curve
    edges = np.linspace(0, num, max(most // 2, 1) + 1).astype(int)
    kept = {0, num - 1}
    for start, end in pairwise(edges):
        part = curve.values[start:end]
        kept |= {start + int(part.argmin()), start + int(part.argmax())}
    places = np.array(sorted(kept))
    return Curve(curve.steps[places], curve.values[places])
