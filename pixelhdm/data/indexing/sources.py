"""What lies beside a shard and tells where its files are."""

from typing import Any, NamedTuple

from pixelhdm.data.indexing.foreign import (
    DALI_ENDING,
    PARQUET_ENDING,
    EnergonShard,
    read_dali,
    read_energon,
    read_parquet,
)
from pixelhdm.data.indexing.formats import ENDING, Listing, read_shard_index
from pixelhdm.data.reading.storage import ReadError, Storage, is_local
from pixelhdm.errors import UserError, one_line


class Job(NamedTuple):
    """A shard to index.

    Attributes:
        path: path or URL of it.
        storage: reads it.
        checksums: whether to read all images for their CRC-32.
        energon: where Energon's index has it, if it does.
    """

    path: str
    storage: Storage
    checksums: bool
    energon: EnergonShard | None


def beside(shard: str, ending: str) -> str:
    """Name of a file that belongs to a shard."""
    path, mark, query = (shard, "", "") if is_local(shard) else shard.partition("?")
    return path[: -len(".tar")] + ending + mark + query


def read_beside(job: Job, ending: str) -> bytes | None:
    """The bytes of a file that belongs to a shard, or None where there is none."""
    try:
        return job.storage.read_whole(beside(job.path, ending))
    except ReadError as error:
        if error.reason == "missing":
            return None
        raise
    except UserError:
        if is_local(job.path):
            raise
        return None  # a store that may not be listed forbids to read what is not there


def listed(job: Job, problems: list[str]) -> Listing | None:
    """What the best index of a shard says; broken ones are noted."""

    def webshart() -> Listing | None:
        data = read_beside(job, ENDING)
        return read_shard_index(data) if data else None

    def energon() -> Listing | None:
        return read_energon(job.energon) if job.energon else None

    def dali() -> Listing | None:
        data = read_beside(job, DALI_ENDING)
        return read_dali(data) if data else None

    for name, read in {"webshart": webshart, "Energon": energon, "DALI": dali}.items():
        try:
            listing = read()
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            problems.append(
                f"the {name} index of shard {job.path} is damaged and not used: {one_line(error)}"
            )
            continue
        if listing and listing.members:
            return listing
    return None


def parquet(job: Job, problems: list[str]) -> dict[str, dict[str, Any]]:
    """What img2dataset's parquet says of a shard's samples."""
    data = read_beside(job, PARQUET_ENDING)
    try:
        return read_parquet(data) if data else {}
    except ValueError as error:
        problems.append(f"the parquet of shard {job.path} is damaged: {one_line(error)}")
        return {}
