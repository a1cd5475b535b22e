"""What a value in a table, a JSON or a .cls says of an image's class."""

import json
import math
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pixelhdm.data.indexing.members import LABEL_KEYS
from pixelhdm.data.prepare.items import FilePlace, Item

WHOLE = re.compile(r"[+-]?\d+(\.0*)?")  # pandas writes 3.0 in a column where a number is missing
THREADS = 16  # they wait for a disk
AT_ONCE = 4096


def parsed_label(value: Any) -> int | str | None:
    """The class that a value stands for: a number, a name, or None for neither."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() else str(value)
    if isinstance(value, int):
        return int(value)
    text = value.strip() if isinstance(value, str) else ""
    if WHOLE.fullmatch(text):
        return int(text.partition(".")[0])
    return None if text.lower() in ("", "nan") else text


def label_under(values: dict[str, Any], keys: Iterable[str]) -> tuple[str | None, int | str | None]:
    """The first of the keys under which a class stands, and the class."""
    for key in keys:
        if (label := parsed_label(values.get(key))) is not None:
            return key, label
    return None, None


def give_label(item: Item, label: int | str | None) -> None:
    """Give an image its class by number or name, where there is one."""
    if isinstance(label, str):
        item.label, item.class_name = None, label
    elif label is not None:
        item.label, item.class_name = label, None


def label_in_json(data: bytes) -> int | str | None:
    """The class that a JSON beside an image names; a broken one, whose fault is told when its
    captions are read, names none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return label_under(value, LABEL_KEYS)[1] if isinstance(value, dict) else None


def read_labels(items: list[Item]) -> None:
    """Give images without a class the one that the JSON file beside them names, if any."""
    able = [
        item
        for item in items
        if item.label is None and item.class_name is None and any(json_files(item))
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        for at in range(0, len(able), AT_ONCE):  # a pool takes all of its tasks at once
            part = able[at : at + AT_ONCE]
            for item, label in zip(part, pool.map(label_beside, part), strict=True):
                give_label(item, label)


def json_files(item: Item) -> list[FilePlace]:
    """The JSON files of an image."""
    return [
        place for ending, place in item.texts if ending == ".json" and isinstance(place, FilePlace)
    ]


def label_beside(item: Item) -> int | str | None:
    """The class in the JSON files of an image."""
    for place in json_files(item):
        try:
            label = label_in_json(place.read())
        except OSError:  # told when its captions are read
            continue
        if label is not None:
            return label
    return None
