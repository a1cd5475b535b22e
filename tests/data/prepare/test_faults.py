"""What is said of sources that are not as they should be."""

import gzip
import json
import os
import socket
from pathlib import Path

import pytest

from pixelhdm.data.prepare.prepare import prepare
from pixelhdm.data.reading.storage import ReadError, Storage
from pixelhdm.errors import UserError
from tests.data.prepare.conftest import rejected, save
from tests.data.prepare.test_readers import listed, paths, png, write_tar


@pytest.mark.timeout(20)
def test_pipes_and_sockets_do_not_stop_the_run(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in/a.png")
    (tmp_path / "in/list.txt").write_text("a.png\npipe.jpg\nfolder\n# words\n#1.png\n")
    save(tmp_path / "in/#1.png", 1)
    os.mkfifo(tmp_path / "in/pipe.jpg")
    os.mkfifo(tmp_path / "in/a.txt")
    (tmp_path / "in/folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("in/s.png")
        out = run("in")
    assert rejected(out) == {"pipe.jpg": "unreadable", "s.png": "unreadable"}
    listing = listed(tmp_path / "in/list.txt")
    assert paths(listing) == ["#1.png", "a.png"]
    assert [tuple(one) for one in listing.rejected] == [
        ("pipe.jpg", "unreadable", "not a regular file"),
        ("folder", "unreadable", "a folder"),
    ]


TARS = {
    "an empty file": b"",
    "no tar": os.urandom(3000).replace(b"ustar", b"     "),
    "a tar without files": bytes(10240),
    r"compressed; its name should end in \.tar\.gz": gzip.compress(b"x" * 3000),
}


@pytest.mark.parametrize("words", TARS)
def test_what_is_no_tar_is_named(tmp_path, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").write_bytes(TARS[words])
    with pytest.raises(UserError, match=rf"got .*in/0\.tar, which is {words}\.$"):
        listed(tmp_path / "in")
    with pytest.raises(UserError, match=rf"got .*in/0\.tar, which is {words}\.$"):
        prepare(str(tmp_path / "in"), index_only=True, num_processes=1)
    assert [file.name for file in (tmp_path / "in").iterdir()] == ["0.tar"]
    write_tar(tmp_path / "in/1.tar", {"0.png": png(0)})
    assert paths(listed(tmp_path / "in")) == ["1.tar/0.png"]


def test_tars_that_lie_deeper_are_found_for_a_hint(tmp_path):
    write_tar(tmp_path / "in/a/0.tar", {"0.png": png(0)})
    with pytest.raises(UserError, match=r"Its tars lie deeper, give '.*/in/\*/\*\.tar'\.$"):
        listed(tmp_path / "in")
    with pytest.raises(UserError, match=r"Its tars lie deeper, give '.*/in/\*/\*\.tar'\.$"):
        prepare(str(tmp_path / "in"), index_only=True)
    assert paths(listed(f"{tmp_path}/in/*/*.tar")) == ["0.tar/0.png"]


def test_a_server_that_is_not_there(monkeypatch):
    def size(_: Storage, path: str) -> int:  # a real one would keep the tests after it from forking
        raise ReadError("unreachable", f"{path} could not be read in 5 tries, the last: refused.")

    monkeypatch.setattr(Storage, "size", size)
    with pytest.raises(UserError, match=r"x\.tar must be within reach, .* refused\. Check the add"):
        listed("http://127.0.0.1:9/x.tar")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "m.jsonl",
            b'{"file_name": "a.png"}\n\n{"file',
            r"^row 3 of .*m\.jsonl must be JSON, got",
        ),
        ("m.jsonl", b'{"id": 1, "words": "x"}', r"\(or filename, .*, got the columns id, words\."),
        ("m.jsonl", b'["a.png"]', r"row 1 of .* must be an object with file_name, got \['a"),
        ("m.csv", b"file_name,text\na.png,gr\xfc\n", r"must be UTF-8, .* Save it as UTF-8\.$"),
        ("m.csv", b"picture\na.png\n", r"got the columns picture\. Rename"),
    ],
)
def test_wrong_tables_are_told_exactly(tmp_path, name, text, words):
    save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=words):
        listed(tmp_path / name)


def test_without_any_good_image_the_reasons_are_told(tmp_path, run, capsys):
    for number in range(3):
        save(tmp_path / f"in/{number}.png", number, 8, 8)
    (tmp_path / "in/a.png").write_bytes(b"broken")
    words = r"got none of 4, the first 0\.png: too small .*\)\. Take a lower min_side and another"
    with pytest.raises(UserError, match=words):
        run(tmp_path / "in")
    text = capsys.readouterr().out
    assert "           3   75.00%  too small\n" in text
    lines = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["0.png", "1.png", "2.png", "a.png"]


@pytest.mark.parametrize("name", ["source", "out"])
def test_empty_paths_are_refused(tmp_path: Path, name):
    given = {"source": str(tmp_path), "out": str(tmp_path / "out")} | {name: " "}
    with pytest.raises(UserError, match=f"^{name} must be a path, got an empty text"):
        prepare(**given)
