"""The headers in a tar: POSIX's ustar and PAX, and GNU's."""

import zlib
from typing import NamedTuple

BLOCK = 512
FILES = (b"0", b"\0", b"7")  # types of a plain file
EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: no bytes follow
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, SPARSE = b"L", b"K", (b"x", b"X"), b"g", b"S"
GNU_SPARSE = "GNU.sparse"  # start of PAX keys of a file whose bytes lie there with holes


class Header(NamedTuple):
    """What a header block says; `kind` is its type flag."""

    name: str
    length: int
    kind: bytes


def parsed(block: bytes) -> Header | None:
    """A header block (POSIX 1003.1, pax: ustar interchange format), or None where it is too short
    or its checksum or a number is wrong.
    """
    if len(block) < BLOCK:
        return None
    try:
        stored, length = number(block[148:156]), number(block[124:136])
    except ValueError:
        return None
    # Adler-32's low half is 1 + the sum of the bytes, modulo 65521, and far faster than sum().
    total = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * 32
    if (total - stored) % 65521 or length < 0:
        return None
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return Header(text(name), length, block[156:157])


def number(digits: bytes) -> int:
    """A number field: octal digits, or GNU's big-endian bytes after one of 0x80."""
    if digits[0] & 0x80:
        return int.from_bytes(digits[1:], "big") if digits[0] == 0x80 else -1
    return int(digits.strip(b" \0") or b"0", 8)


def text(name: bytes) -> str:
    """A member's name; bytes that are not UTF-8 are kept."""
    return name.decode("utf-8", "surrogateescape")


def extension(kind: bytes, data: bytes) -> dict[str, str]:
    """What a long-name header or a PAX header (records `length key=value`) says."""
    if kind == LONG_NAME:
        return {"path": text(data.partition(b"\0")[0])}
    records: dict[str, str] = {}
    while (digits := data.partition(b" ")[0]).isdigit() and int(digits) > len(digits):
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        records[text(key)] = text(value)
        data = data[int(digits) :]
    return {GNU_SPARSE if key.startswith(GNU_SPARSE) else key: records[key] for key in records}
