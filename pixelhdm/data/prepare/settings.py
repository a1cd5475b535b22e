"""What a folder of shards was prepared from and how: a rerun must agree."""

import json
from pathlib import Path
from typing import Any

from pixelhdm.data.prepare.duplicates import find_duplicates
from pixelhdm.data.prepare.items import Item
from pixelhdm.data.prepare.shards import RECORDS, write_json
from pixelhdm.errors import UserError

VERSION = 2  # of what is written; one that differs cannot go on
FILE, DUPLICATES, UNPACKED = "settings.json", "duplicates.json", "unpacked"
SOURCE = ("source_digest", "source_images")


def is_prepared(folder: Path) -> bool:
    """Whether a folder is one that a preparation has begun."""
    return (folder / RECORDS / FILE).exists()


def check_folder(out: Path) -> None:
    """Raise a UserError for a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out must be a folder, got the file {out}.")
    if out.exists() and not is_prepared(out):
        other = next((entry for entry in out.iterdir() if entry.name != RECORDS), None)
        if other is not None:
            raise UserError(
                f"out must be a new or empty folder, or one that prepare began, got {out}, which "
                f"holds {other.name}. Take another one."
            )


def agree(out: Path, settings: dict[str, Any]) -> None:
    """Compare settings with those that a folder was begun with, if it was.

    Raises:
        UserError: they differ, or the source has changed.
    """
    file = out / RECORDS / FILE
    if not file.exists():
        return
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        begun = {}
    different = [key for key in settings if begun.get(key) != settings[key]]
    if not different:
        return
    if "version" in different:
        raise UserError(
            f"out must be a folder that this version of prepare began, got {out} of another one. "
            f"Take another out, or delete {out} to begin anew."
        )
    key, remedy = different[0], f"Take the same, another out, or delete {out} to begin anew."
    if key in SOURCE:
        had, has = begun.get(SOURCE[1]), settings[SOURCE[1]]
        raise UserError(
            f"source must stay as it was when {out} was begun, got other files, sizes, labels or "
            f"captions ({had} images then, {has} now). {remedy}"
        )
    raise UserError(
        f"{key} must be what {out} was begun with, {begun.get(key)}, got {settings[key]}. {remedy}"
    )


def keep(out: Path, settings: dict[str, Any]) -> None:
    """Keep the settings that a folder is begun with."""
    file = out / RECORDS / FILE
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)


def duplicates_of(out: Path, items: list[Item], with_captions: bool) -> dict[int, int]:
    """The listing's duplicates: those that another start has found, or found now and kept."""
    file = out / RECORDS / DUPLICATES
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {int(row): first for row, first in found.items()}
    except (OSError, ValueError):
        found = find_duplicates(items, with_captions)
        write_json(file, found)
        return found
