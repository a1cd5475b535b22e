"""Prompts as people and benchmarks write them."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pixelhdm.data.prompt_fields import Prompt, checked_text, from_value
from pixelhdm.errors import UserError

Layout = Literal["classes", "plain", "geneval", "dpg", "sweep"]
GENEVAL_KEYS = {"prompt", "tag", "include"}


class PromptList(NamedTuple):
    """Prompts from one place.

    Attributes:
        prompts: all of them, in order.
        layout: how their images lie in folders: geneval and dpg as those scorers read them.
        name: name of the file or folder; empty for a list.
    """

    prompts: list[Prompt]
    layout: Layout
    name: str


def read_prompts(source: str | list[Any]) -> PromptList:
    """Read a text file with one prompt a line, a JSONL file, a folder of texts, or a list.

    Raises:
        UserError: one of them cannot be meant; the error says which.
    """
    if isinstance(source, list):
        places = [f"data.prompts, entry {number}" for number in range(1, len(source) + 1)]
        prompts = [from_value(value, place) for value, place in zip(source, places, strict=True)]
        found = PromptList(prompts, "plain", "")
    elif not source:
        raise UserError("data.prompts must be a file, a folder or a list, got nothing.")
    else:
        found = read_path(Path(source))
    if not found.prompts:
        raise UserError(f"data.prompts must hold prompts, got none in {source}.")
    return found


def read_path(path: Path) -> PromptList:
    """Read prompts from a file or a folder."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if not file.name.startswith("."))
        return PromptList([from_folder(file) for file in files], "dpg", path.name)
    if not path.exists():
        raise UserError(
            f"data.prompts must be a file, a folder or a list, got {path}, which does not exist. "
            "Prompts themselves are written as a list: --data.prompts \"['a red barn']\"."
        )
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix != ".txt":
        raise UserError(
            f"data.prompts must be a .txt with one prompt a line or a .jsonl, got {path}."
        )
    prompts = [from_value(text, place) for text, place in lines_of(path)]
    return PromptList(prompts, "plain", path.stem)


def read_jsonl(path: Path) -> PromptList:
    """Read one JSON object a line; GenEval's metadata are known by their keys."""
    values = [(from_json(line, place), line, place) for line, place in lines_of(path)]
    is_geneval = [value.keys() >= GENEVAL_KEYS for value, _, _ in values]
    if not any(is_geneval):
        prompts = [from_value(value, place, path.parent) for value, _, place in values]
        return PromptList(prompts, "plain", path.stem)
    if not all(is_geneval):
        raise UserError(
            f"{values[is_geneval.index(False)][2]}: every line must be GenEval's, with "
            f"{', '.join(sorted(GENEVAL_KEYS))}, as others here are. Put other "
            "prompts into a file of their own."
        )
    prompts = [
        Prompt(checked_text(value["prompt"], "prompt", place), place, metadata=line)
        for value, line, place in values
    ]
    return PromptList(prompts, "geneval", path.stem)


def from_folder(file: Path) -> Prompt:
    """The first line of a text file, DPG's way; its images are named after the file."""
    lines = lines_of(file)
    if not lines:
        raise UserError(f"{file}: prompt must not be empty. Write it into the first line.")
    return from_value(*lines[0])._replace(file_name=file.stem)


def lines_of(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not blank, and the place of each."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be text in UTF-8, got other bytes.") from error
    lines = enumerate(text.split("\n"), start=1)  # other separators may stand inside a prompt
    return [(line.strip(), f"{path}, line {number}") for number, line in lines if line.strip()]


def from_json(line: str, place: str) -> dict[str, Any]:
    """A line's object."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: must be JSON, got {line[:60]} ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{place}: must be a JSON object with a prompt, got {line[:60]}.")
    return value
