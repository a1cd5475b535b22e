"""A file that lists images, one a line or row."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pixelhdm.data.prepare.classes import sort_items
from pixelhdm.data.prepare.items import FilePlace, Item, Listing, Rejection
from pixelhdm.data.prepare.readers.folder import fill, texts_beside
from pixelhdm.data.prepare.readers.metadata import ENDINGS as TABLE_ENDINGS
from pixelhdm.data.prepare.readers.metadata import Row, read_rows

ENDINGS = (".txt", *TABLE_ENDINGS)


def list_file(file: Path) -> Listing:
    """The images that a list names, relative to the list's folder.

    Raises:
        UserError: a table cannot be read.
    """
    items, rejected = [], []
    for row in read_paths(file) if file.suffix == ".txt" else read_rows(file):
        path = os.path.join(file.parent, row.file)
        try:
            size = os.stat(path).st_size
        except OSError as error:
            rejected.append(Rejection(row.file, "missing", error.strerror or str(error)))
            continue
        folder, name = os.path.split(path)
        texts = texts_beside(folder, os.path.splitext(name)[0], name, names_in(folder))
        items.append(Item(row.file.replace(os.sep, "/"), size, FilePlace(path), texts=texts))
        fill(items[-1], row)
    return Listing(f"a list of files ({file.name})", sort_items(items), rejected=rejected)


def read_paths(file: Path) -> Iterator[Row]:
    """The lines of a plain list."""
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            if line.strip():
                yield Row(line.strip(), (), None, None, None)


@lru_cache(maxsize=1024)
def names_in(folder: str) -> set[str]:
    """The names in a folder."""
    return set(os.listdir(folder or "."))
