"""Tables that name image files: metadata.jsonl, .csv, .parquet."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pixelhdm.data.captions import CAPTION_KEYS, captions_of
from pixelhdm.errors import UserError, one_line

ENDINGS = (".jsonl", ".csv", ".parquet")
FILE_KEYS = ("file_name", "filename", "file", "path", "image", "image_path")
LABEL_KEYS = ("label", "class", "class_name", "label_name", "category")


class Row(NamedTuple):
    """What a table says of one image.

    Attributes:
        file: the file as the table names it.
        captions: its captions, cleaned.
        class_name: its class's name, if it gives one.
        label: its class's number, if it gives one.
        metadata: its other columns, if there are any.
    """

    file: str
    captions: tuple[str, ...]
    class_name: str | None
    label: int | None
    metadata: dict[str, Any] | None


def read_rows(table: Path) -> Iterator[Row]:
    """The rows of a table.

    Raises:
        UserError: it cannot be read, or a row names no file.
    """
    try:
        for number, values in enumerate(read_values(table), start=1):
            yield as_row(values, f"row {number} of {table}")
    except (ValueError, csv.Error, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{table} must be a readable table, got: {one_line(error)}. Correct or remove it."
        ) from error


def read_values(table: Path) -> Iterator[Any]:
    """Each row's values by their column's names."""
    if table.suffix == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(table).iter_batches():
            yield from batch.to_pylist()
    elif table.suffix == ".csv":
        with open(table, encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    else:
        with open(table, encoding="utf-8-sig") as file:
            yield from (json.loads(line) for line in file if line.strip())


def as_row(values: Any, name: str) -> Row:
    """A row from its values by name."""
    key = next((key for key in FILE_KEYS if isinstance(values, dict) and values.get(key)), None)
    file = values[key] if key else None
    if isinstance(file, dict):  # as datasets stores an image: {"path": …, "bytes": …}
        file = file.get("path")
    if not isinstance(file, str):
        raise UserError(f"{name} must name an image in file_name, got none. Add it.")
    class_name = label = None
    label_key = next((key for key in LABEL_KEYS if values.get(key) not in (None, "")), None)
    if label_key:
        given = values[label_key]
        if isinstance(given, int) or (isinstance(given, str) and given.isdecimal()):
            label = int(given)
        else:
            class_name = str(given)
    used = {key, label_key, *CAPTION_KEYS}
    rest = {k: v for k, v in values.items() if isinstance(k, str) and k not in used}
    return Row(file, tuple(captions_of(values)), class_name, label, rest or None)
