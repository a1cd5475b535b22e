"""A folder of images of any depth, with text files beside them or a metadata table."""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pixelhdm.data.prepare.classes import first_folder, sort_items
from pixelhdm.data.prepare.items import (
    IMAGE_ENDINGS,
    TEXT_ENDINGS,
    FilePlace,
    Item,
    Listing,
    Rejection,
)
from pixelhdm.data.prepare.readers.metadata import ENDINGS, Row, read_rows
from pixelhdm.errors import UserError

TABLES = tuple(f"metadata{ending}" for ending in ENDINGS)


def list_folder(root: Path, inner: str = "", skip: Path | None = None) -> Listing:
    """The images of a folder.

    Args:
        root: the folder that paths are relative to.
        inner: the folder in it to look into, "" for all of it; class folders lie in this one.
        skip: a folder to leave out.

    Raises:
        UserError: a metadata table cannot be read.
    """
    items, others, tables, rejected = [], Counter(), [], []
    for folder, names, sizes in walk(root / inner, skip, rejected):
        inside = os.path.relpath(folder, root / inner).replace(os.sep, "/")
        inside = "" if inside == "." else f"{inside}/"
        tables += [folder / name for name in TABLES if name in sizes]
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() not in IMAGE_ENDINGS:
                others[ending.lower()] += 1
                continue
            texts = texts_beside(str(folder), stem, name, sizes)
            for ending, _ in texts:
                others[ending] -= 1
            items.append(
                Item(
                    posixpath.join(inner, inside + name),
                    sizes[name],
                    FilePlace(os.path.join(folder, name)),
                    folder=first_folder(inside + name),
                    texts=texts,
                )
            )
    listing = Listing("a folder of images", sort_items(items), rejected=rejected)
    for table in tables:
        others[table.suffix] -= 1
    if any(item.texts for item in items):
        listing.kind = "a folder of images with text files beside them"
    if tables:
        listing.kind = f"a folder of images with {tables[0].name}"
        join(listing, root, tables)
    listing.others = +others
    return listing


def walk(
    top: Path, skip: Path | None, rejected: list[Rejection]
) -> Iterator[tuple[Path, list[str], dict[str, int]]]:
    """Each folder below one with its files' names in order and their sizes in bytes.

    Hidden files and folders are left out; links are followed, each folder is visited once.
    """
    seen, pending = set(), [top]
    while pending:
        folder = pending.pop()
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        if key in seen or (skip is not None and skip.exists() and folder.samefile(skip)):
            continue
        seen.add(key)
        sizes, below = {}, []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    if entry.is_dir():
                        below.append(folder / entry.name)
                    else:
                        sizes[entry.name] = entry.stat().st_size
                except OSError as error:
                    if entry.name.lower().endswith(IMAGE_ENDINGS):
                        path = os.path.relpath(entry.path, top).replace(os.sep, "/")
                        rejected.append(Rejection(path, "missing", error.strerror or str(error)))
        pending += sorted(below, reverse=True)
        yield folder, sorted(sizes), sizes


def texts_beside(
    folder: str, stem: str, name: str, names: dict[str, int] | set[str]
) -> tuple[tuple[str, FilePlace], ...]:
    """The text files of an image: a.txt of a.jpg, or a.jpg.txt."""
    return tuple(
        (ending, FilePlace(os.path.join(folder, start + ending)))
        for start in dict.fromkeys((stem, name))
        for ending in TEXT_ENDINGS
        if start + ending in names
    )


def join(listing: Listing, root: Path, tables: list[Path]) -> None:
    """Give images what the tables say of them."""
    items = {item.path: item for item in listing.items}
    known = set()
    for table in tables:
        base = os.path.relpath(table.parent, root).replace(os.sep, "/")
        for row in read_rows(table):
            path = posixpath.normpath(posixpath.join(base, row.file.replace("\\", "/")))
            if path not in items:
                detail = f"named in {table.name}"
                listing.rejected.append(Rejection(path, "missing", detail))
                continue
            known.add(path)
            fill(items[path], row)
    if not known and items:
        raise UserError(
            f"{tables[0]} must name images of its folder, got none that is there. "
            "file_name is relative to the table's folder."
        )
    if unnamed := len(items) - len(known):
        first = next(path for path in items if path not in known)
        listing.notes.append(f"no metadata row: {unnamed:,} images, kept, the first {first}")


def fill(item: Item, row: Row) -> None:
    """Give an image what a row says of it."""
    item.captions += row.captions
    item.class_name, item.label, item.metadata = row.class_name, row.label, row.metadata
