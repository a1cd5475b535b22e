"""The samples of a shard that an index lists, and what is read of them beside it."""

from typing import NamedTuple

from pixelhdm.data.indexing.formats import Listing
from pixelhdm.data.indexing.members import (
    HAS_CAPTIONS,
    JSON,
    LABEL,
    Parts,
    facts_of,
    grouped,
    image_extensions,
    json_facts,
    label_in,
)
from pixelhdm.data.indexing.rows import size_known
from pixelhdm.data.indexing.sources import Job
from pixelhdm.data.indexing.tar import Member, Window
from pixelhdm.data.reading.storage import is_local

NUM_PROBES = 3


class Found(NamedTuple):
    """Samples of a shard by key, and whether their JSON parts have captions where unknown."""

    samples: dict[str, Parts]
    in_json: bool


def from_listing(
    job: Job, listing: Listing, window: Window | None, problems: list[str]
) -> Found | None:
    """The samples that an index lists; None where it is not of this shard."""
    samples, doubled = grouped(listing.members)
    note_doubled(job.path, doubled, problems)
    images = images_of(samples)
    if window is None:
        problems.append(f"shard {job.path} is missing, {len(images)} samples lost")
        return Found(samples, True)
    lost = sum(ends_behind(parts, window.size) for parts in samples.values())
    if lost or (listing.size or 0) > window.size:
        problems.append(f"shard {job.path} is cut off at byte {window.size}, {lost} samples lost")
    in_json = complete(samples, images, window, job.checksums)
    broken = sum(size_known(image.facts) is None for image in images)
    if broken - lost > len(images) / 2:
        problems.append(f"the index of shard {job.path} does not fit it; it is not used")
        return None
    return Found(samples, in_json)


def ends_behind(parts: Parts, size: int) -> bool:
    """Whether a sample has an image and a part that ends behind a shard's end."""
    is_torn = any(part.offset + part.length > size for part in parts.values())
    return is_torn and bool(image_extensions(parts))


def images_of(samples: dict[str, Parts]) -> list[Member]:
    """All images of samples."""
    return [parts[name] for parts in samples.values() for name in image_extensions(parts)]


def complete(
    samples: dict[str, Parts], images: list[Member], window: Window, checksums: bool
) -> bool:
    """Read what an index lacks; tell whether JSON parts have captions where that stays unknown.

    Our own index (it has CRCs and places of JSON) lacks nothing. Others have sizes, if any, from
    before EXIF orientation, and do not tell what is in the JSON parts: of local shards all that is
    read; of remote ones their sizes are taken, else the shards would be read almost whole.
    """
    wanted = [
        image
        for image in images
        if size_known(image.facts) is None or (checksums and "crc32" not in image.facts)
    ]
    in_json = True
    if not (images and "crc32" in images[0].facts and "json_offset" in images[0].facts):
        jsons, labels = parts_with(samples, JSON), parts_with(samples, LABEL)
        if is_local(window.path):
            wanted = images + labels + jsons
        else:
            more, in_json = probed(images, jsons, labels, window)
            wanted += more
    for member in sorted(wanted, key=lambda member: member.offset):
        member.facts.update(facts_of(window.read, member, checksums))
    return in_json


def probed(
    images: list[Member], jsons: list[Member], labels: list[Member], window: Window
) -> tuple[list[Member], bool]:
    """The parts that must be read for labels, and whether JSON parts have captions, by a few."""
    looked = [json_facts(peek(window, one)) for one in jsons[:: len(jsons) // NUM_PROBES + 1]]
    more = []
    if all(label_in(image.facts) < 0 for image in images):
        more = labels or (jsons if any(label_in(facts) >= 0 for facts in looked) else [])
    return more, any(facts[HAS_CAPTIONS] for facts in looked)


def peek(window: Window, member: Member) -> bytes:
    """The bytes of one member alone; fewer where the shard ends."""
    length = min(member.length, window.size - member.offset)
    return window.storage.read(window.path, member.offset, length) if length > 0 else b""


def parts_with(samples: dict[str, Parts], ending: str) -> list[Member]:
    """All parts of samples whose extension ends so."""
    return [
        member
        for parts in samples.values()
        for extension, member in parts.items()
        if extension == ending or extension.endswith("." + ending)
    ]


def note_doubled(path: str, doubled: int, problems: list[str]) -> None:
    """Tell of files whose names others have had."""
    if doubled:
        problems.append(f"shard {path} has {doubled} files of names that came before, left out")
