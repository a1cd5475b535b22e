"""Indexes for tars that stay as they are."""

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pixelhdm.data.coverage import counted
from pixelhdm.data.indexing.formats import write_shard_index
from pixelhdm.data.indexing.members import facts_of, grouped, image_extensions
from pixelhdm.data.indexing.tar import Member, Walk, Window, walk
from pixelhdm.data.prepare.classes import MOST_CLASSES
from pixelhdm.data.prepare.earlier_index import Entries, earlier_about, earlier_files, merged
from pixelhdm.data.prepare.items import TEXT_ENDINGS
from pixelhdm.data.prepare.lock import room_in
from pixelhdm.data.prepare.readers.tar_files import flaw, tars_of, unreadable
from pixelhdm.data.prepare.readers.tars import classes_beside
from pixelhdm.data.prepare.shards import DATASET, write_json
from pixelhdm.data.prepare.work import in_order
from pixelhdm.data.reading.storage import COMPRESSED, ReadError, Storage, is_local
from pixelhdm.errors import UserError


class Indexed(NamedTuple):
    """What was found in a tar.

    Attributes:
        files: the entries of its index by name; none where it is no tar.
        problems: what is wrong with it.
        num_images: number of images in samples.
        last_label: the highest class number, -1 for none.
    """

    files: Entries
    problems: list[str]
    num_images: int
    last_label: int


def index_tars(source: str, num_processes: int) -> str:
    """Write an index for each tar, and dataset.json; returns a report.

    Args:
        source: the tars.
        num_processes: how many read at once.

    Raises:
        UserError: a tar is compressed or cannot be read, its folder cannot be written to, or a
            file of another kind lies where an index belongs.
    """
    paths = tars_of(source)
    folders = check_places(paths)
    earlier = [earlier_files(path) for path in paths]  # all, before the first is written
    abouts = {folder: earlier_about(Path(folder)) for folder in folders}
    results = in_order(partial(index_tar, Storage()), paths, min(num_processes, len(paths)))
    num_images, last, problems, num_bad = 0, -1, [], 0
    progress = tqdm(
        zip(paths, earlier, results, strict=True), total=len(paths), unit="tar", disable=None
    )
    for path, known, found in progress:
        num_bad += not found.files
        if len(paths) == num_bad:
            raise UserError(f"source must be tars with images, got {path}, {found.problems[0]}.")
        files, damage = merged(known, found.files)
        if found.files:
            with room_in(Path(path).parent):
                write_shard_index(Path(path), files)
        num_images, last = num_images + found.num_images, max(last, found.last_label)
        problems += [f"  {path}: {problem}" for problem in [*found.problems, *damage]]
    if len(folders) == 1:
        folder = Path(folders.pop())
        write_about(folder, abouts[str(folder)], paths, num_images, last)
    text = f"{counted(num_images, 'image')} in {counted(len(paths), 'tar')} indexed; no image was "
    return "\n".join([text + "decoded, --verify does that.", *problems])


def write_about(
    folder: Path, earlier: dict[str, Any], paths: list[str], num_images: int, last_label: int
) -> None:
    """Write a folder's dataset.json; one that lists more tars than these stays as it is."""
    names = [os.path.basename(path) for path in paths]
    if not {*earlier.get("shards", [])} <= {*names}:
        return
    classes = list(classes_beside(str(folder)))
    if last_label < MOST_CLASSES:
        classes += [str(number) for number in range(len(classes), last_label + 1)]
    about = {"classes": classes, "num_images": num_images, "shards": names}
    with room_in(folder):
        write_json(folder / DATASET, earlier | about)


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
    folders = {str(Path(path).parent) for path in paths}
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
        if not found.members:
            is_torn = bool(found.torn)
            why = "cut off within its first file" if is_torn else f"which is {flaw(storage, path)}"
            return Indexed({}, [why], 0, -1)
    except ReadError as error:
        raise unreadable(path, error) from error
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
    return Indexed(files, problems_of(found, files, doubled), num_images, last)


def problems_of(found: Walk, files: Entries, doubled: int) -> list[str]:
    """What is wrong with a tar that has files."""
    problems = [f"{name} is cut off" for name in found.torn]
    problems += [f"no sound header from byte {a:,} to {b:,}" for a, b in found.gaps]
    problems += [f"cut off at byte {found.cut_at:,}"] if found.cut_at is not None else []
    if doubled:
        problems.append(f"{counted(doubled, 'member')} of a name that an earlier one has")
    if broken := sum(file.get("width") == 0 for file in files.values()):
        problems.append(f"{counted(broken, 'image')} whose size cannot be read")
    return problems
