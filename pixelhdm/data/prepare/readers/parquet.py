"""The parquet that img2dataset writes beside each tar."""

from typing import Any

from pixelhdm.data.indexing.foreign import PARQUET_ENDING
from pixelhdm.data.indexing.sources import Job, read_beside
from pixelhdm.data.prepare.readers.tar_files import ENDINGS, unreadable
from pixelhdm.data.reading.storage import ReadError, Storage
from pixelhdm.errors import one_line

KEY = "key"
LEFT_OUT = ("exif",)  # long, and in the images themselves


def rows_beside(storage: Storage, tar: str, notes: list[str]) -> dict[str, dict[str, Any]]:
    """What the parquet beside a tar says of each sample by its key; nothing where there is none.

    Args:
        storage: reads it.
        tar: path or URL of the tar.
        notes: told of one that is damaged.

    Raises:
        UserError: it is out of reach.
    """
    ending = next((ending for ending in reversed(ENDINGS) if tar.endswith(ending)), "")
    plain = tar.removesuffix(ending) + ".tar" if ending else tar
    try:
        data = read_beside(Job(plain, storage, False, None), PARQUET_ENDING)
    except ReadError as error:
        raise unreadable(plain.removesuffix(".tar") + PARQUET_ENDING, error) from error
    try:
        return parsed_rows(data) if data else {}
    except ValueError as error:
        notes.append(f"the parquet beside {tar} is damaged: {one_line(error)}")
        return {}


def parsed_rows(data: bytes) -> dict[str, dict[str, Any]]:
    """The rows of a parquet by their key.

    Raises:
        ValueError: it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        columns = [name for name in file.schema_arrow.names if name not in LEFT_OUT]
        rows = file.read(columns).to_pylist() if KEY in columns else []
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    return {str(row.pop(KEY)): row for row in rows}
