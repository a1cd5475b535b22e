"""What an evaluation writes down and prints."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelhdm.checkpoints import step_of
from pixelhdm.data.draws import DrawItem
from pixelhdm.evaluation.image_store import ImageStore
from pixelhdm.evaluation.npz import npz_name, write_image_npz
from pixelhdm.evaluation.scores import Score, as_record, score_table
from pixelhdm.files import replacing
from pixelhdm.inference.showing.grid import labelled_grid

SCORES, SAMPLES = "scores.json", "samples.png"
ROWS, COLUMNS = 10, 8  # of the samples


def entry_of(
    scores: list[Score],
    shared: dict[str, str],
    settings: dict[str, Any],
    kind: str,
    reference: str,
    folder: Path,
) -> dict[str, Any]:
    """What is kept of an evaluation; `shared` is what all images depend on."""
    return {
        "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "kind": kind,
        "checkpoint": shared["checkpoint"],
        "step": step_of(Path(shared["checkpoint"])),
        "weights": shared["weights"],
        "settings": settings,
        "num_images": scores[0].num_images,
        "reference": reference,
        "folder": str(folder),
        "scores": [as_record(score) for score in scores],
    }


def write_scores(folder: Path, entry: dict[str, Any]) -> None:
    """scores.json: the same, to read."""
    with replacing(folder / SCORES) as temporary:
        text = json.dumps(entry, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_samples(store: ImageStore, each: list[DrawItem]) -> None:
    """samples.png: the first 10 classes or prompts, a row each, and the first 8 images of each."""
    rows = [
        (item.label, [store.image(number) for number in places(group, len(each), store)])
        for group, item in enumerate(each[: min(ROWS, store.num_images)])
    ]
    save(labelled_grid(rows), store.folder / SAMPLES)


def places(group: int, num_groups: int, store: ImageStore) -> range:
    """The numbers of a group's first images."""
    return range(group, store.num_images, num_groups)[:COLUMNS]


def save(image: Image.Image, file: Path) -> None:
    """Write a picture whole."""
    with replacing(file) as temporary:
        image.save(temporary, "png")


def write_array(store: ImageStore, each: list[DrawItem]) -> None:
    """samples_….npz: all images as arr_0, their classes as arr_1."""
    num, size = store.num_images, (each[0].height, each[0].width)
    conditions = [item.condition for item in each]
    labels = None
    if isinstance(conditions[0], int):
        labels = np.array(conditions)[np.arange(num) % len(conditions)]
    images = (image for chunk in store.chunks for image in store.read(chunk).images)
    write_image_npz(store.folder / npz_name(num, *size), images, num, *size, labels)


def report_text(scores: list[Score], each: list[DrawItem], entry: dict[str, Any]) -> str:
    """What a person is told."""
    settings = entry["settings"]
    lines = [
        f"{entry['checkpoint']} ({entry['weights']}), {settings['sampler']}, "
        f"{settings['steps']} steps, scale {settings['scale']}",
        f"{entry['num_images']:,} images of {settings['size']}, {shares(each, entry)}; compared "
        f"with {entry['reference']}",
        "",
        score_table(scores),
        "",
        f"Scores, samples and images: {entry['folder']}",
    ]
    return "\n".join(lines)


def shares(each: list[DrawItem], entry: dict[str, Any]) -> str:
    """How many images there are of each class or prompt."""
    num, groups = entry["num_images"], len(each)
    kind = "classes" if isinstance(each[0].condition, int) else "prompts"
    if groups == 1:
        return f"all of one {'class' if kind == 'classes' else 'prompt'}"
    if num < groups:
        return f"one of each of the first {num:,} of {groups:,} {kind}"
    few, more = num // groups, num % groups
    if not more:
        return f"{few:,} of each of {groups:,} {kind}"
    return f"{few + 1:,} of each of the first {more:,} of {groups:,} {kind}, {few:,} of the others"
