"""What a prompt asks for, checked field by field."""

import math
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pixelhdm.data.start_files import Asked
from pixelhdm.errors import UserError

START_KEYS = ("image", "mask", "strength", "source_prompt", "source_scale")
KEYS = (
    *("prompt", "negative_prompt", "seed", "height", "width", "size", "scale", "file_name"),
    *START_KEYS,
)
IMAGE_ENDING = ".png"


class Prompt(NamedTuple):
    """A prompt, and what it asks of its images; None leaves that to the settings of the run.

    Attributes:
        text: what is to be seen.
        place: where it is written, for errors.
        negative: what is not to be seen.
        seed: seed of its first image.
        height: height in pixels.
        width: width in pixels.
        scale: strength of the guidance.
        file_name: relative name of its files, without ending.
        metadata: its line in a benchmark's file.
        start: what its images begin from.
    """

    text: str
    place: str
    negative: str = ""
    seed: int | None = None
    height: int | None = None
    width: int | None = None
    scale: float | None = None
    file_name: str | None = None
    metadata: str = ""
    start: Asked = Asked()


def from_value(value: Any, place: str, folder: Path = Path()) -> Prompt:
    """A prompt from a text or a mapping, whose files are named relative to `folder`."""
    if isinstance(value, str):
        return Prompt(checked_text(value, "prompt", place), place)
    if not isinstance(value, dict):
        raise UserError(f"{place}: must be a text or a mapping, got {value}. Put it into quotes.")
    if unknown := [str(key) for key in value if key not in KEYS]:
        raise UserError(f"{place}: keys must be among {', '.join(KEYS)}, got {', '.join(unknown)}.")
    if "prompt" not in value:
        raise UserError(f"{place}: prompt must be given, got {', '.join(value) or 'nothing'}.")
    given = {key: entry for key, entry in value.items() if entry is not None}
    height, width = checked_size(given, place)
    name = given.get("file_name")
    return Prompt(
        checked_text(given.get("prompt"), "prompt", place),
        place,
        checked_text(given.get("negative_prompt", ""), "negative_prompt", place),
        checked_whole(given.get("seed"), "seed", 0, place),
        height,
        width,
        checked_number(given.get("scale"), "scale", place),
        None if name is None else checked_name(name, place),
        start=checked_start(given, place, folder),
    )


def checked_start(given: dict[str, Any], place: str, folder: Path) -> Asked:
    """What the images begin from."""
    files = {}
    for name in ("image", "mask"):
        value = given.get(name, "")
        if not isinstance(value, str) or (name in given and not value):
            raise UserError(f"{place}: {name} must be the path of a file, got {value!r}.")
        files[name] = str(folder / value) if value else None
    source = given.get("source_prompt")
    return Asked(
        **files,
        strength=checked_number(given.get("strength"), "strength", place),
        source=None if source is None else checked_text(source, "source_prompt", place),
        source_scale=checked_number(given.get("source_scale"), "source_scale", place),
    )


def checked_text(value: Any, name: str, place: str) -> str:
    """A text that can be encoded, without blanks around it; a prompt holds something."""
    if not isinstance(value, str):
        raise UserError(f"{place}: {name} must be a text, got {value}.")
    text = value.strip()
    if name == "prompt" and not text:
        raise UserError(f"{place}: prompt must not be empty.")
    if re.search("[\0\ud800-\udfff]", text):
        raise UserError(f"{place}: {name} must hold characters alone, got {text!r}.")
    return text


def checked_whole(value: Any, name: str, least: int, place: str) -> int | None:
    """A whole number of at least `least`, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{place}: {name} must be a whole number from {least} on, got {value!r}.")
    return value


def checked_size(given: dict[str, Any], place: str) -> tuple[int | None, int | None]:
    """Height and width, each or both in one."""
    if "size" not in given:
        return (
            checked_whole(given.get("height"), "height", 1, place),
            checked_whole(given.get("width"), "width", 1, place),
        )
    size = given["size"]
    if isinstance(size, str) and re.fullmatch(r"\d+ *[x×] *\d+", size):
        size = [int(side) for side in re.findall(r"\d+", size)]
    if not isinstance(size, list) or len(size) != 2:
        raise UserError(f"{place}: size must be [height, width] or HEIGHTxWIDTH, got {size!r}.")
    if given.keys() & {"height", "width"}:
        raise UserError(f"{place}: size must stand alone, got height or width too.")
    return (
        checked_whole(size[0], "height", 1, place),
        checked_whole(size[1], "width", 1, place),
    )


def checked_number(value: Any, name: str, place: str) -> float | None:
    """A finite number, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{place}: {name} must be a finite number, got {value!r}.")
    return float(value)


def checked_name(value: Any, place: str) -> str:
    """The name of a file below the folder, without its ending."""
    path = PurePosixPath(value) if isinstance(value, str) else None
    is_inside = path is not None and not path.is_absolute() and ".." not in path.parts
    if not is_inside or not path.name or re.search(r"[\\:\0]", value):
        raise UserError(
            f"{place}: file_name must be a relative path without .., got {value!r}. Its folders "
            "are divided by /."
        )
    return str(path).removesuffix(IMAGE_ENDING)
