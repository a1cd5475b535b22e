"""All scores that an extractor's features allow, each beside that of as many real images."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pixelhdm.errors import check_at_least
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.moments import check_finite
from pixelhdm.evaluation.numbers import LEAST, Found, floors_of, numbers
from pixelhdm.evaluation.reference import Reference

FID_IMAGES = 10_000  # with fewer, drawn or real, a distance is not called FID
MANY = 9  # times as many other real images as drawn ones say nearly what all would
HIGHER = ("IS", "precision", "recall")
CLIP_SCORE = "CLIP score"  # it has no reference
HEADS = ("score", "value", "real at n", "n", "real", "extractor", "resize")
WORDS = ("score", "extractor", "resize")  # columns that stand left


class Score(NamedTuple):
    """One number that says how good images are, with what it is to be read by.

    Attributes:
        name: what it is.
        value: the number.
        error: its standard deviation over parts of the images; None where it is one number.
        num_images: how many were drawn.
        num_real: how many real ones they are compared with; None where the reference's file does
            not say, or with none.
        extractor: label of the network that saw them.
        resize: how they reached it, in words.
        floor: the same score of as many real images; None where the reference cannot tell.
        better: which numbers are better.
    """

    name: str
    value: float
    error: float | None
    num_images: int
    num_real: int | None
    extractor: str
    resize: str
    floor: float | None
    better: Literal["lower", "higher"]


def scores(
    extractor: Extractor,
    drawn: Features,
    reference: Reference,
    floors: Mapping[str, float] | None = None,
) -> list[Score]:
    """All scores of drawn images that an extractor and a reference allow.

    Args:
        extractor: what computed the features.
        drawn: features of all drawn images.
        reference: what they are compared with.
        floors: what `floors_of` gives for this extractor, reference and number of images, where
            several sets of as many images are scored; None computes it.

    Raises:
        UserError: there are fewer than 10 images, or their features are not finite.
    """
    num = len(drawn.pool)
    check_at_least(LEAST, num_images=num)
    for own in drawn:
        if own is not None:
            check_finite(own)
    if floors is None:
        floors = floors_of(extractor, reference, num)
    kept = None if reference.features is None else Features(reference.features)
    return [
        Score(
            name_of(own, extractor, num),
            own.value,
            own.error,
            num,
            own.num_real,
            extractor.label,
            extractor.resize,
            floors.get(own.kind),
            "higher" if own.kind in HIGHER else "lower",
        )
        for own in numbers(extractor, drawn, reference.moments, reference.spatial, kept)
    ]


def name_of(found: Found, extractor: Extractor, num: int) -> str:
    """What a score may be called."""
    has_enough = num >= FID_IMAGES and (found.num_real is None or found.num_real >= FID_IMAGES)
    if found.kind in ("FD", "sFD"):
        if extractor.is_official and has_enough:
            return found.kind.replace("FD", "FID")
        return f"{found.kind}-{extractor.label}"
    if found.kind == "KD":
        return "KID" if extractor.is_official else f"KD-{extractor.label}"
    return found.kind


def as_record(score: Score) -> dict[str, Any]:
    """A score as JSON keeps it."""
    return score._asdict()


def from_record(record: Mapping[str, Any]) -> Score:
    """The score that a record is of."""
    return Score(**record)


def score_table(scores: list[Score]) -> str:
    """Scores as aligned columns, and a line below for what a reader may stumble over."""
    rows = [HEADS, *(cells_of(score) for score in scores)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        columns = zip(HEADS, row, widths, strict=True)
        cells = (own.ljust(w) if head in WORDS else own.rjust(w) for head, own, w in columns)
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *notes(scores)])


def cells_of(score: Score) -> tuple[str, ...]:
    """A score's row."""
    value = readable(score.value)
    if score.error is not None:
        value += f" ± {readable(score.error, 2)}"
    return (
        f"{score.name} {'↓' if score.better == 'lower' else '↑'}",
        value,
        "–" if score.floor is None else readable(score.floor),
        f"{score.num_images:,}",
        "–" if score.num_real is None else f"{score.num_real:,}",
        score.extractor,
        score.resize,
    )


def readable(number: float, digits: int = 4) -> str:
    """A number with as many digits as say something."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.{digits}g}"


def notes(scores: list[Score]) -> list[str]:
    """What is to be said below a table."""
    found = [f"{score.name} is no FID: {why}." for score in scores if (why := why_no_fid(score))]
    gaps = [score for score in scores if score.floor is None and score.name != CLIP_SCORE]
    for num in sorted({score.num_images for score in gaps}):
        found.append(
            f"– under real at n: the reference does not keep enough real images to compare {num:,} "
            f"with as many others. One of main.py stats with --num_kept {2 * num} can, if the data "
            "are as many."
        )
    names = {score.name for score in scores}
    if names & {"FID", "FD-Inception"} and "IS" not in names:
        found.append(
            "No IS: these weights of Inception lack the classifier; torch-fidelity's file has it."
        )
    for score in scores:
        others = (score.num_real or 0) - score.num_images
        is_frechet = score.name.startswith(("FID", "sFID", "FD-", "sFD-"))
        if is_frechet and score.floor is not None and 0 < others < MANY * score.num_images:
            found.append(
                f"Real at n of Fréchet distances compares {score.num_images:,} real images with "
                f"the other {others:,}, not with all {score.num_real:,}: it stands somewhat high."
            )
    return list(dict.fromkeys(found))


def why_no_fid(score: Score) -> str:
    """Why a distance of Inception's features has another name; nothing for other scores."""
    if score.name not in ("FD-Inception", "sFD-Inception"):
        return ""
    if score.num_images < FID_IMAGES:
        return f"it is of {score.num_images:,} images, below {FID_IMAGES:,}"
    if score.num_real is not None and score.num_real < FID_IMAGES:
        return f"the reference is of {score.num_real:,} images, below {FID_IMAGES:,}"
    return "the weights are not known to be the published FID's"
