"""Indexes of shards that other loaders write: DALI, Energon, img2dataset and wids."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixelhdm.data.indexing.formats import Listing, is_place
from pixelhdm.data.indexing.tar import Member

DALI_ENDING, ENERGON_ENDING, PARQUET_ENDING = ".idx", ".tar.idx", ".parquet"
ENERGON_FOLDER, ENERGON_DEPTH = ".nv-meta", 4  # folders above a shard in which it may lie
PARQUET_COLUMNS = ("key", "caption", "width", "height", "exif")
ENERGON_PARTS = """
    SELECT samples.sample_key || '.' || part_name, content_byte_offset, content_byte_size
    FROM sample_parts JOIN samples USING (tar_file_id, sample_index)
    WHERE tar_file_id = ? ORDER BY content_byte_offset
"""


def read_dali(data: bytes) -> Listing:
    """The parts in a file of DALI's wds2idx: a line `v1.2 <samples>`, then one a sample with
    `<extension> <offset> <size> <name>` for each part; v1.1 has no names, so the lines are counted.

    Raises:
        ValueError: it is damaged, or a name has a space.
    """
    first, *lines = data.decode("utf-8").splitlines()
    version, _, count = first.partition(" ")
    if version not in ("v1.1", "v1.2") or int(count) != len(lines):
        raise ValueError(f"it starts with {first!r} and has {len(lines)} more lines")
    step = 4 if version == "v1.2" else 3
    members = []
    for number, line in enumerate(lines):
        words = line.split(" ")
        if len(words) % step:
            raise ValueError(f"line {number + 2} has {len(words)} words")
        for at in range(0, len(words), step):
            offset, length = int(words[at + 1]), int(words[at + 2])
            if not is_place(offset, length):
                raise ValueError(f"line {number + 2} has offset {offset} and size {length}")
            name = words[at + 3] if step == 4 else f"{number:09d}.{words[at]}"
            members.append(Member(name, offset, length, {}))
    return Listing(members, None)


class EnergonShard(NamedTuple):
    """Where the parts of a shard stand: Energon's database, and the shard's number in it."""

    database: Path
    number: int


def energon_shards(folders: Iterable[str]) -> dict[str, EnergonShard]:
    """The local shards that Energon has prepared, by absolute path.

    Args:
        folders: of shards; Energon's own folder may lie in one above.
    """
    roots = {root for folder in folders for root in [*parents_of(folder)][:ENERGON_DEPTH]}
    found = {}
    for root in roots:
        database = root / ENERGON_FOLDER / "index.sqlite"
        about = root / ENERGON_FOLDER / ".info.json"
        if database.exists() and about.exists():
            try:
                names = list(json.loads(about.read_bytes())["shard_counts"])
            except (ValueError, KeyError, TypeError):
                continue
            found |= {str(root / name): EnergonShard(database, n) for n, name in enumerate(names)}
    return found


def parents_of(folder: str) -> Iterator[Path]:
    """A folder and those above."""
    path = Path(folder).absolute()
    yield path
    yield from path.parents


def read_energon(shard: EnergonShard) -> Listing | None:
    """The parts of a shard in Energon's `.nv-meta/index.sqlite` (since its version 7), or None
    where it lists none.

    Its sizes of images are not used: they are those before EXIF orientation.

    Raises:
        ValueError: it is damaged.
    """
    # A log that was never merged has to be read; without one, nothing need be written here.
    log = shard.database.with_name(f"{shard.database.name}-wal")
    mode = "ro" if log.exists() else "ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{shard.database.as_uri()}?mode={mode}", uri=True)) as base:
            rows = base.execute(ENERGON_PARTS, (shard.number,)).fetchall()
    except sqlite3.DatabaseError as error:
        if "no such table" in str(error):
            return None
        raise ValueError(str(error)) from error
    if not all(isinstance(name, str) and is_place(*place) for name, *place in rows):
        raise ValueError("a part has no place")
    return Listing([Member(*row, {}) for row in rows], None) if rows else None


def count_energon_samples(data: bytes) -> int:
    """Number of samples in Energon's `x.tar.idx`: 64-bit offsets of each and of the end."""
    return max(0, len(np.frombuffer(data[: len(data) // 8 * 8], "<u8")) - 1)


def read_parquet(data: bytes) -> dict[str, dict[str, Any]]:
    """What img2dataset's parquet says of each sample by its key: caption, width and height.

    The size is left out where the image may have an orientation, as it is that before it.

    Raises:
        ValueError: it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        columns = [name for name in PARQUET_COLUMNS if name in file.schema_arrow.names]
        rows = file.read(columns).to_pylist() if "key" in columns else []
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    for row in rows:
        if "Orientation" in str(row.pop("exif", "Orientation")):
            row["width"] = None
    return {str(row.pop("key")): row for row in rows}


def wids_shards(data: bytes, base: str) -> list[str]:
    """The shards that a wids specification lists.

    Args:
        data: the JSON.
        base: folder or URL that relative paths in it start from, with a slash at the end.

    Raises:
        ValueError: it is no such specification.
    """
    content = json.loads(data)
    try:
        urls = [str(shard["url"]) for shard in content["shardlist"]]
    except (KeyError, TypeError) as error:
        raise ValueError("it has no shardlist of url") from error
    return [url if "://" in url or url.startswith("/") else base + url for url in urls]
