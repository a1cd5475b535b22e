"""Reads from local files, and what a read that fails is called."""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from pixelhdm.errors import UserError, one_line

Reason = Literal["missing", "torn", "unreachable"]


class ReadError(OSError):
    """A read that failed for good.

    Attributes:
        reason: missing (no such file), torn (the file ends too early) or unreachable (all tries
            failed).
        detail: what exactly, in one sentence.
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class TransientError(Exception):
    """A read that failed, but may succeed when tried again."""


def missing(path: str) -> ReadError:
    """The error for a file that is not there."""
    return ReadError("missing", f"{path} does not exist")


def forbidden(path: str, answer: str) -> UserError:
    """The error for a file that may not be read; trying again or going on without it is wrong."""
    return UserError(f"{path} must be readable, got: {answer}. Check permissions and credentials.")


@dataclass
class OpenFile:
    """A file open for reading, which closes when nobody holds it any more."""

    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)


class LocalFiles:
    """Local files, of which the last `max_open` read stay open."""

    def __init__(self, max_open: int):
        self.max_open = max_open
        self.files: OrderedDict[str, OpenFile] = OrderedDict()
        self.lock = threading.Lock()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer where the file ends before."""
        try:
            file, parts = self.opened(path), []  # held here, else another thread could close it
            while length > 0 and (part := os.pread(file.descriptor, length, offset)):
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
            return b"".join(parts)
        except OSError as error:
            with self.lock:  # a network drive may give a new handle where the old one is stale
                self.files.pop(path, None)
            raise named(path, error) from error

    def read_whole(self, path: str) -> bytes:
        """All bytes of a file."""
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise named(path, error) from error

    def size(self, path: str) -> int:
        """Size of a file in bytes."""
        try:
            return os.stat(path).st_size
        except OSError as error:
            raise named(path, error) from error

    def opened(self, path: str) -> OpenFile:
        """The open file of a path."""
        with self.lock:
            if path in self.files:
                self.files.move_to_end(path)
                return self.files[path]
        file = OpenFile(os.open(path, os.O_RDONLY))
        with self.lock:
            self.files[path] = file
            while len(self.files) > self.max_open:
                self.files.popitem(last=False)
        return file


def named(path: str, error: OSError) -> Exception:
    """What an operating system's error means for a read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return missing(path)
    if isinstance(error, PermissionError):
        return forbidden(path, error.strerror)
    return TransientError(one_line(error))
