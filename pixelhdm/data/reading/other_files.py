"""Reads from wherever else fsspec can."""

from collections.abc import Iterator
from contextlib import contextmanager

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from pixelhdm.data.reading.local import TransientError, forbidden, missing
from pixelhdm.errors import UserError, one_line


class OtherFiles:
    """Whatever else fsspec reads; with its own timeouts."""

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer where the file ends before."""
        with naming_other(path):
            files, name = opened(path)
            # files that are not read by requests of their own would read ahead
            options = {} if files.async_impl else {"cache_type": "none"}
            return files.cat_file(name, start=offset, end=offset + length, **options)

    def read_whole(self, path: str) -> bytes:
        """All bytes of a file."""
        with naming_other(path):
            files, name = opened(path)
            return files.cat_file(name)

    def size(self, path: str) -> int:
        """Size of a file in bytes."""
        with naming_other(path):
            files, name = opened(path)
            return files.info(name)["size"]

    def names(self, folder: str) -> list[str]:
        """Names of the files right in a folder."""
        with naming_other(folder):
            files, name = opened(folder)
            found = files.ls(name, detail=True)
            return [e["name"].rpartition("/")[2] for e in found if e["type"] == "file"]


def opened(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system that holds a path, and the path's name in it."""
    try:
        return url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{path} must have a scheme that fsspec can read, got: {one_line(error)}."
        ) from error


@contextmanager
def naming_other(path: str) -> Iterator[None]:
    """Turn a file system's errors into a ReadError, a UserError or a TransientError.

    Each file system has error classes of its own, so all that says nothing else may pass.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise missing(path) from error
    except PermissionError as error:
        raise forbidden(path, one_line(error)) from error
    except UserError:
        raise
    except Exception as error:
        raise TransientError(f"{type(error).__name__}: {one_line(error)}") from error
