"""Every kind of source."""

import csv
import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

from pixelhdm.data.prepare.items import Listing
from pixelhdm.data.prepare.readers.arrays import unpickle
from pixelhdm.data.prepare.readers.source import list_source
from pixelhdm.errors import UserError
from tests.data.prepare.conftest import picture, rejected, save


def listed(source: object, split: str = "train", labels: str = "auto") -> Listing:
    return list_source(str(source), split, labels, None, Path(str(source) + ".unpacked"))


def paths(listing: Listing) -> list[str]:
    return [item.path for item in listing.items]


def samples(out: Path) -> dict[str, dict]:
    """All samples by their path in the source, as plain webdataset reads them."""
    shards = json.loads((out / "dataset.json").read_text())["shards"]
    urls = [str(out / shard) for shard in shards]
    found = webdataset.WebDataset(urls, shardshuffle=False)
    return {json.loads(sample["json"])["path"]: sample for sample in found}


def test_a_folder_with_texts_beside_images(tmp_path, run):
    save(tmp_path / "in/b/x.y.jpg", 1).with_suffix(".txt").write_text("dotted name")
    save(tmp_path / "in/a.JPG", 2).with_suffix(".caption").write_text("a caption")
    save(tmp_path / "in/c.png", 3).with_suffix(".json").write_text('{"captions": ["1", "2"]}')
    (save(tmp_path / "in/d.png", 4).parent / "d.png.txt").write_text("whole name")
    save(tmp_path / "in/.hidden/e.png", 5)
    found = samples(run(tmp_path / "in"))
    assert {path: json.loads(s["json"])["captions"] for path, s in found.items()} == {
        "a.JPG": ["a caption"], "b/x.y.jpg": ["dotted name"], "c.png": ["1", "2"],
        "d.png": ["whole name"],
    }  # fmt: skip
    assert "cls" not in found["a.JPG"]


def test_class_folders(tmp_path, run):
    for number, name in enumerate(["dog", "cat", "ant/small"]):
        save(tmp_path / f"in/{name}/{number}.png", number)
    out = run(tmp_path / "in")
    assert json.loads((out / "dataset.json").read_text())["classes"] == ["ant", "cat", "dog"]
    found = samples(out)
    assert {path: int(s["cls"]) for path, s in found.items()} == {
        "ant/small/2.png": 0, "cat/1.png": 1, "dog/0.png": 2,
    }  # fmt: skip
    assert json.loads(found["cat/1.png"]["json"])["class"] == "cat"
    assert listed(tmp_path / "in", labels="none").classes == ()
    (tmp_path / "in/cat/1.txt").write_text("a cat")
    assert listed(tmp_path / "in").classes == ()
    assert listed(tmp_path / "in", labels="folders").classes == ("ant", "cat", "dog")


def test_one_folder_is_no_class(tmp_path):
    save(tmp_path / "in/images/1.png", 1)
    assert listed(tmp_path / "in").classes == ()


def test_the_layout_of_imagenet(tmp_path):
    for number, name in enumerate(["train/n01/a.JPEG", "train/n02/b.JPEG", "val/n02/c.JPEG"]):
        save(tmp_path / "in" / name, number)
    train = listed(tmp_path / "in")
    assert paths(train) == ["train/n01/a.JPEG", "train/n02/b.JPEG"]
    assert train.classes == ("n01", "n02")
    assert train.kind.endswith("its split train")
    assert paths(listed(tmp_path / "in", split="val")) == ["val/n02/c.JPEG"]
    (tmp_path / "in/val").rename(tmp_path / "in/test")
    with pytest.raises(UserError, match=r"^split must be one .* got val, but .* has test, train"):
        listed(tmp_path / "in", split="val")


def test_links_are_followed_once(tmp_path):
    save(tmp_path / "in/a/1.png", 1)
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")
    save(tmp_path / "else/2.png", 2)
    (tmp_path / "in/b").symlink_to(tmp_path / "else")
    (tmp_path / "in/gone.png").symlink_to("nowhere")
    listing = listed(tmp_path / "in")
    assert paths(listing) == ["a/1.png", "b/2.png"]
    assert [one[:2] for one in listing.rejected] == [("gone.png", "missing")]


ROWS = [
    {"file_name": "x/1.png", "text": "one", "label": 2},
    {"file_name": "2.png", "text": "two", "label": 0},
    {"file_name": "gone.png", "text": "three", "label": 1},
]


def write_table(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".csv":
        with open(file, "w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_tables_join_a_folder_or_are_lists(tmp_path, ending):
    for name in ("x/1.png", "2.png", "3.png"):
        save(tmp_path / "in" / name, int(name[-5]))
    table = write_table(tmp_path / f"in/metadata.{ending}", ROWS)
    for source, count in ((tmp_path / "in", 3), (table, 2)):
        listing = listed(source)
        known = {item.path: (item.captions, item.label) for item in listing.items}
        assert known["x/1.png"] == (("one",), 2)
        assert known["2.png"] == (("two",), 0)
        assert len(known) == count
        assert listing.classes == ("0", "1", "2")
        assert [one[:2] for one in listing.rejected] == [("gone.png", "missing")]
        assert any("no metadata row: 1 image," in note for note in listing.notes) == (count == 3)


def test_a_table_in_a_sub_folder_with_names_of_classes_and_several_captions(tmp_path, run):
    save(tmp_path / "in/deep/1.png", 1)
    save(tmp_path / "in/deep/2.png", 2)
    rows = [
        {"file_name": "1.png", "captions": ["a", "b"], "label": "zebra", "artist": "me"},
        {"file_name": "2.png", "captions": ["c"], "label": "ape"},
    ]
    write_table(tmp_path / "in/deep/metadata.jsonl", rows)
    out = run(tmp_path / "in")
    assert json.loads((out / "dataset.json").read_text())["classes"] == ["ape", "zebra"]
    sample = samples(out)["deep/1.png"]
    story = json.loads(sample["json"])
    assert (story["captions"], story["class"], story["label"]) == (["a", "b"], "zebra", 1)
    assert story["metadata"] == {"artist": "me"}


@pytest.mark.parametrize("text", ['{"text": "no file"}', "{broken", '{"file_name": "other.png"}'])
def test_a_wrong_table_is_refused(tmp_path, text):
    save(tmp_path / "in/1.png", 1)
    (tmp_path / "in/metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metadata\.jsonl"):
        listed(tmp_path / "in")


def test_a_plain_list(tmp_path, run):
    save(tmp_path / "in/a/1.png", 1).with_suffix(".txt").write_text("one")
    save(tmp_path / "2.png", 2)
    (tmp_path / "in/list.txt").write_text("a/1.png\n\n../2.png\nb/3.png\n")
    out = run(tmp_path / "in/list.txt")
    assert rejected(out) == {"b/3.png": "missing"}
    found = samples(out)
    assert sorted(found) == ["../2.png", "a/1.png"]
    assert found["a/1.png"]["txt"] == b"one"


def write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    opener = gzip.open if file.suffix == ".gz" else open
    file.parent.mkdir(parents=True, exist_ok=True)
    with opener(file, "wb") as stream:
        stream.write(header + array.tobytes())


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("inner", ["", "MNIST/raw"])
def test_mnist(tmp_path, run, ending, inner):
    images = np.random.default_rng(0).integers(0, 255, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    raw = tmp_path / "in" / inner
    write_idx(raw / f"train-images-idx3-ubyte{ending}", images)
    write_idx(raw / f"train-labels-idx1-ubyte{ending}", labels)
    out = run(tmp_path / "in")
    assert json.loads((out / "dataset.json").read_text())["classes"] == list("0123456789")
    found = samples(out)
    for row in range(12):
        sample = found[f"train-images-idx3-ubyte/{row:05d}"]
        assert int(sample["cls"]) == labels[row]
        np.testing.assert_array_equal(Image.open(io.BytesIO(sample["png"])), images[row])
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte must be there for split=val"):
        listed(tmp_path / "in", split="val")
    write_idx(raw / f"t10k-images-idx3-ubyte{ending}", images[:2])
    write_idx(raw / f"t10k-labels-idx1-ubyte{ending}", labels[:3])
    with pytest.raises(UserError, match="must have a label for each image, got 2 and 3"):
        listed(tmp_path / "in", split="val")


def test_cifar(tmp_path, run):
    folder = tmp_path / "in/cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 255, (11, 32, 32, 3), dtype=np.uint8)
    flat = images.transpose(0, 3, 1, 2).reshape(11, -1)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        rows = slice(2 * number, 2 * number + 2)
        content = {b"data": np.ascontiguousarray(flat[rows]), b"labels": [1, 0][: len(flat[rows])]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"plane", b"car"]}, 2))
    out = run(tmp_path / "in")
    assert json.loads((out / "dataset.json").read_text())["classes"] == ["plane", "car"]
    found = samples(out)
    assert len(found) == 10
    sample = found["data_batch_2/00001"]
    np.testing.assert_array_equal(Image.open(io.BytesIO(sample["png"])), images[3])
    assert (sample["cls"], json.loads(sample["json"])["class"]) == (b"0", "plane")
    assert paths(listed(folder, split="val")) == ["test_batch/00000"]


class Evil:
    def __init__(self, call: tuple):
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [(eval, ("1/0",)), (open, ("evil", "w")), (getattr, ({}, "get"))])
def test_pickles_with_anything_but_arrays_are_refused(tmp_path, monkeypatch, protocol, call):
    monkeypatch.chdir(tmp_path)
    data = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [Evil(call)]}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(data, protocol))
    with pytest.raises(UserError, match="must be a batch of CIFAR-10, got: "):
        unpickle(tmp_path / "data_batch_1")
    assert not (tmp_path / "evil").exists()


def test_a_torn_pickle_is_refused(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": np.zeros(99)}, 2)[:-40])
    with pytest.raises(UserError, match="must be a batch of CIFAR-10"):
        unpickle(tmp_path / "data_batch_1")


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def png(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_tars_are_written_anew(tmp_path, run, ending):
    """As img2dataset writes them, with a sample whose parts do not stand together."""
    story = json.dumps({"caption": "one", "url": "http://x"}).encode()
    write_tar(
        tmp_path / f"in/00000.{ending}",
        {"000.png": png(0), "001.png": png(1), "000.txt": b"one", "000.json": story},
    )
    write_tar(tmp_path / f"in/00001.{ending}", {"100.png": png(2), "101.png": png(3)[:-60]})
    for source in (tmp_path / "in", f"{tmp_path}/in/{{00000..00001}}.{ending}"):
        out = run(source)
        found = samples(out)
        names = ["00000.{}/000.png", "00000.{}/001.png", "00001.{}/100.png"]
        assert sorted(found) == [name.format(ending) for name in names]
        first = json.loads(found[f"00000.{ending}/000.png"]["json"])
        assert first["captions"] == ["one"]
        assert first["metadata"] == {"url": "http://x"}
        assert rejected(out) == {f"00001.{ending}/101.png": "broken"}
        assert not (out / ".prepare/unpacked").exists()


def test_shards_of_an_earlier_preparation_keep_labels_and_names(tmp_path, run):
    for number, name in enumerate(["dog", "cat"]):
        save(tmp_path / f"in/{name}/{number}.png", number)
    first = run(tmp_path / "in")
    second = run(first, "again", seed=5)
    assert json.loads((second / "dataset.json").read_text())["classes"] == ["cat", "dog"]
    assert sorted(int(sample["cls"]) for sample in samples(second).values()) == [0, 1]


def test_dotted_names_in_tars(tmp_path):
    members = {"a.v1.png": png(0), "a.v2.png": png(1), "a.v2.txt": b"two", "b.png": png(2)}
    write_tar(tmp_path / "x.tar", members | {"b.seg.png": png(3), "b.cls": b"4"})
    listing = listed(tmp_path / "x.tar")
    known = {item.path[6:]: (len(item.texts), item.label) for item in listing.items}
    assert known == {"a.v1.png": (0, None), "a.v2.png": (1, None), "b.png": (0, 4)}
    assert listing.others[".seg.png"] == 1


def test_a_torn_tar_gives_what_it_holds(tmp_path, run):
    file = write_tar(tmp_path / "x.tar", {f"{n}.png": png(n) for n in range(4)})
    file.write_bytes(file.read_bytes()[:12000])
    out = run(file)
    assert sorted(samples(out)) == ["x.tar/0.png", "x.tar/1.png"]
    assert "unreadable" in rejected(out).values()
    assert "x.tar is cut off at byte 12,000" in (out / "report.txt").read_text()


@pytest.mark.parametrize("source", ["x{0..1}.tar", "*.tar", "{", "a.jpg"])
def test_tars_that_are_not_there_are_refused(tmp_path, source):
    with pytest.raises(UserError, match="source must"):
        listed(tmp_path / source)
