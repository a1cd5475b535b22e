"""The rows of an index for one shard, from whatever tells best where its files lie."""

from typing import Any

from pixelhdm.data.indexing.damage import torn_keys
from pixelhdm.data.indexing.foreign import ENERGON_ENDING, count_energon_samples
from pixelhdm.data.indexing.listed import Found, from_listing, images_of, note_doubled
from pixelhdm.data.indexing.members import (
    IMAGES,
    Parts,
    facts_of,
    grouped,
    image_extensions,
    split_name,
)
from pixelhdm.data.indexing.rows import Rows, rows_of, size_known
from pixelhdm.data.indexing.sources import Job, listed, parquet, read_beside
from pixelhdm.data.indexing.tar import Member, Window, walk
from pixelhdm.data.reading.storage import ReadError, is_local
from pixelhdm.errors import one_line


def index_shard(job: Job) -> Rows:
    """The rows of a shard; one that cannot be read has none, and a problem says why."""
    problems: list[str] = []
    try:
        rows = read_shard(job, problems)
    except ReadError as error:
        rows = Rows(is_final=error.reason != "unreachable")
        problems.append(f"shard {job.path} is left out: {one_line(error)}")
    rows.problems = problems
    return rows


def read_shard(job: Job, problems: list[str]) -> Rows:
    """The rows of a shard, from its index or else from its headers."""
    listing, known = listed(job, problems), {}
    try:
        window = Window(job.storage, job.path)
    except ReadError as error:
        if error.reason != "missing" or listing is None:
            raise
        window = None
    if window and listing and (listing.size or window.size) < window.size:
        problems.append(
            f"the index of shard {job.path} is of a file of {listing.size} bytes, not "
            f"{window.size}; it is not used"
        )
        listing = None
    if listing is None or is_local(job.path):
        known = parquet(job, problems)
    found = from_listing(job, listing, window, problems) if listing else None
    if found is None:
        found = from_walk(job, window, known, problems)
    rows = rows_of(found.samples, known, found.in_json)
    note_samples(job.path, found.samples, rows, problems)
    return rows


def from_walk(
    job: Job, window: Window, known: dict[str, dict[str, Any]], problems: list[str]
) -> Found:
    """The samples of a shard without an index; those that damage has torn are left out."""

    def look(name: str, offset: int, length: int) -> dict[str, Any]:
        if known and not job.checksums and (parts := split_name(name)):
            about = known.get(parts[0].rpartition("/")[2], {})
            if parts[1] in IMAGES and size_known(about):
                return {"width": about["width"], "height": about["height"]}
        return facts_of(window.read, Member(name, offset, length, {}), job.checksums)

    found = walk(window, look)
    samples, doubled = grouped(found.members)
    note_doubled(job.path, doubled, problems)
    for key in torn_keys(found, samples):
        samples.pop(key, None)
    for start, end in found.gaps:
        problems.append(
            f"shard {job.path} has no sound header from byte {start} to byte {end}, "
            "the samples there are lost"
        )
    if found.cut_at is not None:
        kept = len(images_of(samples))
        starts = count_energon_samples(read_beside(job, ENERGON_ENDING) or b"")
        lost = f"{starts - kept} samples lost" if starts > kept else "samples behind it are lost"
        problems.append(f"shard {job.path} is cut off at byte {found.cut_at}, {lost}; {kept} kept")
    return Found(samples, True)


def note_samples(path: str, samples: dict[str, Parts], rows: Rows, problems: list[str]) -> None:
    """Tell of samples that are not as they should be."""
    images = [len(image_extensions(parts)) for parts in samples.values()]
    without, shared = images.count(0), sum(count for count in images if count > 1)
    broken = int((rows.table["width"] == 0).sum())
    if without:
        problems.append(f"shard {path} has {without} samples without an image, left out")
    if shared:
        problems.append(
            f"shard {path} has {shared} images whose names are equal up to the first dot; "
            "each is taken as a sample"
        )
    if broken:
        problems.append(f"shard {path} has {broken} images of unreadable size")
