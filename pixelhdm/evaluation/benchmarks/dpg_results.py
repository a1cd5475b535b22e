"""What DPG's program has written, as scores."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pixelhdm.errors import UserError
from pixelhdm.evaluation.benchmarks.benchmark import Result, name_of, size_note, text_of
from pixelhdm.evaluation.scores import Score

OFFICIAL = (1065, 4)
TRUST = (
    "DPG tells models apart only coarsely above 85. Its figures by category come from the last "
    "image of each prompt alone (github.com/TencentQQGYLab/ELLA/issues/60); the score itself from "
    "all."
)


class Answers(NamedTuple):
    """What the scorer's text says.

    Attributes:
        prompts: the scores of each prompt's images, by name.
        categories: score in percent of each category: coarse (entity), then fine (entity - part).
        total: the overall score in percent.
    """

    prompts: dict[str, list[float]]
    categories: dict[str, float]
    total: float


def result_of(answers: Answers, num_images: int, file: Path, missing: list[str]) -> Result:
    """The scores of prompts with `num_images` each; `missing` are those that were left out."""
    means = [float(np.mean(scores)) for scores in answers.prompts.values()]
    num, mean = len(means), 100 * float(np.mean(means))
    if not math.isclose(mean, answers.total, abs_tol=1e-6):
        raise UserError(
            f"results must have the overall score of their prompts, {mean:.6f}, got "
            f"{answers.total:.6f} in {file}. It is not of one run: score again."
        )
    drawn = num + len(missing)
    name = name_of("DPG", drawn, num_images, OFFICIAL)
    error = 100 * float(np.std(means, ddof=1) / num**0.5) if num > 1 else None
    categories = answers.categories.items()
    rows = [(category, f"{value:.2f}", "") for category, value in categories]
    shown = f"{answers.total:.3f}" + ("" if error is None else f" ± {error:.3f}")
    rows.append((name, shown, f"of {num:,} prompts, {num_images} images each"))
    notes = [TRUST, size_note(drawn, num_images, OFFICIAL)]
    if missing:
        notes.append(
            f"The scorer left out {missing[0]}: it skips the first line of its questions, and "
            "fails where others build on it."
        )
    overall = score(name, answers.total, error, num_images * num)
    parts = [score(f"{name} {category}", value, None, num) for category, value in categories]
    return Result([overall, *parts], rows, [note for note in notes if note])


def answers_in(file: Path, num_images: int) -> Answers:
    """What a text of the scorer says: a line a prompt, then the scores by category, then the
    overall score.
    """
    text = text_of(file)
    found = re.search(r"^Model: .*\n((?:.*\n)*?)DPG-Bench score: (\S+)$", text, re.MULTILINE)
    if found is None:
        raise UserError(
            f"results must end with the DPG-Bench score, got {file} without. Its scorer was "
            "stopped, or it is another text."
        )
    prompts: dict[str, list[float]] = {}
    for line in text[: found.start()].splitlines():
        image, *numbers = line.rsplit(", ", num_images + 1)
        name = re.split(r"[/\\]", image)[-1].removesuffix(".png")
        scores = [as_number(number, file) for number in numbers[:-1]]
        if name in prompts or len(scores) != num_images:
            raise UserError(
                f"results must have one line a prompt with {num_images} scores, got {line[:80]} in "
                f"{file}."
            )
        prompts[name] = scores
    lines = re.findall(r"^\t(.+): (\S+)$", found[1], re.MULTILINE)
    categories: dict[str, float] = {}
    for name, value in lines:  # a coarse one comes before the fine one that may have its name
        categories.setdefault(name.strip(" -"), as_number(value, file))
    return Answers(prompts, categories, as_number(found[2], file))


def as_number(text: str, file: Path) -> float:
    """A number that the scorer wrote."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"results must hold finite numbers, got {text[:40]} in {file}.")
    return value


def score(name: str, value: float, error: float | None, num_images: int) -> Score:
    """A score in percent."""
    return Score(
        name,
        value,
        error,
        num_images,
        num_real=None,
        extractor="mPLUG-large VQA",
        resize="its scorer's",
        floor=None,
        better="higher",
    )
