"""What a sweep has found, and which setting is the best."""

import math
from typing import NamedTuple

from pixelhdm.errors import UserError
from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.numbers import Found
from pixelhdm.evaluation.scores import CLIP_SCORE, Score, name_of
from pixelhdm.sweeping.cost import Cost
from pixelhdm.sweeping.setting import Setting

PREFERRED = ("KID", "KD-")
# What an extractor's kind is for.
KINDS = {
    "inception": ("FD", "sFD", "IS", "precision", "recall", "KD"),
    "plain": ("FD", "KD"),
    "clip": ("CMMD", CLIP_SCORE),
}


class Row(NamedTuple):
    """A setting and what came of it.

    Attributes:
        setting: how the images are drawn.
        cost: work for an image.
        scores: all scores.
        seconds: time to draw an image; None where it was not measured.
    """

    setting: Setting
    cost: Cost
    scores: list[Score]
    seconds: float | None

    def score(self, metric: str) -> Score:
        """The score of this name."""
        return next(score for score in self.scores if score.name == metric)


def deciding(scores: list[Score], wanted: str | None) -> str:
    """The name of the score that decides; empty takes the first kernel distance, else the first
    score.

    Raises:
        UserError: there is none of the wanted name.
    """
    names = [score.name for score in scores]
    if wanted is None:
        return next((name for name in names if name.startswith(PREFERRED)), names[0])
    check_known(wanted, names)
    return wanted


def check_metric(wanted: str | None, extractors: list[Extractor], num_images: int) -> None:
    """Raise a UserError where no extractor gives a score of the wanted name, before anything is
    drawn; whether a reference has what the score needs shows later.
    """
    if wanted is None:
        return
    names = [
        name_of(Found(kind, 0.0, None, num_real), extractor, num_images)
        for extractor in extractors
        for kind in KINDS[extractor.kind]
        for num_real in (None, 0)
    ]
    check_known(wanted, list(dict.fromkeys(names)))


def check_known(wanted: str, names: list[str]) -> None:
    """Raise a UserError where the wanted score is none of these."""
    if wanted not in names:
        raise UserError(
            f"sweep.metric must be one of {', '.join(names)}, which the extractors of evaluate "
            f"give, got {wanted}."
        )


def ranked(rows: list[Row], metric: str) -> list[Row]:
    """The rows, best first; those of equal scores by their cost, those without a number last."""

    def place(row: Row) -> tuple[bool, float, int]:
        score = row.score(metric)
        value = -score.value if score.better == "higher" else score.value
        return not math.isfinite(value), value, row.cost.passes

    return sorted(rows, key=place)


def error_between(best: Row, other: Row, metric: str) -> float | None:
    """Standard deviation of the difference of two scores, from their own; None where a score has
    none. The same noise behind both makes the true one smaller.
    """
    errors = best.score(metric).error, other.score(metric).error
    return None if None in errors else math.hypot(*errors)


def are_alike(best: Row, other: Row, metric: str) -> bool:
    """Whether two scores differ by less than the error of their difference."""
    error = error_between(best, other, metric)
    gap = abs(best.score(metric).value - other.score(metric).value)
    return error is not None and gap <= error


def verdict(rows: list[Row], metric: str) -> str:
    """Which setting is the best, and whether the others can be told from it."""
    best, *others = ranked(rows, metric)
    score = best.score(metric)
    head = f"Best by {metric}, {score.better} is better"
    lines = [f"{head}: {shown(score)} with {best.setting.words()}."]
    if not others:
        return lines[0]
    if error_between(best, others[0], metric) is None:
        lines.append(
            f"{metric} has no error estimate at {score.num_images:,} images; the next, "
            f"{others[0].setting.words()}, has {shown(others[0].score(metric))}. Small differences "
            "may be chance: KID tells its error."
        )
        return "\n".join(lines)
    alike = [row for row in others if are_alike(best, row, metric)]
    if not alike:
        lines.append(
            f"The next, {others[0].setting.words()}, has {shown(others[0].score(metric))}: outside "
            "the error of their difference."
        )
        return "\n".join(lines)
    num = f"{len(alike)} other setting{'s' * (len(alike) > 1)}"
    lines.append(
        f"{num} of {len(others)} cannot be told from it at {score.num_images:,} images: they lie "
        "within the error of the difference."
    )
    cheapest = min(alike, key=lambda row: row.cost.passes)
    if cheapest.cost.passes < best.cost.passes:
        lines.append(
            f"The cheapest of them: {cheapest.setting.words()}, {cheapest.cost.passes} predictions "
            f"an image in place of {best.cost.passes}: {shown(cheapest.score(metric))}."
        )
    return "\n".join(lines)


def shown(score: Score) -> str:
    """A score with its error."""
    error = "" if score.error is None else f" ± {score.error:.2g}"
    return f"{score.value:.4g}{error}"
