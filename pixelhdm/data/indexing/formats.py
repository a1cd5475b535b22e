"""webshart's index of a shard, a JSON beside it: `00000.json` tells where the files of `00000.tar`
lie (github.com/bghira/webshart).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pixelhdm.data.indexing.tar import Member
from pixelhdm.files import replacing

ENDING = ".json"
MAX_LENGTH = 2**32 - 1  # bytes of one part of a sample


class Listing(NamedTuple):
    """What an index says of a shard.

    Attributes:
        members: the files in it.
        size: of the shard in bytes when the index was made; None where it does not say.
    """

    members: list[Member]
    size: int | None


def write_shard_index(tar: Path, files: dict[str, dict[str, Any]]) -> None:
    """Write the index of a finished shard beside it; equal input gives equal bytes.

    Args:
        tar: the shard.
        files: by name in the shard `offset` and `length`, and of an image what else is known:
            width, height (upright), crc32, label, json_path, json_offset, json_length.
    """
    content = {
        "path": tar.name,
        "filesize": tar.stat().st_size,
        "includes_image_geometry": True,
        "files": {name: with_aspect(file) for name, file in files.items()},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    with replacing(tar.with_suffix(ENDING)) as temporary:
        temporary.write_bytes(text.encode() + b"\n")


def with_aspect(file: dict[str, Any]) -> dict[str, Any]:
    """A file's entry with `aspect`, width / height, where it has those."""
    if not file.get("width") or not file.get("height"):
        return file
    return file | {"aspect": round(file["width"] / file["height"], 4)}


def read_shard_index(data: bytes) -> Listing | None:
    """The files that webshart's JSON lists, as an object by name or as a list; None for a JSON of
    another kind.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict | list):
        return None
    named = files.items() if isinstance(files, dict) else ((None, file) for file in files)
    size = content.get("filesize")
    return Listing([entry(name, file) for name, file in named], size if type(size) is int else None)


def entry(name: str | None, file: Any) -> Member:
    """One file of the JSON; its keys go by several names.

    Raises:
        ValueError: it lacks a name or a place, or these are no such things.
    """
    try:
        offset = file["offset"]
        length = file["length"] if "length" in file else file["size"]
        path = name or file.get("path") or file.get("fname") or file["filename"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"entry {name} lacks a path, an offset or a length") from error
    if not isinstance(path, str) or not is_place(offset, length):
        raise ValueError(f"entry {path} has offset {offset} and length {length}")
    return Member(path, offset, length, file)


def is_place(offset: Any, length: Any) -> bool:
    """Whether two values are where a part may lie."""
    return type(offset) is type(length) is int and 0 <= offset < 2**63 and 0 <= length <= MAX_LENGTH
