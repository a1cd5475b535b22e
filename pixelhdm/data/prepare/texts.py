"""What is known of an image beside its pixels: captions, and whatever else its texts hold."""

import json
import math
from typing import Any, NamedTuple

from pixelhdm.data.captions import CAPTION_KEYS, captions_in, captions_of, cleaned
from pixelhdm.data.prepare.items import Item
from pixelhdm.errors import one_line

LONGEST = 120  # letters of a fault
UTF8 = "not UTF-8"  # said of every text of another encoding


class Texts(NamedTuple):
    """What an image's texts say.

    Attributes:
        captions: each once.
        metadata: the JSON's other values.
        problems: what is wrong with the texts.
    """

    captions: list[str]
    metadata: dict[str, Any]
    problems: list[str]


def read_texts(item: Item) -> Texts:
    """Read the texts of an image."""
    captions, metadata, problems = list(item.captions), dict(item.metadata or {}), []
    for ending, place in item.texts:
        try:
            data = place.read()
            captions += captions_in(data, ending == ".json")
            if ending == ".json" and isinstance(value := json.loads(data), dict):
                metadata |= value
                problems += [f"{ending} beside it: {fault}" for fault in caption_faults(value)]
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{ending} beside it: {fault_of(error)}")
    for key in ("captions", "caption"):
        metadata.pop(key, None)
    whole = [text.encode("utf-8", "replace").decode() for text in captions]
    return Texts(list(dict.fromkeys(cleaned(whole))), strict(metadata), problems)


def caption_faults(value: dict[str, Any]) -> list[str]:
    """What stands under a caption's key but is none, where no key has one."""
    if captions_of(value):
        return []
    odd = [key for key in CAPTION_KEYS if has_values(value.get(key))]
    return [f"{key} holds no text, but {json.dumps(value[key])}"[:LONGEST] for key in odd]


def has_values(value: Any) -> bool:
    """Whether a JSON value holds anything but nothing and white space."""
    if isinstance(value, dict):
        return any(map(has_values, value.values()))
    if isinstance(value, list):
        return any(map(has_values, value))
    return isinstance(value, int) or (isinstance(value, str) and bool(value.strip()))


def fault_of(error: Exception) -> str:
    """The first words of what is wrong with a text."""
    if isinstance(error, UnicodeError):
        return UTF8
    text = getattr(error, "strerror", None) or one_line(error).rstrip(". ")
    return (text or type(error).__name__)[:LONGEST]


def strict(value: Any) -> Any:
    """A value as strict JSON holds it: numbers that are none become null."""
    if isinstance(value, dict):
        return {key: strict(one) for key, one in value.items()}
    if isinstance(value, list):
        return [strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
