import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelhdm import files
from pixelhdm.cli import main
from pixelhdm.data.digits import Digits
from pixelhdm.errors import UserError
from pixelhdm.evaluation.moments import Moments
from pixelhdm.evaluation.reference import read_references
from pixelhdm.evaluation.scores import scores
from pixelhdm.evaluation.walk import Walk
from pixelhdm.stats import stats
from tests.evaluation.degraded import digit_images
from tests.stubs import ColourFeatures

CPU, NUM = torch.device("cpu"), 30


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """30 images of two classes as PNG files, and one that is none."""
    for index, image in enumerate(digit_images()[:NUM].numpy()):
        file = tmp_path / "images" / "ab"[index % 2] / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (tmp_path / "images/a/torn.png").write_bytes(file.read_bytes()[:60])
    return tmp_path / "images"


def test_statistics_are_those_of_all_images_that_can_be_read(class_folder, tmp_path, capsys):
    extractor, file = ColourFeatures("inception", "inception"), tmp_path / "new/real.npz"
    stats(str(class_folder), str(file), 8, [extractor, ColourFeatures()], num_images_kept=12)
    told = capsys.readouterr().out
    assert "Left out 1 images" in told
    assert "torn.png" in told
    assert "30 images of 2 classes at 8x8, 30 kept" in told
    assert f"--evaluate.reference {file}" in told
    found = read_references(file, [extractor, ColourFeatures()], CPU)
    expected = Moments.of(extractor(digit_images()[:NUM]).pool)
    for reference in found.values():
        torch.testing.assert_close(reference.moments.cov, expected.cov)
        assert (reference.moments.num, len(reference.features)) == (NUM, NUM)
    with np.load(file, allow_pickle=False) as arrays:
        facts, images = json.loads(str(arrays["facts"])), torch.from_numpy(arrays["arr_0"])
    torch.testing.assert_close(extractor(images).pool, found["inception"].features[:12])
    assert (facts["num_images"], facts["num_bad"], facts["height"]) == (NUM, 1, 8)
    assert facts["extractors"]["colours"]["digest"] == ColourFeatures().digest()


def test_images_come_at_the_size_of_the_drawn_ones(class_folder, tmp_path):
    stats(str(class_folder), str(tmp_path / "a.npz"), 16, [ColourFeatures()], num_images_kept=4)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["arr_0"].shape == (4, 16, 16, 3)


def test_the_size_is_that_of_the_data_where_they_have_one(class_folder, tmp_path):
    stats(str(class_folder), str(tmp_path / "a.npz"), None, [ColourFeatures()], num_images_kept=4)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["arr_0"].shape == (4, 8, 8, 3)
    Image.new("RGB", (8, 9)).save(class_folder / "a/tall.png")
    with pytest.raises(UserError, match=r"image_size must be given .* got images of 2 sizes"):
        stats(str(class_folder), str(tmp_path / "b.npz"), None, [ColourFeatures()])


def test_the_command_takes_prepared_shards_and_extractors_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = Digits(split="val")
    source.prepare()
    source.open()
    call = "stats --data data/digits/val --out val.npz --image_size 8 --num_images 100"
    extractor = "--extractors+=tests.stubs.ColourFeatures"
    monkeypatch.setattr(sys, "argv", ["main.py", *call.split(), extractor, "--num_kept", "20"])
    main()
    assert "Colours of 100 images of 10 classes at 8x8, 20 kept" in capsys.readouterr().out
    reference = read_references(Path("val.npz"), [ColourFeatures()], CPU)["colours"]
    assert (reference.moments.num, len(reference.features)) == (100, 20)


def test_a_call_that_ends_early_leaves_the_old_file(class_folder, tmp_path, monkeypatch):
    file = tmp_path / "real.npz"
    stats(str(class_folder), str(file), 8, [ColourFeatures()])
    before = file.read_bytes()
    left = tmp_path / ".real.npz.123.part"
    left.write_bytes(b"of a call that was killed")
    os.utime(left, (0, 0))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        stats(str(class_folder), str(file), 16, [ColourFeatures()])
    assert file.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"images", "real.npz"}


def test_a_target_that_cannot_be_written_is_noticed_before_the_walk(
    class_folder, tmp_path, monkeypatch
):
    def refused(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").write_text("")
    walks = []
    monkeypatch.setattr(Walk, "gather", lambda *_: walks.append(1))
    for out in ("/proc/fo.npz", str(tmp_path / "file/fo.npz")):
        with pytest.raises(UserError, match=f"can be written to, got {Path(out).parent} "):
            stats(str(class_folder), out, 8, [ColourFeatures()])
    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(UserError, match=r"got .* \(Permission denied\)\. Choose"):
        stats(str(class_folder), str(tmp_path / "real.npz"), 8, [ColourFeatures()])
    assert walks == []


@pytest.mark.parametrize("num_kept", [0, 1, 2, 3, 4])
def test_few_kept_images_give_fewer_scores_and_it_is_said(class_folder, tmp_path, capsys, num_kept):
    extractor, file = ColourFeatures("inception"), tmp_path / "real.npz"
    stats(str(class_folder), str(file), 8, [extractor], num_kept=num_kept)
    assert ("KID, precision, recall and CMMD need 4" in capsys.readouterr().out) == (num_kept < 4)
    reference = read_references(file, [extractor], CPU)["colours"]
    names = {score.name for score in scores(extractor, extractor(digit_images()[:20]), reference)}
    assert {"FD-Colours", "sFD-Colours", "IS"} <= names
    assert ({"precision", "recall", "KD-Colours"} <= names) == (num_kept == 4)


def test_the_same_call_gives_the_same_numbers(class_folder, tmp_path):
    for name, workers in (("a", 0), ("b", 3)):
        file = str(tmp_path / f"{name}.npz")
        stats(str(class_folder), file, 8, [ColourFeatures()], 20, 15, num_workers=workers)
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as other:
        for name in set(one.files) - {"facts"}:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "real.npy"}, "out must be a file that ends with .npz, got real.npy"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"num_kept": -1}, "num_kept must be at least 0"),
        ({"num_images": 99}, "num_images must lie in 2 … 31"),
        ({"data": "nowhere"}, "nowhere must be a tar or a folder that exists"),
        ({"device": "abacus"}, "device must be one that torch can use, got abacus"),
        ({"extractors": [ColourFeatures(), ColourFeatures("clip")]}, "got colours twice"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(class_folder, tmp_path, changes, message):
    given = {
        "data": str(class_folder),
        "out": str(tmp_path / "real.npz"),
        "image_size": 8,
        "extractors": [ColourFeatures()],
    }
    with pytest.raises(UserError, match=message):
        stats(**given | changes)
    assert not (tmp_path / "real.npz").exists()
