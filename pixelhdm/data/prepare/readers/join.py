"""Joining the images of a folder with the metadata tables in it."""

import os
import posixpath
from pathlib import Path

from pixelhdm.data.coverage import counted
from pixelhdm.data.prepare.items import Item, Listing, Rejection
from pixelhdm.data.prepare.labels import give_label
from pixelhdm.data.prepare.readers.metadata import ENDINGS, Row, read_rows
from pixelhdm.errors import UserError

TABLES = tuple(f"metadata{ending}" for ending in ENDINGS)
SPLITS = {"train", "val", "valid", "validation", "test"}  # names of their folders


def join(listing: Listing, root: Path, inner: str, tables: list[Path]) -> None:
    """Give images what the tables say of them.

    Args:
        listing: the images.
        root: the folder that their paths are relative to.
        inner: the split's folder in it that the images lie in, "" for no split.
        tables: the tables.

    Raises:
        UserError: a table cannot be read, or names no image that is there.
    """
    items = {item.path: item for item in listing.items}
    known, absent = set(), 0
    for table in tables:
        base = os.path.relpath(table.parent, root).replace(os.sep, "/")
        for row in read_rows(table):
            path = posixpath.normpath(posixpath.join(base, row.file.replace("\\", "/")))
            if path in items:
                known.add(path)
                fill(items[path], row)
            elif not inner or path.partition("/")[0] not in SPLITS - {inner}:
                absent += 1
                listing.rejected.append(Rejection(path, "missing", f"named in {table.name}"))
    if absent and items and not known:
        raise UserError(
            f"{tables[0]} must name images of its folder, got none that is there. "
            "file_name is relative to the table's folder."
        )
    if unnamed := len(items) - len(known):
        first = next(path for path in items if path not in known)
        listing.notes.append(
            f"no metadata row: {counted(unnamed, 'image')}, kept, the first {first}"
        )


def fill(item: Item, row: Row) -> None:
    """Give an image what a row says of it."""
    item.captions += row.captions
    give_label(item, row.label)
    if row.metadata:
        item.metadata = (item.metadata or {}) | row.metadata
