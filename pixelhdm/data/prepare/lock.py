"""One process for each part of a preparation, and what is said when the disk is full."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pixelhdm.data.prepare.shards import RECORDS
from pixelhdm.errors import UserError

try:
    import fcntl
except ImportError:  # Windows; nobody is told there of a second start
    fcntl = None

TRIES, WAIT = 5, 0.02  # seconds: another part may only look whether it is held
PAUSE = 0.2  # seconds between two looks whether it is one's turn
HELD = (errno.EACCES, errno.EAGAIN)
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def locked(out: Path, part: int, num_parts: int) -> Iterator[None]:
    """Keep a second process from the same part, where the disk can lock; other parts may work at
    once. No file of it stays.

    Raises:
        UserError: another process works on the part, or on parts of another number.
    """
    if fcntl is None:
        yield
        return
    file = out / RECORDS / f"{part}-of-{num_parts}.lock"
    stream = hold(file)
    if stream is None:
        raise working(out, file)
    try:
        held = held_beside(file)
        wrong = [other for other in held if not other.stem.endswith(f"-of-{num_parts}")]
        if wrong:
            raise working(out, wrong[0])
        yield
        held_beside(file)  # for those that were killed meanwhile
    finally:
        file.unlink(missing_ok=True)
        stream.close()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is within this for the same folder, on another machine neither
    where the disk can lock; for data that every node of a run may be about to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    stream = None if fcntl is None else hold(file)
    while stream is None and fcntl is not None:
        time.sleep(PAUSE)
        stream = hold(file)
    try:
        yield
    finally:
        if stream is not None:
            file.unlink(missing_ok=True)
            stream.close()


def hold(file: Path, tries: int = TRIES) -> IO[str] | None:
    """An open file that this process has locked; None where another one has.

    Such a lock is the process's alone: its children do not keep it when it is killed.
    """
    while tries:
        stream = open(file, "w")  # noqa: SIM115
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:  # else a network drive that cannot lock
                stream.close()
                tries -= 1
                time.sleep(WAIT)
                continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                return stream
        stream.close()  # it was deleted by the one who held it
    return None


def held_beside(own: Path) -> list[Path]:
    """The locks of other processes that work; those of killed ones are deleted."""
    held = []
    for file in own.parent.glob("*.lock"):
        if file == own:  # to close it again would free it
            continue
        stream = hold(file, tries=1)
        if stream is None:
            held.append(file)
        else:
            file.unlink(missing_ok=True)
            stream.close()
    return held


def working(out: Path, file: Path) -> UserError:
    """The error where another process works."""
    part = file.stem.replace("-of-", "/")
    return UserError(
        f"out must be written by one process a part, got {out}, where another prepare is working "
        f"on part {part}. Wait for it, or stop it."
    )


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Say in one sentence that the disk is full.

    Args:
        folder: that is written to.

    Raises:
        UserError: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{folder} must have room for what is written, got no space left on the device. "
            "Free some, and run the same command again: it goes on where it stopped."
        ) from error
