"""Where a compiled index is kept, and whether it is still that of its shards."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixelhdm.data.indexing.index import Index
from pixelhdm.data.reading.storage import is_local
from pixelhdm.errors import UserError

try:
    import fcntl
except ImportError:  # Windows; there several processes each build the index
    fcntl = None

FOLDER = ".pixelhdm-index"
BESIDE = (".tar", ".json", ".idx", ".tar.idx", ".parquet")
OF_FOLDER = ("dataset.json", ".nv-meta/index.sqlite", "../.nv-meta/index.sqlite")


class Cache:
    """The compiled index of a set of shards.

    Args:
        paths: as the user gave them.
        shards: that they stand for.
        folder: where to keep it, or None for beside the first shard or in the user's cache.
        checksums: whether it has CRC-32s of all images; part of its name.
    """

    def __init__(self, paths: list[str], shards: list[str], folder: str | None, checksums: bool):
        self.shards, self.is_chosen = shards, folder is not None
        first = os.path.dirname(os.path.abspath(shards[0])) if is_local(shards[0]) else None
        names = [relative(path, first) for path in paths]
        digest = hashlib.sha256(json.dumps([names, checksums]).encode()).hexdigest()[:16]
        self.names = [relative(shard, first) for shard in shards]
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pixelhdm"
        absolute = [relative(path, "/") for path in paths]
        own = hashlib.sha256(json.dumps(absolute).encode()).hexdigest()[:16]
        if folder is not None:
            self.places = [Path(folder) / digest]
        else:
            beside = [Path(first) / FOLDER / digest] if first else []
            self.places = [*beside, home / own / digest]
        self.stamp = self.current_stamp()

    def current_stamp(self) -> dict[str, Any]:
        """Size and time of change of all local files that the index is made from."""
        local = [shard for shard in self.shards if is_local(shard)]
        folders = sorted({os.path.dirname(shard) for shard in local})
        return {
            "shards": self.names,
            "files": [[state(shard[:-4] + ending) for ending in BESIDE] for shard in local],
            "folders": [[state(os.path.join(f, name)) for name in OF_FOLDER] for f in folders],
        }

    def fresh(self, announce: bool = False) -> Index | None:
        """The compiled index, if there is one of these very shards.

        Args:
            announce: whether to print why one that is there cannot be used.
        """
        for place in self.places:
            if not (place / "about.json").exists():
                continue
            try:
                index, stamp = Index.load(place)
            except (UserError, KeyError, TypeError) as error:
                reason = f"is damaged ({error})"
            else:
                if stamp == self.stamp:
                    index.shards = tuple(self.shards)  # which may have moved together
                    return index
                reason = f"is out of date: {self.difference(stamp)}"
            if announce:
                print(f"The compiled index {place} {reason}; building it anew.", flush=True)
        return None

    def difference(self, stamp: object) -> str:
        """What has changed since a stamp was made."""
        if not isinstance(stamp, dict) or stamp.get("shards") != self.names:
            return "the list of shards has changed"
        local = [shard for shard in self.shards if is_local(shard)]
        pairs = zip(local, stamp["files"], self.stamp["files"], strict=True)
        changed = [shard for shard, old, new in pairs if old != new]
        return f"{changed[0]} or its index has changed" if changed else "its folder has changed"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let the processes of a machine build one after another, where the disk can lock."""
        self.place = self.writable()
        if fcntl is None or self.place is None:
            yield
            return
        with open(self.place.with_name(f"{self.place.name}.lock"), "w") as file:
            with contextlib.suppress(OSError):  # some network drives cannot; all build then
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def writable(self) -> Path | None:
        """The first place that can be written to.

        Raises:
            UserError: it was chosen, and cannot.
        """
        for place in self.places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                probe = place.with_name(f".{uuid.uuid4().hex}")
                probe.touch()
                probe.unlink()
                return place
            except OSError as error:
                if self.is_chosen:
                    raise UserError(
                        f"the index's folder must be writable, got {place.parent}: "
                        f"{error.strerror}."
                    ) from error
        return None

    def keep(self, index: Index) -> Index:
        """Write an index to its place; gives it back as it lies there, mapped into memory.

        It appears whole: it is written under a name of its own and then moved. Where another
        process was faster, that one's stays.
        """
        if self.place is None:
            print("The index cannot be kept, as no folder for it can be written to.", flush=True)
            return index
        own = self.place.with_name(f".{self.place.name}.{uuid.uuid4().hex}")
        try:
            index.save(own, self.stamp)
            remove(self.place)
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(own, self.place)
        except OSError as error:
            print(f"The index cannot be kept in {self.place}: {error.strerror}.", flush=True)
            return index
        finally:
            shutil.rmtree(own, ignore_errors=True)
        return self.fresh() or index


def relative(path: str, folder: str | None) -> str:
    """A local path from a folder, so that all may move together; an address as it is."""
    return os.path.relpath(path, folder) if folder and is_local(path) else path


def state(path: str) -> list[int] | None:
    """Size and time of change of a file, None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def remove(folder: Path) -> None:
    """Delete a folder at once for all who look, then its files."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
