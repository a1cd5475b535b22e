"""Files that are either whole or not there."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".part"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; move it to `path` at the end, or delete it
    after an error.

    The data reach the disk before the move, so a kill at any moment leaves the old file or the new
    one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def append_once(file: Path, lines: list[str]) -> None:
    """Append those lines that the file lacks: a run that goes on after a kill takes steps again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    own = set(text.splitlines())
    new = [line for line in dict.fromkeys(lines) if line not in own]
    if new:
        start = "" if text.endswith("\n") or not text else "\n"  # a kill can tear the last line
        with open(file, "a", encoding="utf-8") as out:
            out.write(start + "".join(f"{line}\n" for line in new))


def package_folder(name: str) -> Path | None:
    """The folder of an installed Python package, without importing it; None where there is none."""
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    places = found and found.submodule_search_locations
    return Path(places[0]) if places else None


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
