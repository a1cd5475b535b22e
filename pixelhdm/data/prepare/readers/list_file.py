"""A file that lists images, one a line or row."""

import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pixelhdm.data.prepare.classes import sort_items
from pixelhdm.data.prepare.items import FilePlace, Item, Listing, Rejection
from pixelhdm.data.prepare.readers.folder import IRREGULAR, texts_beside
from pixelhdm.data.prepare.readers.join import fill
from pixelhdm.data.prepare.readers.metadata import ENDINGS as TABLE_ENDINGS
from pixelhdm.data.prepare.readers.metadata import Row, read_rows

ENDINGS = (".txt", *TABLE_ENDINGS)


def list_file(file: Path) -> Listing:
    """The images that a list names, relative to the list's folder.

    Raises:
        UserError: a table cannot be read.
    """
    items, rejected = [], []
    for row in read_paths(file) if file.suffix.lower() == ".txt" else read_rows(file):
        path = os.path.join(file.parent, row.file)
        try:
            status = os.stat(path)
        except OSError as error:
            rejected.append(Rejection(row.file, "missing", error.strerror or str(error)))
            continue
        except ValueError as error:  # a name that no file can have
            rejected.append(Rejection(row.file, "missing", str(error)))
            continue
        if not stat.S_ISREG(status.st_mode):
            detail = "a folder" if stat.S_ISDIR(status.st_mode) else IRREGULAR
            rejected.append(Rejection(row.file, "unreadable", detail))
            continue
        folder, name = os.path.split(path)
        texts = texts_beside(folder, name, names_in(folder))
        name = row.file.replace(os.sep, "/")
        items.append(Item(name, status.st_size, FilePlace(path), texts=texts))
        fill(items[-1], row)
    return Listing(f"a list of files ({file.name})", sort_items(items), rejected=rejected)


def read_paths(file: Path) -> Iterator[Row]:
    """The lines of a plain list; one with # first is a comment, where no file has its name."""
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in map(str.strip, lines):
            is_comment = line.startswith("#") and not os.path.exists(file.parent / line)
            if line and not is_comment:
                yield Row(line)


@lru_cache(maxsize=1024)
def names_in(folder: str) -> set[str]:
    """The names of the files in a folder."""
    with os.scandir(folder or ".") as entries:
        return {entry.name for entry in entries if entry.is_file()}
