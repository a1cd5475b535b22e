"""Shards wherever they lie: names of them, and exact bytes out of them."""

import glob
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from braceexpand import UnbalancedBracesError, braceexpand

from pixelhdm.data.reading.local import LocalFiles, ReadError, TransientError
from pixelhdm.data.reading.other_files import OtherFiles
from pixelhdm.data.reading.remote import STORES, WEB, ObjectStores, scheme_of
from pixelhdm.errors import UserError, check_at_least

TAR = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LONGEST_WAIT = 30.0  # seconds between two tries
Result = TypeVar("Result")


@dataclass
class Storage:
    """Reads bytes from local files, object stores (s3, gs, az), web servers and all else that
    fsspec knows. It may be used from many threads, and sent to other processes.

    Args:
        tries: of a read before it counts as failed.
        timeout: seconds without an answer after which a read is tried again. Schemes that are
            left to fsspec have timeouts of their own.
        max_open: number of local files kept open.
        wait: seconds before the second try, about; twice as long before each further one.
    """

    tries: int = 5
    timeout: float = 30.0
    max_open: int = 256
    wait: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(1, tries=self.tries, max_open=self.max_open)
        if self.timeout <= 0 or self.wait < 0:
            raise UserError(
                "timeout must be above 0 and wait at least 0 seconds, "
                f"got {self.timeout:g} and {self.wait:g}."
            )
        self._local = LocalFiles(self.max_open)
        self._stores = ObjectStores(self.timeout)
        self._others = OtherFiles()
        self._jitter = random.SystemRandom()  # not the run's own random numbers

    def __reduce__(self) -> tuple[type, tuple[int | float, ...]]:
        return type(self), tuple(asdict(self).values())  # open files stay behind

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a file from `offset` on; one request where it is remote.

        Raises:
            ReadError: the file is missing, ends too early, or could not be read in any try.
            UserError: it may not be read, or its server cannot read parts of files.
        """
        if length == 0:
            return b""
        data = self._tried(path, lambda: self._place(path).read(path, offset, length))
        if len(data) > length:
            raise UserError(f"{path} must be readable in parts, got more than was asked for.")
        if len(data) < length:
            end = offset + len(data)
            raise ReadError("torn", f"{path} ends at byte {end}, before byte {offset + length}")
        return data

    def read_whole(self, path: str) -> bytes:
        """All bytes of a file; errors as of `read`."""
        return self._tried(path, lambda: self._place(path).read_whole(path))

    def size(self, path: str) -> int:
        """Size of a file in bytes; errors as of `read`."""
        return self._tried(path, lambda: self._place(path).size(path))

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files right in a remote folder; errors as of `read`.

        Args:
            folder: its address; ends in a slash.
        """
        place = self._stores if scheme_of(folder) in STORES else self._others
        return sorted(self._tried(folder, lambda: place.names(folder)))

    def _place(self, path: str) -> LocalFiles | ObjectStores | OtherFiles:
        """What reads a path."""
        if is_local(path):
            return self._local
        return self._stores if scheme_of(path) in STORES else self._others

    def _tried(self, path: str, action: Callable[[], Result]) -> Result:
        """The action's result, tried again after transient errors."""
        for number in range(1, self.tries + 1):
            try:
                return action()
            except TransientError as error:
                if number == self.tries:
                    raise ReadError(
                        "unreachable",
                        f"{path} could not be read in {self.tries} tries, the last: {error}",
                    ) from error
            wait = min(self.wait * 2 ** (number - 1), LONGEST_WAIT)
            time.sleep(wait * self._jitter.uniform(0.5, 1.5))
        raise AssertionError("tries is at least 1")


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's own."""
    return "://" not in path


def expand(paths: str | list[str], storage: Storage | None = None) -> list[str]:
    """The shards that paths name, in the order of the paths, those of one folder or glob by name.

    Args:
        paths: one or several of: a tar; webdataset's braces ("a/{00000..00099}.tar",
            "{train,more}/0.tar"); a local folder, for its tars; a glob ("a/*.tar"); an address
            ("s3://bucket/a/0.tar"), with a slash at its end for the tars of a remote folder. A
            local path that exists as it is written is taken as it is.
        storage: what lists remote folders; one with default settings where it is left out.

    Raises:
        UserError: nothing is found, a path is not a tar, a tar is compressed, or one is named
            twice.
    """
    storage = storage or Storage()
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        found += shards_of(path.removeprefix("file://"), storage)
    if not found:
        raise UserError("paths must name at least one tar, got none.")
    [(shard, times)] = Counter(found).most_common(1)
    if times > 1:
        raise UserError(f"paths must name each shard once, got {shard} {times} times.")
    return found


def shards_of(path: str, storage: Storage) -> list[str]:
    """The shards that one path names."""
    try:
        names = [path] if os.path.exists(path) or "{" not in path else list(braceexpand(path))
    except UnbalancedBracesError as error:
        raise UserError(f"{path} must have as many {{ as }}, got others.") from error
    found = []
    for name in names:
        if is_local(name):
            found += local_shards(name)
        else:
            found += remote_shards(name, storage)
    if all(is_local(shard) and not os.path.exists(shard) for shard in found):
        raise UserError(f"{path} must name tars that exist, got none.")
    return found


def local_shards(name: str) -> list[str]:
    """The tars that a local folder, glob or name stands for."""
    if os.path.isdir(name):
        found = glob.glob(os.path.join(glob.escape(name), "*"))
        return sorted({*chosen(name, found), *(os.path.join(name, one) for one in listed(name))})
    if glob.has_magic(name) and not os.path.exists(name):
        return chosen(name, glob.glob(name, recursive=True))
    return [checked(name, name)]


def listed(folder: str) -> list[str]:
    """The shards that a folder's dataset.json lists: one that is gone is missed by its name."""
    try:
        with open(os.path.join(folder, "dataset.json"), encoding="utf-8") as file:
            names = json.load(file)["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # there is none, or it is another program's
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return [name for name in names if name.endswith(TAR)] if are_names else []


def remote_shards(name: str, storage: Storage) -> list[str]:
    """The tars that a remote folder, glob or name stands for."""
    is_web = scheme_of(name) in WEB
    folder, _, pattern = name.rpartition("/")
    if is_web and not pattern:
        raise UserError(
            f"{name} must name tars, for example {folder}/{{00000..00099}}.tar, got a folder, "
            "which a web server does not list."
        )
    if not is_web and (not pattern or glob.has_magic(pattern)):
        try:
            names = storage.names(f"{folder}/")
        except ReadError as error:
            raise UserError(f"{folder}/ must be a listable folder, got: {error}") from error
        return chosen(name, [f"{folder}/{n}" for n in names if fnmatchcase(n, pattern or "*")])
    return [checked(name, name.partition("?")[0] if is_web else name)]


def chosen(path: str, names: list[str]) -> list[str]:
    """The tars among a folder's or glob's files, sorted."""
    found = sorted(name for name in names if name.lower().endswith(TAR))
    if not found:
        for name in sorted(names):
            checked_compression(name)
        raise UserError(f"{path} must hold tars, got none.")
    return found


def checked(name: str, file: str) -> str:
    """The name of a shard, if its file can be one."""
    checked_compression(file)
    if file.lower().endswith(TAR):
        return name
    if is_local(name):
        raise UserError(f"{name} must be a tar or a folder that exists, got neither.")
    raise UserError(f"{name} must end in .tar, or in a slash for a folder, got neither.")


def checked_compression(name: str) -> None:
    """Refuse a compressed tar: nothing in it can be read on its own."""
    if name.lower().endswith(COMPRESSED):
        raise UserError(f"{name} must not be compressed. Re-shard it with main.py prepare.")
