import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelhdm.data.indexing.tar import BLOCK, Walk, Window, walk
from pixelhdm.data.reading.storage import Storage
from tests.data.indexing.index_stubs import tar_bytes

STYLES = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
names = st.one_of(
    st.from_regex(r"[a-z0-9]{1,12}(\.[a-z0-9]{1,4}){0,3}", fullmatch=True),
    st.from_regex(r"(\./)?[a-z]{1,8}/[a-zäöü日本]{1,30}\.jpg", fullmatch=True),
    st.from_regex(r"[a-z]{1,20}/[a-z0-9]{101,180}\.png", fullmatch=True),
)
contents = st.binary(max_size=1500)


class InMemory(Storage):
    """A storage of one file."""

    def __init__(self, data: bytes):
        self.file = data

    def read(self, path: str, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert offset + length <= len(self.file), "a read beyond the end"
        return self.file[offset : offset + length]

    def size(self, path: str) -> int:
        return len(self.file)


def walked(data: bytes, step: int = 1 << 16) -> Walk:
    window = Window(InMemory(data), "x.tar")
    window.step = step
    return walk(window, lambda *_: {})


def found_in(data: bytes, walk: Walk) -> list[tuple[str, bytes]]:
    return [(m.name, data[m.offset : m.offset + m.length]) for m in walk.members]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(names, contents), max_size=8),
    st.sampled_from(STYLES),
    st.sampled_from([512, 1536, 1 << 16]),
)
def test_every_file_is_found_byte_for_byte(members, style, step):
    if style == tarfile.USTAR_FORMAT:
        members = [(name, data) for name, data in members if len(name.encode()) <= 100]
    data = tar_bytes(members, style)
    found = walked(data, step)
    assert found_in(data, found) == members
    assert (found.torn, found.gaps, found.cut_at) == ([], [], None)


def test_only_plain_files_are_taken():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            about = tarfile.TarInfo(f"a{kind!r}.jpg")
            about.type, about.linkname = kind, "b.jpg" * 40
            tar.addfile(about)
        about = tarfile.TarInfo("b.jpg")
        about.size = 5
        tar.addfile(about, io.BytesIO(b"12345"))
    assert found_in(out.getvalue(), walked(out.getvalue())) == [("b.jpg", b"12345")]


def test_a_size_in_a_pax_header_and_one_in_base_256_count():
    def tar(style, **pax):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=style) as tar:
            about = tarfile.TarInfo("a.jpg")
            about.size, about.pax_headers = 5, pax
            tar.addfile(about, io.BytesIO(b"12345"))
        return out.getvalue()

    data = tar(tarfile.PAX_FORMAT, comment="x", size="5")
    assert found_in(data, walked(data)) == [("a.jpg", b"12345")]
    big = bytearray(tar(tarfile.GNU_FORMAT))
    big[124:136] = b"\x80" + (5).to_bytes(11, "big")
    big[148:156] = b" " * 8
    big[148:156] = b"%06o\0 " % sum(big[:BLOCK])
    assert found_in(bytes(big), walked(bytes(big))) == [("a.jpg", b"12345")]


@pytest.mark.parametrize("style", STYLES)
def test_at_every_cut_the_files_before_it_are_found(style):
    members = [
        ("a.jpg", b"1" * 600),
        ("b" * 90 + "/" + "c" * 20 + ".jpg", b"2" * 20),
        ("d.txt", b""),
    ]
    data = tar_bytes(members, style)
    ends = [m.offset + m.length for m in walked(data).members]
    last = data.rstrip(b"\0")
    end = (len(last) // BLOCK + 1) * BLOCK + 2 * BLOCK  # of the two blocks that end an archive
    for cut in range(end):
        found = walked(data[:cut])
        whole = [member for member, at in zip(members, ends, strict=True) if at <= cut]
        if whole and whole[-1][1] == b"" and cut < ends[-1]:
            whole.pop()
        assert found_in(data, found) == whole, cut
        assert found.cut_at == cut
    for cut in range(end, len(data) + 1, 100):
        assert walked(data[:cut]).cut_at is None


@pytest.mark.parametrize("damage", ["zero", "flip", "noise"])
def test_a_damaged_header_loses_its_own_file_only(damage):
    members = [(f"{n}.jpg", bytes([65 + n]) * 700) for n in range(4)]
    data = bytearray(tar_bytes(members))
    start = walked(bytes(data)).members[1].offset - BLOCK
    if damage == "flip":
        data[start + 5] ^= 1
    else:
        data[start : start + BLOCK] = bytes(BLOCK) if damage == "zero" else b"\xa7" * BLOCK
    found = walked(bytes(data))
    assert found_in(bytes(data), found) == [members[0], *members[2:]]
    assert found.gaps == [(start, start + 3 * BLOCK)]
    assert found.cut_at is None


def test_zeros_over_many_files_do_not_pass_for_the_end():
    members = [(f"{n}.jpg", bytes([65 + n]) * 700) for n in range(6)]
    data = bytearray(tar_bytes(members))
    places = [m.offset - BLOCK for m in walked(bytes(data)).members]
    data[places[1] : places[4]] = bytes(places[4] - places[1])
    found = walked(bytes(data))
    assert found_in(bytes(data), found) == [members[0], *members[4:]]
    assert found.gaps == [(places[1], places[4])]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_at_all_raise(data):
    """Nothing is read beyond the end, and no file is made up that lies there."""
    tar = bytearray(tar_bytes([("a/b.jpg", b"x" * 600), ("c" * 130, b"y")], tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(tar) - 1))
        tar[at] = data.draw(st.integers(0, 255))
    tar = bytes(tar[: data.draw(st.integers(0, len(tar)))])
    for member in walked(tar).members:
        assert member.offset + member.length <= len(tar)
