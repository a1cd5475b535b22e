"""What GenEval's program has written, as scores."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pixelhdm.errors import UserError
from pixelhdm.evaluation.benchmarks.benchmark import Result, name_of, size_note
from pixelhdm.evaluation.scores import Score

OFFICIAL = (553, 4)
TRUST = (
    "GenEval's detector has drifted from people's judgement, by up to 17.7 % with newer models, "
    "and tuning on prompts of its kind raises it: compare models that were trained alike."
)


def from_result(line: str, file: Path) -> dict[str, Any]:
    """A line of the results."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"results must be whole JSON lines, got {line[:60]} in {file}.") from error
    if not isinstance(found, dict) or not found.keys() >= {"filename", "correct", "metadata"}:
        raise UserError(
            f"results must have filename, correct, metadata, got {line[:60]} in {file}."
        )
    return found


def place_of(name: str) -> str:
    """An image's file in its folder, whatever machine the folder was on."""
    return "/".join(re.split(r"[/\\]", name)[-3:])


def result_of(correct: dict[str, list[list[bool]]], is_blind: bool) -> Result:
    """The scores of correct or wrong images, by task and prompt; `is_blind` where the detector saw
    nothing in any image.
    """
    prompts = [marks for task in correct.values() for marks in task]
    num = len(prompts[0])
    name = name_of("GenEval", len(prompts), num, OFFICIAL)
    shares = {tag: [float(np.mean(marks)) for marks in task] for tag, task in correct.items()}
    errors = [error_of_mean(task) for task in shares.values()]
    tasks = [
        score(f"{name} {tag}", float(np.mean(task)), error, num * len(task))
        for (tag, task), error in zip(shares.items(), errors, strict=True)
    ]
    known = None not in errors
    error = float(np.linalg.norm(errors)) / len(tasks) if known else None
    images = num * len(prompts)
    overall = score(name, float(np.mean([task.value for task in tasks])), error, images)
    by_image = score(f"{name} images", float(np.mean(prompts)), None, images)
    by_prompt = score(f"{name} prompts", float(np.mean([any(p) for p in prompts])), None, images)
    notes = [TRUST, size_note(len(prompts), num, OFFICIAL)]
    if is_blind:
        notes.append(
            "The detector saw no object in any image: they show none, or its weights are not "
            "those of its mmdet (github.com/djghosh13/geneval/issues/8)."
        )
    rows = [
        (tag, percent(task), f"{round(task.value * task.num_images)} of {task.num_images} images")
        for tag, task in zip(shares, tasks, strict=True)
    ]
    rows += [
        ("correct images", percent(by_image), f"of {images:,}"),
        (
            "correct prompts",
            percent(by_prompt),
            f"of {len(prompts):,}: at least one of their {num} images",
        ),
        (name, plus_minus(overall), f"mean over {len(tasks)} tasks"),
    ]
    return Result([overall, *tasks, by_image, by_prompt], rows, [note for note in notes if note])


def score(name: str, value: float, error: float | None, num_images: int) -> Score:
    """A share of images."""
    return Score(
        name,
        value,
        error,
        num_images,
        num_real=None,
        extractor="Mask2Former Swin-S, CLIP ViT-L/14",
        resize="its scorer's",
        floor=None,
        better="higher",
    )


def error_of_mean(values: list[float]) -> float | None:
    """Standard error of the mean of prompts; None of one."""
    return None if len(values) < 2 else float(np.std(values, ddof=1) / len(values) ** 0.5)


def percent(share: Score) -> str:
    """A share, in percent."""
    error = "" if share.error is None else f" ± {100 * share.error:.2f}"
    return f"{100 * share.value:.2f}{error} %"


def plus_minus(share: Score) -> str:
    """A share with its error."""
    return f"{share.value:.5f}" + ("" if share.error is None else f" ± {share.error:.5f}")
