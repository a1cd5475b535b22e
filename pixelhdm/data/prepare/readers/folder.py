"""A folder of images of any depth, with text files beside them or a metadata table."""

import os
import posixpath
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from pixelhdm.data.prepare.classes import first_folder, sort_items
from pixelhdm.data.prepare.items import (
    IMAGE_ENDINGS,
    TEXT_ENDINGS,
    FilePlace,
    Item,
    Listing,
    Rejection,
)
from pixelhdm.data.prepare.readers.join import TABLES, join
from pixelhdm.data.prepare.settings import is_prepared

IRREGULAR = "not a regular file"  # a pipe, which is never read to its end, a socket or a device


class Folder(NamedTuple):
    """What lies in one folder.

    Attributes:
        path: the folder.
        sizes: of its regular files, in bytes, by name.
        bad: the names of images that are no such files, with reason and detail.
    """

    path: Path
    sizes: dict[str, int]
    bad: list[tuple[str, str, str]]


def list_folder(root: Path, inner: str = "", skip: Path | None = None) -> Listing:
    """The images of a folder.

    Args:
        root: the folder that paths are relative to.
        inner: the folder in it to look into, "" for all of it; class folders lie in this one.
        skip: a folder to leave out.

    Raises:
        UserError: a metadata table cannot be read.
    """
    listing, tables = Listing("a folder of images", []), []
    if inner:  # a table above the splits tells of all of them
        tables += [root / name for name in TABLES if (root / name).is_file()]
    for folder in walk(root / inner, skip):
        inside = os.path.relpath(folder.path, root / inner).replace(os.sep, "/")
        inside = "" if inside == "." else f"{inside}/"
        tables += [folder.path / name for name in TABLES if name in folder.sizes]
        add_folder(listing, folder, inner, inside)
    listing.items = sort_items(listing.items)
    if any(item.texts for item in listing.items):
        listing.kind = "a folder of images with text files beside them"
    if tables:
        listing.kind = f"a folder of images with {tables[0].name}"
        join(listing, root, inner, tables)
    return listing


def add_folder(listing: Listing, folder: Folder, inner: str, inside: str) -> None:
    """Add the images that lie right in one folder to a listing."""
    start = posixpath.join(inner, inside)
    listing.rejected += [Rejection(start + name, *why) for name, *why in folder.bad]
    used, others = set(TABLES), []
    for name in sorted(folder.sizes):
        if not name.lower().endswith(IMAGE_ENDINGS):
            others.append(name)
            continue
        path = os.path.join(folder.path, name)
        texts = texts_beside(str(folder.path), name, folder.sizes)
        used |= {os.path.basename(place.path) for _, place in texts}
        own = first_folder(inside + name)
        item = Item(start + name, folder.sizes[name], FilePlace(path), folder=own, texts=texts)
        listing.items.append(item)
    listing.others.update(os.path.splitext(name)[1].lower() for name in others if name not in used)


def walk(top: Path, skip: Path | None) -> Iterator[Folder]:
    """Each folder below one.

    Hidden files and folders and earlier preparations are left out; links are followed, each folder
    is visited once.
    """
    seen, pending = set(), [top]
    while pending:
        path = pending.pop()
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if key in seen or (path != top and is_output(path, skip)):
            continue
        seen.add(key)
        folder, below = Folder(path, {}, []), []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    below.append(path / entry.name)
                else:
                    add_file(folder, entry)
        folder.bad.sort()
        pending += sorted(below, reverse=True)
        yield folder


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder; a link that leads round in a ring is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def add_file(folder: Folder, entry: os.DirEntry) -> None:
    """Note a file of a folder."""
    is_image = entry.name.lower().endswith(IMAGE_ENDINGS)
    try:
        status = entry.stat()
    except OSError as error:
        if is_image:
            folder.bad.append((entry.name, "missing", error.strerror or str(error)))
        return
    if stat.S_ISREG(status.st_mode):
        folder.sizes[entry.name] = status.st_size
    elif is_image:
        folder.bad.append((entry.name, "unreadable", IRREGULAR))


def is_output(folder: Path, out: Path | None) -> bool:
    """Whether a folder is the one to write to, or an earlier preparation's."""
    return is_prepared(folder) or (out is not None and out.exists() and folder.samefile(out))


def texts_beside(
    folder: str, name: str, names: Collection[str]
) -> tuple[tuple[str, FilePlace], ...]:
    """The text files of an image: a.txt of a.jpg, or a.jpg.txt."""
    return tuple(
        (ending, FilePlace(os.path.join(folder, start + own)))
        for start in dict.fromkeys((os.path.splitext(name)[0], name))
        for ending in TEXT_ENDINGS
        for own in [e for e in (ending, ending.upper()) if start + e in names][:1]
    )
