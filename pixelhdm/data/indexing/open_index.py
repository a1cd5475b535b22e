"""From the paths of shards to their compiled index."""

import gc
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from jaxtyping import Shaped, UInt8
from tqdm import tqdm

from pixelhdm.data.indexing.cache import Cache
from pixelhdm.data.indexing.foreign import energon_shards, wids_shards
from pixelhdm.data.indexing.index import COLUMNS, TEXT_IN_INDEX, Index
from pixelhdm.data.indexing.rows import Rows
from pixelhdm.data.indexing.shard import index_shard
from pixelhdm.data.indexing.sources import Job
from pixelhdm.data.reading.storage import ReadError, Storage, expand, is_local
from pixelhdm.errors import UserError, one_line
from pixelhdm.processes import num_cores

ABOUT = "dataset.json"
ALONE = 1.0  # seconds of work that are done before helpers are worth their start
NUM_THREADS = 32  # reads from servers at once


def open_index(
    paths: str | list[str], storage: Storage, folder: str | None = None, checksums: bool = False
) -> Index:
    """The index of shards: the compiled one where it is fresh, else one built and kept.

    Processes that ask at once for the same index get equal ones; on one machine the first builds
    it and the others wait.

    Args:
        paths: as for `expand`; besides, wids specifications (`.json`), for the shards they list.
        storage: reads the shards and what lies beside them.
        folder: where to keep the compiled index; beside the first shard when None, or in the
            user's cache where that cannot be written to.
        checksums: whether all images are read for the CRC-32s that the shards' indexes lack.

    Raises:
        UserError: no shard has a readable sample, or the folder cannot be written to.
    """
    given = [paths] if isinstance(paths, str) else paths
    shards = expand([shard for path in given for shard in listed_in(path, storage)], storage)
    cache = Cache(given, shards, folder, checksums)
    if index := cache.fresh():
        return index
    with cache.locked():
        if index := cache.fresh(announce=True):
            return index
        index, is_final = build(shards, storage, checksums)
        return cache.keep(index) if is_final else index


def listed_in(path: str, storage: Storage) -> list[str]:
    """The shards that a wids specification lists, or any other path itself."""
    if not path.endswith(".json"):
        return [path]
    try:
        return wids_shards(storage.read_whole(path), path[: path.rfind("/") + 1])
    except (ReadError, ValueError) as error:
        raise UserError(
            f"{path} must be a list of shards in wids's format, got: {one_line(error)}"
        ) from error


def build(shards: list[str], storage: Storage, checksums: bool) -> tuple[Index, bool]:
    """A new index, and whether it may be kept: not where a shard was out of reach."""
    folders = sorted({parent(shard) for shard in shards})
    energon = energon_shards(folder for folder in folders if is_local(folder))
    reader = replace(storage)  # which has no shard open that was replaced since
    jobs = [Job(shard, reader, checksums, energon.get(os.path.abspath(shard))) for shard in shards]
    classes = classes_of(folders, reader)
    parts = []
    with tqdm(total=len(jobs), desc="indexing", unit="shard", delay=2, disable=None) as bar:
        for rows in indexed(jobs):
            parts.append(rows)
            bar.update()
    problems = [problem for rows in parts for problem in rows.problems]
    columns, texts = joined(parts)
    if not len(columns["shard"]):
        raise UserError(
            f"shards must have at least one readable sample, got none in {len(shards)}. "
            f"{'; '.join(problems[:3])}."
        )
    index = Index(columns, tuple(shards), classes, texts, tuple(problems))
    return index, all(rows.is_final for rows in parts)


def parent(shard: str) -> str:
    """Folder or address that a shard lies in."""
    if is_local(shard):
        return os.path.dirname(os.path.abspath(shard))
    return shard.partition("?")[0].rpartition("/")[0]


def indexed(jobs: list[Job]) -> Iterator[Rows]:
    """The rows of each shard in order; many helpers share the work where it is long."""
    started = time.monotonic()
    for done, job in enumerate(jobs):
        if time.monotonic() - started > ALONE and len(jobs) - done > 1:
            with helpers(jobs) as executor:
                yield from executor.map(index_shard, jobs[done:])
            return
        yield index_shard(job)


def helpers(jobs: list[Job]) -> Executor:
    """Threads for servers, processes for local shards: parsing holds Python's lock.

    Processes are forked, which starts at once; threads of a store do not live on in a fork, but
    local shards need none.
    """
    is_all_local = all(is_local(job.path) for job in jobs)
    if is_all_local and "fork" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("fork")
        # freezing spares each collection of garbage a walk over all that was forked
        return ProcessPoolExecutor(min(num_cores(), len(jobs)), context, gc.freeze)
    return ThreadPoolExecutor(min(NUM_THREADS, len(jobs)))


def joined(
    parts: list[Rows],
) -> tuple[dict[str, Shaped[np.ndarray, "N"]], UInt8[np.ndarray, "bytes"]]:
    """The columns and texts of an index from the rows of all shards."""
    start = 0
    for number, rows in enumerate(parts):
        rows.table["shard"] = number
        rows.table["text_offset"][rows.table["flags"] & TEXT_IN_INDEX > 0] += np.uint64(start)
        start += len(rows.texts)
    columns = {name: np.concatenate([rows.table[name] for rows in parts]) for name in COLUMNS}
    return columns, np.frombuffer(b"".join(rows.texts for rows in parts), np.uint8)


def classes_of(folders: list[str], storage: Storage) -> tuple[str, ...]:
    """Names of the classes, from the `dataset.json` of the shards' folders.

    Raises:
        UserError: two folders number other classes.
    """
    found: dict[tuple[str, ...], str] = {}
    for folder in folders:
        try:
            names = json.loads(storage.read_whole(f"{folder}/{ABOUT}"))["classes"]
            found.setdefault(tuple(str(name) for name in names), folder)
        except ReadError as error:
            if error.reason != "missing":
                raise
        except UserError:
            if is_local(folder):
                raise  # else a store forbids to read what is not there
        except (ValueError, KeyError, TypeError):
            continue  # of another program
    found.pop((), None)
    if len(found) > 1:
        raise UserError(
            f"shards must number the same classes, got others in {' and '.join(found.values())}. "
            "Prepare them together, or use them as two data sets."
        )
    return next(iter(found), ())
