from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pixelhdm.data.digits import Digits
from pixelhdm.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "new"
    for split in ("train", "val"):
        Digits(str(folder), split).prepare()
    return folder


def opened(folder: Path, split: str = "train") -> Digits:
    digits = Digits(str(folder), split)
    digits.open()
    return digits


def test_splits_hold_every_digit_of_scikit_learn_once(folder):
    parts = {split: opened(folder, split) for split in ("train", "val")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1617, "val": 180}
    records = [part.load(i, 0, 8, 8) for part in parts.values() for i in range(len(part))]
    together = sorted((record.condition, record.image.tobytes()) for record in records)
    real = load_digits()
    levels = np.round(real.images / 16 * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    assert together == sorted(
        (int(n), x.tobytes()) for n, x in zip(real.target, levels, strict=True)
    )
    assert {record.condition for record in records[1617:]} == set(range(10))
    assert parts["train"].classes == tuple("0123456789")


def test_images_are_grey_and_use_the_whole_range(folder):
    digits = opened(folder)
    images = np.stack([digits.load(index, 0, 8, 8).image for index in range(200)])
    assert images.shape == (200, 8, 8, 3)
    assert images.dtype == np.uint8
    assert (images == images[..., :1]).all()
    assert (images.min(), images.max()) == (0, 255)


def test_prepare_writes_once(folder, capsys):
    def states() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*")}

    before = states()
    Digits(str(folder)).prepare()
    assert states() == before
    assert capsys.readouterr().out == ""


def test_fingerprint_tells_splits_apart(folder):
    assert opened(folder).fingerprint() == opened(folder).fingerprint()
    assert opened(folder).fingerprint() != opened(folder, "val").fingerprint()


def test_class_folders_are_not_taken_for_digits(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match=r"must hold no other folders.*ImageFolder"):
        Digits(str(tmp_path)).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["cats"]
