"""Classes as tables, JSON and .cls name them."""

import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pixelhdm.data.prepare.labels import parsed_label
from pixelhdm.errors import UserError
from tests.data.prepare.conftest import rejected, save
from tests.data.prepare.test_readers import listed, paths, png, write_tar


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, 3), (3.0, 3), ("3.0", 3), (" 03 ", 3), ("-1", -1), (-1.0, -1), (True, 1),
        (math.nan, None), ("", None), ("NaN", None), (None, None), ([1], None),
        ("cat", "cat"), ("0.5", "0.5"), ("n01", "n01"),
    ],
)  # fmt: skip
def test_values_are_numbers_names_or_neither(value, label):
    found = parsed_label(value)
    assert (found, type(found)) == (label, type(label))


def given(listing) -> dict[str, tuple]:
    return {item.path: (item.label, item.class_name) for item in listing.items}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_numbers_that_pandas_made_floats(tmp_path, ending):
    for number in range(3):
        save(tmp_path / f"in/{number}.png", number)
    table = tmp_path / f"in/metadata.{ending}"
    rows = [{"file_name": f"{n}.png", "label": one} for n, one in enumerate([1.0, None, 0.0])]
    if ending == "csv":
        table.write_text("file_name,label\n0.png,1.0\n1.png,\n2.png,0.0\n")
    elif ending == "jsonl":
        rows[1]["label"] = math.nan
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    listing = listed(tmp_path / "in")
    assert given(listing) == {"0.png": (1, "1"), "1.png": (None, None), "2.png": (0, "0")}
    assert listing.classes == ("0", "1")


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("cat", r"all numbers or all names, got 0 for 0\.png and cat for 1\.png\. Make them alike"),
        ("-1", r"numbers of classes, 0 … 999,999, got -1 for 1\.png\. Correct them, or set"),
        ("9999999", "got 9999999 for"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "cls", "json"])
def test_mixed_and_negative_labels_are_refused(tmp_path, second, words, kind):
    labels = {"0": "0", "1": second}
    if kind == "cls":
        parts = [(f"{key}.cls", one.encode()) for key, one in labels.items()]
        source = write_tar(tmp_path / "x.tar", dict([("0.png", png(0)), ("1.png", png(1)), *parts]))
        words = words.replace("for ", "for x.tar/")
    else:
        source = tmp_path / "in"
        for key, one in labels.items():
            file = save(source / f"{key}.png", int(key))
            if kind == "json":
                file.with_suffix(".json").write_text(json.dumps({"label": one}))
    if kind == "csv":
        lines = [f"{key}.png,{one}\n" for key, one in labels.items()]
        (source / "metadata.csv").write_text("".join(["file_name,label\n", *lines]))
    with pytest.raises(UserError, match=words):
        listed(source)
    assert listed(source, labels="none").classes == ()


def test_json_beside_an_image_names_its_class(tmp_path):
    for number, story in enumerate([{"class": "dog"}, {"label": "cat"}, {"caption": "x"}]):
        file = save(tmp_path / f"in/a/{number}.png", number)
        file.with_suffix(".json").write_text(json.dumps(story))
    listing = listed(tmp_path / "in")
    assert listing.classes == ("cat", "dog")
    assert [one[0] for one in given(listing).values()] == [1, 0, None]
    assert listed(tmp_path / "in", labels="folders").classes == ("a",)
    parts = {f"{n}.json": f'{{"label": {n}}}'.encode() for n in range(2)}
    tar = write_tar(tmp_path / "x.tar", {"0.png": png(0), "1.png": png(1), **parts})
    assert listed(tar).classes == ("0", "1")


def test_folders_are_no_labels_of_arrays(tmp_path):
    write_tar(tmp_path / "x.tar", {"0.png": png(0)})
    with pytest.raises(UserError, match=r"outside of one\. Leave labels out: auto takes"):
        listed(tmp_path / "x.tar", labels="folders")


def test_duplicates_of_another_class_are_told(tmp_path, run):
    save(tmp_path / "in/b/0.png", 0)
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / "in" / name, 7)
    out = run(tmp_path / "in")
    assert rejected(out) == {"b/2.png": "duplicate"}
    line = "1 duplicate has another label than the image that stays, the first b/2.png and a/1.png"
    assert line in (out / "report.txt").read_text()


def test_a_table_above_the_splits_tells_of_one(tmp_path):
    for name in ("train/0.png", "train/1.png", "test/0.png"):
        save(tmp_path / "in" / name, 1)
    rows = ["train/0.png,zero", "train/gone.png,x", "test/0.png,y", "test/gone.png,z"]
    (tmp_path / "in/metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    listing = listed(tmp_path / "in")
    assert [item.captions for item in listing.items] == [("zero",), ()]
    assert [one.path for one in listing.rejected] == ["train/gone.png"]
    assert listing.kind.endswith("metadata.csv, its split train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_out_may_lie_beside_the_splits(tmp_path, run, split):
    for number, name in enumerate(["train/a/0.png", "train/b/1.png", "val/a/2.png"]):
        save(tmp_path / "in" / name, number)
    source: Path = tmp_path / "in"
    for _ in range(2):
        run(source, "in/shards", split="train")
    run(source, "in/train/b/more", split="val")
    assert len(paths(listed(source, split))) == {"train": 2, "val": 1}[split]
