"""Reads from object stores and web servers, by obstore.

obstore's own retries are off: it never repeats a body that breaks off, so the repeats have to be
the caller's, and two layers would multiply.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import unquote

import obstore
from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from pixelhdm.data.reading.local import ReadError, TransientError, forbidden, missing
from pixelhdm.errors import UserError, one_line

STORES = {"s3": S3Store, "gs": GCSStore, "az": AzureStore, "http": HTTPStore, "https": HTTPStore}
WEB = ("http", "https")
TRANSIENT_STATUS = (408, 409, 425, 429)  # and all from 500
SLOWEST = 20  # timeouts that a whole transfer may take, however steadily it trickles
METADATA_HOST = "169.254.169.254"  # where clouds hand out credentials, asked when none are set
runtime_process: list[int] = []  # the process in which obstore's threads run


def scheme_of(path: str) -> str:
    """What stands before "://"; empty for a local path."""
    return path.partition("://")[0] if "://" in path else ""


class ObjectStores:
    """Buckets and web servers, each with connections of its own.

    Args:
        timeout: seconds without any byte from the server after which a request fails.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.stores: dict[str, obstore.store.ObjectStore] = {}
        self.lock = threading.Lock()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer where the object ends before; one request."""
        with naming(path):
            store, key = self.found(path)
            return store.get_range(key, start=offset, length=length).to_bytes()

    def read_whole(self, path: str) -> bytes:
        """All bytes of an object; one request."""
        with naming(path):
            store, key = self.found(path)
            return store.get(key).bytes().to_bytes()

    def size(self, path: str) -> int:
        """Size of an object in bytes; one request."""
        try:
            with naming(path):
                store, key = self.found(path)
                # not HEAD, which signed URLs do not allow
                answer = store.get(key, options={"range": (0, 1)})
                answer.bytes()  # else the connection could not be used again
                return answer.meta["size"]
        except ReadError as error:
            if error.reason == "torn":  # not even a first byte
                return 0
            raise

    def names(self, folder: str) -> list[str]:
        """Names of the objects right in a folder."""
        with naming(folder):
            store, prefix = self.found(folder)
            found = obstore.list_with_delimiter(store, prefix)["objects"]
            return [entry["path"].rpartition("/")[2] for entry in found]

    def found(self, path: str) -> tuple[obstore.store.ObjectStore, str]:
        """The store that holds a path, and the path's key in it."""
        check_process()
        scheme, _, rest = path.partition("://")
        host, _, key = rest.partition("/")
        root = f"{scheme}://{host}"
        if scheme in WEB and ("?" in key or "//" in key or "%2f" in key.lower()):
            root, key = path, ""  # a key can hold neither of them
        elif scheme in WEB:
            key = unquote(key)  # obstore quotes it
        with self.lock:
            if root not in self.stores:
                self.stores[root] = self.connected(scheme, root)
            return self.stores[root], key

    def connected(self, scheme: str, root: str) -> obstore.store.ObjectStore:
        """A new store; all but the timeouts comes from the environment."""
        pause = timedelta(seconds=self.timeout)
        try:
            return STORES[scheme].from_url(
                root,
                client_options={
                    "timeout": SLOWEST * pause,
                    "read_timeout": pause,
                    "connect_timeout": pause,
                    "allow_http": True,  # else AWS_ENDPOINT_URL=http://… would be refused
                },
                retry_config={"max_retries": 0},
            )
        except (BaseError, ValueError) as error:
            raise UserError(
                f"{root} must be a store that can be opened, got: {first_line(error)}. "
                "Check its name and the settings in the environment."
            ) from error


def may_fork() -> bool:
    """Whether a forked process could read from stores: their threads do not run here yet."""
    return not runtime_process


def check_process() -> None:
    """Refuse a forked process: obstore's threads do not live on there, and a read would hang."""
    if not runtime_process:
        runtime_process.append(os.getpid())
    if runtime_process[0] != os.getpid():
        raise UserError(
            "remote shards must be read in a process that was not forked from one that has read "
            f"some, got process {os.getpid()}. Start processes by spawn or forkserver."
        )


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn obstore's errors into a ReadError, a UserError or a TransientError."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(path) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise forbidden(path, answer_of(error)) from error
    except NotSupportedError as error:
        raise without_ranges(path) from error
    except BaseError as error:
        raise meaning(path, error) from error
    except UserError:
        raise
    except ValueError as error:  # such as "..", which no key may hold
        raise UserError(f"{path} must be a valid address, got: {first_line(error)}.") from error


def meaning(path: str, error: BaseError) -> Exception:
    """What an obstore error without a class of its own means; its text alone can tell."""
    text = str(error)
    found = re.search(r"status code: (\d{3})", text)
    status = int(found[1]) if found else 0
    if status == 410:
        return missing(path)
    if status == 416:
        return ReadError("torn", f"{path} ends before the bytes that are asked for")
    if "non-partial response" in text:
        return without_ranges(path)
    is_refused = 400 <= status < 500 and status not in TRANSIENT_STATUS
    if is_refused or "redirect without LOCATION" in text:
        return forbidden(path, answer_of(error))
    return TransientError(answer_of(error))


def without_ranges(path: str) -> UserError:
    """The error for a server that sends all of a file where a part is asked for."""
    return UserError(
        f"the server of {path} must answer range requests, got the whole file. "
        "Use another server, or copy the shards to a local disk."
    )


def answer_of(error: Exception) -> str:
    """A short text for what a server has answered, or why it has not."""
    line, text = first_line(error), str(error)
    if found := re.search(r"status code: (\d{3}[^:<]*)", line):
        answer = f"status {found[1].strip()}"
    elif found := re.search(r"kind: (\w+)", text):
        answer = f"{line} ({found[1]})"
    else:
        answer = line
    return answer + " while asking for credentials" * (METADATA_HOST in text)


def first_line(error: Exception) -> str:
    """An obstore error's text without its appendix for programmers."""
    return one_line(Exception(str(error).partition("Debug source:")[0])).rstrip(".")
