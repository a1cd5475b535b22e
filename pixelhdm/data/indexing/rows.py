"""From the samples of a shard to rows of an index."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Shaped

from pixelhdm.data.captions import captions_of
from pixelhdm.data.indexing.index import COLUMNS, CRC_KNOWN, NO_LABEL, TEXT_IN_INDEX, TEXT_IS_JSON
from pixelhdm.data.indexing.members import (
    HAS_CAPTIONS,
    JSON,
    LABEL,
    TEXTS,
    Parts,
    image_extensions,
    is_size,
    label_in,
    part,
)
from pixelhdm.data.indexing.tar import Member

ROW = np.dtype(list(COLUMNS.items()))


@dataclass
class Rows:
    """What one shard adds to an index.

    Attributes:
        table: a row a sample, in the order of their images in the shard; `shard` is left 0.
        texts: captions that the shard does not hold.
        problems: what was wrong with the shard, one sentence each.
        is_final: False where a later try may find more, as the shard was out of reach.
    """

    table: Shaped[np.ndarray, "N"] = field(default_factory=lambda: np.zeros(0, ROW))
    texts: bytes = b""
    problems: list[str] = field(default_factory=list)
    is_final: bool = True


def rows_of(samples: dict[str, Parts], known: dict[str, dict[str, Any]], in_json: bool) -> Rows:
    """The rows of samples; those without an image have none.

    Args:
        samples: parts by key.
        known: what is known of samples beside the shard, by the last component of their keys.
        in_json: whether a JSON part has captions where its facts do not tell.
    """
    rows, texts = [], bytearray()
    for key, parts in samples.items():
        for extension in image_extensions(parts):
            image = parts[extension]
            about = known.get(key.rpartition("/")[2], {}) if known else {}
            text, flags = text_part(parts, extension, in_json)
            place = (text.offset, text.length) if text else (0, 0)
            if not text and (captions := own_captions(image.facts) or captions_of(about)):
                data = json.dumps(captions, ensure_ascii=False).encode("utf-8", "replace")
                place, flags = (len(texts), len(data)), TEXT_IN_INDEX | TEXT_IS_JSON
                texts += data
            crc32 = image.facts.get("crc32")
            if type(crc32) is int and 0 <= crc32 < 2**32:
                flags |= CRC_KNOWN
            else:
                crc32 = 0
            size = size_known(image.facts) or size_known(about) or (0, 0)
            label = label_part(parts, extension)
            rows.append((0, image.offset, image.length, *place, *size, crc32, label, flags))
    table = np.array(rows, ROW)
    return Rows(table[np.argsort(table["offset"], kind="stable")], bytes(texts))


def size_known(facts: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height, where facts have them."""
    width, height = facts.get("width"), facts.get("height")
    return (width, height) if is_size(width, height) else None


def text_part(parts: Parts, image: str, in_json: bool) -> tuple[Member | None, int]:
    """The part with an image's captions, if any, and its flags."""
    found = part(parts, image, JSON)
    if found and found.length and found.facts.get(HAS_CAPTIONS, in_json):
        return found, TEXT_IS_JSON
    for extension in TEXTS:
        if (found := part(parts, image, extension)) and found.length:
            return found, 0
    return None, 0


def label_part(parts: Parts, image: str) -> int:
    """The label that a sample's parts are known to have."""
    for found in (parts[image], part(parts, image, LABEL), part(parts, image, JSON)):
        if found and (label := label_in(found.facts)) != NO_LABEL:
            return label
    return NO_LABEL


def own_captions(facts: dict[str, Any]) -> list[str]:
    """The captions that webshart's index has of an image."""
    if "captions" not in facts and "caption" not in facts and "json_metadata" not in facts:
        return []
    return captions_of(facts) or captions_of(facts.get("json_metadata"))
