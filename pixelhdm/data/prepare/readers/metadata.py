"""Tables that name image files: metadata.jsonl, .csv, .parquet."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pixelhdm.data.captions import CAPTION_KEYS, captions_of
from pixelhdm.data.prepare.labels import label_under
from pixelhdm.errors import UserError, one_line

ENDINGS = (".jsonl", ".csv", ".parquet")
FILE_KEYS = ("file_name", "filename", "file", "path", "image", "image_path")
LABEL_KEYS = ("label", "class", "class_name", "label_name", "category")


class Row(NamedTuple):
    """What a table says of one image.

    Attributes:
        file: the file as the table names it.
        captions: its captions, cleaned.
        label: its class by number or name, if it gives one.
        metadata: its other columns, if there are any.
    """

    file: str
    captions: tuple[str, ...] = ()
    label: int | str | None = None
    metadata: dict[str, Any] | None = None


def read_rows(table: Path) -> Iterator[Row]:
    """The rows of a table.

    Raises:
        UserError: it cannot be read, or a row names no file.
    """
    try:
        for number, values in enumerate(read_values(table), start=1):
            yield as_row(values, f"row {number} of {table}")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{table} must be UTF-8, got bytes of another encoding. Save it as UTF-8."
        ) from error
    except (ValueError, csv.Error, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{table} must be a readable table, got: {one_line(error).rstrip('.')}. "
            "Correct or remove it."
        ) from error


def read_values(table: Path) -> Iterator[Any]:
    """Each row's values by their column's names."""
    ending = table.suffix.lower()
    if ending == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(table).iter_batches():
            yield from batch.to_pylist()
    elif ending == ".csv":
        with open(table, encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    else:
        with open(table, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parsed(line, f"row {number} of {table}")


def parsed(line: str, name: str) -> Any:
    """The JSON of one line."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} must be JSON, got: {one_line(error)}. Correct it.") from error


def as_row(values: Any, name: str) -> Row:
    """A row from its values by name."""
    if not isinstance(values, dict):
        raise UserError(f"{name} must be an object with file_name, got {str(values)[:80]}.")
    key = next((key for key in FILE_KEYS if values.get(key)), None)
    file = values[key] if key else None
    if isinstance(file, dict):  # as datasets stores an image: {"path": …, "bytes": …}
        file = file.get("path")
    if not isinstance(file, str):
        columns = ", ".join(map(str, values)) or "none"
        raise UserError(
            f"{name} must name an image in a column file_name (or {', '.join(FILE_KEYS[1:])}), "
            f"got the columns {columns}. Rename one of them."
        )
    label_key, label = label_under(values, LABEL_KEYS)
    used = {key, label_key, *CAPTION_KEYS}
    rest = {k: v for k, v in values.items() if isinstance(k, str) and k not in used}
    return Row(file, tuple(captions_of(values)), label, rest or None)
