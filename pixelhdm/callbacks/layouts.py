"""What lies beside the images: a grid of classes, sheets of a sweep, and what the scorers of
benchmarks read.
"""

import re
from collections import Counter
from itertools import groupby, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from pixelhdm.callbacks.image_facts import has_facts, write_png
from pixelhdm.data.draws import DrawItem, DrawList, by_group
from pixelhdm.data.prompt_fields import IMAGE_ENDING, Prompt
from pixelhdm.errors import UserError
from pixelhdm.evaluation.npz import npz_name, write_image_npz
from pixelhdm.files import replacing
from pixelhdm.inference.showing.grid import NO_BREAK, Pixels, labelled_grid, tiled

GRID_ROWS, GRID_COLUMNS = 20, 20
DPG_COLUMNS, DPG_FOLDER = 2, "grids"
SHEETS = "sweep"


def folder_name(words: list[str]) -> str:
    """What a folder is called that is named after settings."""
    return re.sub(r"[^\w=.,-]+", "_", "_".join(words))


def pixels(file: Path) -> Pixels:
    """The content of a file."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def write_class_grid(folder: Path, items: list[DrawItem]) -> None:
    """grid.png: the first 20 classes, one row each, and 20 images of each."""
    groups = by_group(items)[:GRID_ROWS]
    rows = [(g[0].label, [pixels(folder / i.file) for i in g[:GRID_COLUMNS]]) for g in groups]
    with replacing(folder / "grid.png") as temporary:
        labelled_grid(rows).save(temporary, "png")


def write_npz(folder: Path, items: list[DrawItem]) -> Path:
    """samples_….npz: all images as arr_0, their classes as arr_1; they have one size.

    Classes or prompts come in turn: guided-diffusion's inception score is a mean over parts in
    the file's order, each of which must hold all of them.
    """
    size = items[0].height, items[0].width
    in_turn = zip_longest(*by_group(items))
    items = [item for images in in_turn for item in images if item is not None]
    classes = [item.condition for item in items if isinstance(item.condition, int)]
    labels = np.array(classes) if classes else None
    file = folder / npz_name(len(items), *size)
    images = (pixels(folder / item.file) for item in items)
    write_image_npz(file, images, len(items), *size, labels)
    return file


def check_folder(folder: Path, draw_list: DrawList) -> None:
    """Raise a UserError where a benchmark's folder holds images that are not to be drawn: its
    scorer would count them.
    """
    wanted = {folder / item.file for item in draw_list.items}
    if draw_list.layout == "geneval":
        found = folder.glob("[0-9]*/samples/*.png")
    elif draw_list.layout == "dpg":
        grids = {folder / grid_file(prompt) for prompt in draw_list.prompts}
        wanted |= grids
        found = [*folder.glob("samples/*.png"), *folder.glob(f"{DPG_FOLDER}/*")]
    else:
        return
    if others := sorted(set(found) - wanted):
        raise UserError(
            f"folder of a benchmark's images must hold no others, got {len(others)} in {folder}, "
            f"such as {others[0].relative_to(folder)}, which its scorer would count. Choose "
            "another --save_images.folder, or move them away."
        )


def grid_file(prompt: Prompt) -> str:
    """Where the grid of a prompt's images is saved."""
    return f"{DPG_FOLDER}/{prompt.file_name}.png"


def write_geneval_metadata(folder: Path, draw_list: DrawList) -> None:
    """NUMBER/metadata.jsonl: the line of each prompt, beside the folder of its images, as GenEval's
    evaluate_images.py reads it (github.com/djghosh13/geneval).
    """
    for number, prompt in enumerate(draw_list.prompts):
        file = folder / f"{number:05d}/metadata.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(f"{prompt.metadata}\n", encoding="utf-8")


def write_dpg_grids(
    folder: Path, items: list[DrawItem], draw_list: DrawList, facts: dict[str, dict[str, str]]
) -> None:
    """grids/PROMPT.png: the images of each prompt, two by two, as DPG's compute_dpg_bench.py cuts
    them (github.com/TencentQQGYLab/ELLA); the folder holds nothing else. `facts` are those of each
    file.
    """
    num = Counter(item.group for item in draw_list.items)
    for group in by_group(items):
        if len(group) < num[group[0].group]:
            continue  # the rest is still to be drawn
        file = folder / grid_file(draw_list.prompts[group[0].group])
        seeds = ", ".join(str(item.seed) for item in group)
        own = facts[group[0].file] | {"seed": seeds}
        if not has_facts(file, own):
            images = [pixels(folder / item.file) for item in group]
            write_png(file, tiled(images, DPG_COLUMNS), own)


def write_sheets(
    folder: Path,
    items: list[DrawItem],
    draw_list: DrawList,
    facts: dict[DrawItem, dict[str, str]],
) -> list[DrawItem]:
    """sweep/IMAGE.png: an image with all solvers and steps, a row each, and scales, a column each.

    Returns:
        The first item of each sheet; one of which some images are still to be drawn is not written.
    """
    num, firsts = Counter(item.sheet for item in draw_list.items), []
    for sheet, group in groupby(items, key=lambda item: item.sheet):
        own = list(group)
        if len(own) < num[sheet]:
            continue
        rows = [
            (row_label(facts[row[0]]), [pixels(folder / item.file) for item in row])
            for row in by_solver(own)
        ]
        scales = [f"scale {facts[item]['scale']}" for item in by_solver(own)[0]]
        shown = {name: facts[own[0]][name] for name in ("seed", "size", "checkpoint")}
        write_png(folder / sheet_file(own[0]), np.asarray(labelled_grid(rows, scales)), shown)
        firsts.append(own[0])
    return firsts


def by_solver(items: list[DrawItem]) -> list[list[DrawItem]]:
    """The images of each solver and number of steps."""
    groups = groupby(items, key=lambda item: (item.sampler, item.num_steps))
    return [list(group) for _, group in groups]


def row_label(facts: dict[str, str]) -> str:
    """What a row of a sheet shows."""
    solver = facts["sampler"].replace("Sampler", "", 1)
    calls = f"({facts['calls']}{NO_BREAK}calls)"
    return f"{solver}, {facts['steps']}{NO_BREAK}steps {calls}"


def sheet_file(item: DrawItem) -> str:
    """Where the sheet is saved that an image belongs to."""
    return f"{SHEETS}/{item.sheet}{IMAGE_ENDING}"
