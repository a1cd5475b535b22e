"""From the members of a shard to its samples."""

import json
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from pixelhdm.data.captions import captions_of
from pixelhdm.data.decode import read_header
from pixelhdm.data.indexing.index import NO_LABEL
from pixelhdm.data.indexing.tar import Member

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif")
TEXTS = ("txt", "caption")
LABEL, JSON = "cls", "json"
LABEL_KEYS = ("label", "cls", "class")
HEAD = 64 << 10  # bytes of an image in which its size nearly always stands
MAX_SIDE = 2**16 - 1  # the index holds 16 bits
HAS_CAPTIONS = "has_captions"  # a fact of a JSON member

Parts = dict[str, Member]  # of a sample, by extension
Read = Callable[[int, int], bytes]  # of a shard's bytes at an offset and of a length


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member by webdataset's rule: the key is the path up to the first dot
    of the file's name. None for what is no part of a sample: hidden, `__…__`, without a dot.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or not stem or is_hidden(name):
        return None
    return folder + slash + stem, extension.lower()


def is_hidden(name: str) -> bool:
    """Whether a path has a component such as `.x` or `__x__`."""
    if not name.startswith(".") and "/." not in name and "__" not in name:
        return False
    parts = [part for part in name.split("/") if part not in (".", "..", "")]
    return any(
        part.startswith(".") or (part.startswith("__") and part.endswith("__")) for part in parts
    )


def grouped(members: Iterable[Member]) -> tuple[dict[str, Parts], int]:
    """Samples by key, each with its parts by extension, and how many members are left out because
    an earlier one has the same name. Parts of a sample may lie anywhere in the shard.
    """
    samples: dict[str, Parts] = {}
    doubled = 0
    for member in members:
        if (name := split_name(member.name)) is None:
            continue
        key, extension = name
        parts = samples.setdefault(key, {})
        if extension in parts:
            doubled += 1
        else:
            parts[extension] = member
    return samples, doubled


def image_extensions(parts: Parts) -> list[str]:
    """Extensions of the images among a sample's parts: the first of IMAGES, or, of names with more
    dots (`photo.v1.jpg`, `photo.v2.jpg`), each, as none of them may be lost.
    """
    for extension in IMAGES:
        if extension in parts:
            return [extension]
    return [extension for extension in parts if extension.rpartition(".")[2] in IMAGES]


def part(parts: Parts, image: str, extension: str) -> Member | None:
    """The part with an extension that belongs to an image: `v2.txt` to `v2.jpg`, or `txt`."""
    dotted = image.rpartition(".")[0] + "." + extension if "." in image else extension
    return parts.get(dotted) or parts.get(extension)


def facts_of(read: Read, member: Member, checksums: bool = False) -> dict[str, Any]:
    """What a member's bytes say: an image's width, height and, with `checksums`, crc32; a label;
    whether a JSON has captions. A broken one says nothing, or a size of 0 x 0.

    Args:
        read: gives the bytes of the shard; fewer where it ends.
        member: the file.
        checksums: whether to read the whole image.
    """
    if (name := split_name(member.name)) is None:
        return {}
    extension = name[1].rpartition(".")[2]
    if extension in IMAGES:
        return image_facts(read, member, checksums)
    if extension == LABEL:
        return {"label": whole_number(read(member.offset, member.length))}
    if extension == JSON:
        return json_facts(read(member.offset, member.length))
    return {}


def image_facts(read: Read, member: Member, checksums: bool) -> dict[str, Any]:
    """Size and CRC-32 of an image."""
    facts: dict[str, Any] = {}
    if checksums:
        data = read(member.offset, member.length)
        if len(data) == member.length:
            facts["crc32"] = zlib.crc32(data)
    width, height = size_of(read(member.offset, min(HEAD, member.length)))
    if not width and member.length > HEAD:
        width, height = size_of(read(member.offset, member.length))
    return facts | {"width": width, "height": height}


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of an upright image; 0 x 0 where its header cannot be read."""
    try:
        header = read_header(data)
    except Exception:  # decoders meet broken files with nearly any exception
        return 0, 0
    return (header.width, header.height) if is_size(header.width, header.height) else (0, 0)


def is_size(width: Any, height: Any) -> bool:
    """Whether two values are the sides of an image."""
    return all(type(side) is int and 0 < side <= MAX_SIDE for side in (width, height))


def json_facts(data: bytes) -> dict[str, Any]:
    """Label of a JSON member, and whether it has captions."""
    try:
        value = json.loads(data)
        facts: dict[str, Any] = {HAS_CAPTIONS: bool(captions_of(value))}
    except (ValueError, RecursionError):
        return {HAS_CAPTIONS: False}
    if isinstance(value, dict):
        facts["label"] = label_in(value)
    return facts


def label_in(value: dict[str, Any]) -> int:
    """The class number under the first of LABEL_KEYS that has one, else -1."""
    for key in LABEL_KEYS:
        label = value.get(key)
        if type(label) is int and 0 <= label < 2**31:
            return label
    return NO_LABEL


def whole_number(data: bytes) -> int:
    """A class number as text, else -1."""
    text = data.strip()
    return int(text) if text.isdigit() and len(text) < 10 else NO_LABEL
