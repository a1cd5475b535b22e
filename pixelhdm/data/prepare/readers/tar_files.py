"""The files that tars lie in: which ones a source names, unpacking, and what is wrong with one."""

import errno
import glob
import os
import shutil
import tarfile
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from pixelhdm.data.reading.storage import COMPRESSED, ReadError, Storage, expand, is_local
from pixelhdm.errors import UserError, one_line
from pixelhdm.files import replacing

ENDINGS = (".tar", *COMPRESSED)
DEPTH = 3  # folders below a source in which tars are looked for, for a hint
MAGIC = {b"\x1f\x8b": ".tar.gz", b"BZh": ".tar.bz2", b"\xfd7zXZ\0": ".tar.xz"}
MAGIC |= {b"\x28\xb5\x2f\xfd": ".tar.zst"}


def tars_of(source: str) -> list[str]:
    """The tars that a source names: one, several by braces or wildcards, or those of a folder.

    Raises:
        UserError: there is none, or one is not there.
    """
    if not is_local(source):
        return expand(source)
    try:
        patterns = list(braceexpand(source)) if "{" in source else [source]
    except UnbalancedBracesError:
        raise UserError(f"source must have its braces in pairs, got {source}.") from None
    found = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            names = sorted(os.listdir(pattern))
            found += [os.path.join(pattern, name) for name in names if name.endswith(ENDINGS)]
        elif os.path.exists(pattern):
            found.append(pattern)
        elif matches := sorted(glob.glob(pattern)):
            found += matches
        else:
            raise UserError(f"source must name tars that are there, got {pattern}, which is not.")
    wrong = next((path for path in found if not path.endswith(ENDINGS)), None)
    if wrong or not found:
        raise UserError(
            f"source must name tars ({', '.join(ENDINGS)}), got {wrong or source}."
            f"{'' if wrong else deeper(source)}"
        )
    return found


def deeper(source: str) -> str:
    """Advice where the tars of a folder lie in folders below it; else nothing."""
    for depth in range(1, DEPTH + 1):
        for ending in ENDINGS:
            inner = "/".join(["*"] * depth + [f"*{ending}"])
            if glob.glob(os.path.join(glob.escape(source), inner)):
                return f" Its tars lie deeper, give '{source.rstrip('/')}/{inner}'."
    return ""


def unpack(path: str, name: str, folder: Path) -> str:
    """The unpacked form of a compressed tar; made where it is not there yet."""
    target = folder / f"{name.replace('/', '_')}.tar"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(target) as temporary:
                plain_copy(path, temporary)
        except (tarfile.TarError, EOFError, OSError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"{path} must be a readable compressed tar, got: {one_line(error).rstrip('.')}. "
                "Remove or replace it."
            ) from error
    return str(target)


def plain_copy(path: str, target: Path) -> None:
    """Write the members of a compressed tar as a plain one."""
    if path.endswith(".zst"):
        raise tarfile.ReadError("zstandard needs Python 3.14; unpack it with zstd -d first")
    with tarfile.open(path, "r|*") as source, tarfile.open(target, "w") as copy:
        for member in source:
            if member.isfile():
                copy.addfile(member, source.extractfile(member))


def remove_unpacked(folder: Path) -> None:
    """Delete the unpacked tars."""
    shutil.rmtree(folder, ignore_errors=True)


def flaw(storage: Storage, path: str) -> str:
    """What a tar is in which no file is found."""
    size = storage.size(path)
    head = storage.read(path, 0, min(size, 512))
    if not head:
        return "an empty file"
    for magic, ending in MAGIC.items():
        if head.startswith(magic):
            return f"compressed; its name should end in {ending}"
    return "no tar" if any(head) else "a tar without files"


def unreadable(path: str, error: ReadError) -> UserError:
    """The error for a tar that cannot be read at all."""
    reason = one_line(error).rstrip(". ")
    if is_local(path):
        return UserError(f"{path} must be a readable tar, got: {reason}. Remove or replace it.")
    return UserError(f"{path} must be within reach, got: {reason}. Check the address.")
