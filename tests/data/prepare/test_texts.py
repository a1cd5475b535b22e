"""Texts beside images, of any making."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pixelhdm.data.captions import captions_in, captions_of
from tests.data.prepare.conftest import rejected, save
from tests.data.prepare.test_readers import listed, png, samples, write_tar


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ({"caption": 5}, ["5"]),
        ({"caption": ["", " a ", 7, True, None]}, ["a", "7"]),
        ({"caption": {"en": "hello", "de": ["hallo", "tag"], "n": 3}}, ["hello", "hallo", "tag"]),
        ({"captions": [{"id": 1, "caption": "x"}]}, ["x"]),
        ({"caption": float("nan"), "text": "y"}, ["y"]),
        ({"prompt": {"3": {"class_type": "z"}}}, []),
        ([1, {"caption": "n"}, ["q"]], ["n", "q"]),
    ],
)
def test_captions_of_any_json(value, captions):
    assert captions_of(value) == captions


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("is_json", [False, True])
def test_captions_of_any_unicode(encoding, is_json):
    text = '"grüße"' if is_json else "grüße"
    assert captions_in(text.encode(encoding), is_json) == ["grüße"]


BAD = {
    "latin.txt": "grüße".encode("latin-1"),
    "torn.json": b"{",
    "flag.json": b'{"caption": true}',
    "nest.json": b'{"text": {"a": {"b": "c"}}}',
}


def test_bad_texts_are_listed_with_their_cause(tmp_path, run):
    for number, (name, data) in enumerate(BAD.items()):
        (save(tmp_path / f"in/{name}", number, format="PNG").with_suffix(".png")).write_bytes(
            (tmp_path / f"in/{name}").read_bytes()
        )
        (tmp_path / f"in/{name}").write_bytes(data)
    save(tmp_path / "in/fine.png", 9).with_suffix(".json").write_text('{"caption": null, "f": NaN}')
    out = run(tmp_path / "in")
    found = {
        row["path"]: row["detail"]
        for row in map(json.loads, (out / "bad_texts.jsonl").read_text().splitlines())
    }
    assert found == {
        "flag.png": ".json beside it: caption holds no text, but true",
        "latin.png": ".txt beside it: not UTF-8",
        "nest.png": '.json beside it: text holds no text, but {"a": {"b": "c"}}',
        "torn.png": found["torn.png"],
    }
    text = (out / "report.txt").read_text()
    assert "texts that cannot be read: of 4 images, the first flag.png" in text
    assert "all are in bad_texts.jsonl; save those of other encodings as UTF-8" in text
    story = samples(out)["fine.png"]["json"]
    assert json.loads(story, parse_constant=lambda name: 1 / 0)["metadata"] == {"f": None}


def test_upper_case_endings_and_shared_texts(tmp_path):
    for name, ending in {"a": ".TXT", "b": ".JSON", "c": ".txt"}.items():
        save(tmp_path / f"in/{name}.JPG").with_suffix(ending).write_text('"x"')
    save(tmp_path / "in/c.png", 1)
    for name in ("lone.txt", "more.TXT"):
        (tmp_path / "in" / name).write_text("lone")
    listing = listed(tmp_path / "in")
    assert {item.path: [e for e, _ in item.texts] for item in listing.items} == {
        "a.JPG": [".txt"], "b.JPG": [".json"], "c.JPG": [".txt"], "c.png": [".txt"],
    }  # fmt: skip
    assert listing.others == {".txt": 2}


@pytest.mark.parametrize("required", [False, True])
def test_the_copy_with_a_caption_stays(tmp_path, run, required):
    for name in "abc":
        save(tmp_path / f"in/{name}.png", 5)
    (tmp_path / "in/a.txt").write_text(" ")
    (tmp_path / "in/b.txt").write_text("words")
    out = run(tmp_path / "in", require_captions=required)
    reason = "no_caption" if required else "duplicate"
    assert rejected(out) == {"a.png": "duplicate", "c.png": reason}
    assert samples(out)["b.png"]["txt"] == b"words"


def write_parquet(file: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_captions_of_img2dataset_may_lie_in_its_parquet_alone(tmp_path, run, ending):
    parts = {"a/7.png": png(0), "8.png": png(1), "8.txt": b"own", "9.png": png(2), "9.json": b"{}"}
    write_tar(tmp_path / f"in/0.{ending}", parts)
    rows = [{"key": key, "caption": f"of {key}", "url": "http://x", "exif": "{}"} for key in "789"]
    write_parquet(tmp_path / "in/0.parquet", rows)
    out = run(tmp_path / "in")
    stories = [json.loads(sample["json"]) for _, sample in sorted(samples(out).items())]
    assert [story["captions"] for story in stories] == [["own"], ["of 9"], ["of 7"]]
    assert stories[2]["metadata"] == {"url": "http://x"}
    assert (out / "report.txt").read_text().startswith("Source: 1 tar of img2dataset\n")


def test_a_damaged_parquet_is_told(tmp_path):
    write_tar(tmp_path / "0.tar", {"7.png": png(0)})
    (tmp_path / "0.parquet").write_bytes(b"PAR1")
    [note] = listed(tmp_path / "0.tar").notes
    assert "0.tar is damaged: " in note


def test_parts_of_samples_that_are_no_use_are_told_rightly(tmp_path):
    dotted = {"a.v1.png": png(0), "a.v1.txt": b"one", "a.v2.png": png(1), "a.txt": b"for the other"}
    pair = {"y.jpg": png(2), "y.png": png(3), "y.txt": b"y", "z.txt": b"lone"}
    listing = listed(write_tar(tmp_path / "x.tar", dotted | pair))
    assert [tuple(one) for one in listing.rejected] == [
        ("x.tar/y.png", "second_image", "beside y.jpg")
    ]
    assert listing.others == {".txt": 1}
