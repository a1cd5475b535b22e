"""Indexes for tars that stay as they are."""

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pixelhdm.data.indexing.formats import write_shard_index
from pixelhdm.data.indexing.members import facts_of, grouped, image_extensions
from pixelhdm.data.indexing.tar import Member, Window, walk
from pixelhdm.data.prepare.classes import MOST_CLASSES
from pixelhdm.data.prepare.items import TEXT_ENDINGS
from pixelhdm.data.prepare.readers.tars import COMPRESSED, classes_beside, tars_of
from pixelhdm.data.prepare.shards import write_json
from pixelhdm.data.prepare.verify import DATASET
from pixelhdm.data.prepare.work import in_order
from pixelhdm.data.reading.storage import ReadError, Storage, is_local
from pixelhdm.errors import UserError, one_line


class Indexed(NamedTuple):
    """What was found in a tar.

    Attributes:
        files: the entries of its index by name.
        problems: what is wrong with it.
        num_images: number of images in samples.
        last_label: the highest class number, -1 for none.
    """

    files: dict[str, dict[str, Any]]
    problems: list[str]
    num_images: int
    last_label: int


def index_tars(source: str, num_processes: int) -> str:
    """Write an index for each tar, and dataset.json; returns a report.

    Args:
        source: the tars.
        num_processes: how many read at once.

    Raises:
        UserError: a tar is compressed or cannot be read, or its folder cannot be written to.
    """
    paths = tars_of(source)
    folders = check_places(paths)
    results = in_order(partial(index_tar, Storage()), paths, min(num_processes, len(paths)))
    num_images, last, problems = 0, -1, []
    progress = tqdm(zip(paths, results, strict=True), total=len(paths), unit="tar", disable=None)
    for path, found in progress:
        write_shard_index(Path(path), found.files)
        num_images, last = num_images + found.num_images, max(last, found.last_label)
        problems += [f"  {path}: {problem}" for problem in found.problems]
    if len(folders) == 1:
        names = [path.rpartition("/")[2] for path in paths]
        classes = list(classes_beside(os.path.dirname(paths[0])))
        classes += [str(n) for n in range(len(classes), last + 1)] if last < MOST_CLASSES else []
        about = {"classes": classes, "num_images": num_images, "shards": names}
        write_json(Path(folders.pop()) / DATASET, about)
    text = f"{num_images:,} images in {len(paths):,} tars indexed; no image was decoded, "
    return "\n".join([text + "--verify does that.", *problems])


def check_places(paths: list[str]) -> set[str]:
    """The folders of tars.

    Raises:
        UserError: a tar is compressed, or a folder cannot be written to.
    """
    packed = next((path for path in paths if path.endswith(COMPRESSED)), None)
    if packed:
        raise UserError(
            f"index_only needs tars that are not compressed, got {packed}. "
            "Leave index_only out: prepare then writes new shards."
        )
    folders = {os.path.dirname(path) or "." for path in paths}
    for folder in sorted(folders):
        if not all(map(is_local, paths)) or not os.access(folder, os.W_OK):
            raise UserError(
                f"index_only must be able to write beside the tars, got {folder}, where it cannot. "
                "Train on them as they are: they are then indexed into a cache."
            )
    return folders


def index_tar(storage: Storage, path: str) -> Indexed:
    """Everything that the index of a tar says; every byte of its images is read."""
    try:
        window = Window(storage, path)
        found = walk(window, lambda *place: facts_of(window.read, Member(*place, {}), True))
    except ReadError as error:
        raise UserError(
            f"{path} must be a readable tar, got: {one_line(error)}. Remove or replace it."
        ) from error
    files = {m.name: {"offset": m.offset, "length": m.length, **m.facts} for m in found.members}
    samples, doubled = grouped(found.members)
    num_images, last = 0, -1
    for parts in samples.values():
        labels = [member.facts.get("label", -1) for member in parts.values()]
        last = max(last, *labels)
        text = next((parts[e[1:]] for e in TEXT_ENDINGS if e[1:] in parts), None)
        for extension in image_extensions(parts):
            num_images += 1
            entry = files[parts[extension].name]
            if max(labels) >= 0:
                entry["label"] = max(labels)
            if text and text.name.endswith(".json"):
                entry |= {"json_path": text.name, "json_offset": text.offset}
                entry["json_length"] = text.length
    problems = [f"{name} is cut off" for name in found.torn]
    problems += [f"no sound header from byte {a:,} to {b:,}" for a, b in found.gaps]
    problems += [f"cut off at byte {found.cut_at:,}"] if found.cut_at is not None else []
    problems += [f"{doubled:,} members of a name that an earlier one has"] if doubled else []
    broken = sum(file.get("width") == 0 for file in files.values())
    problems += [f"{broken:,} images whose size cannot be read"] if broken else []
    return Indexed(files, problems, num_images, last)
