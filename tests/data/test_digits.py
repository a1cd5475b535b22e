from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pixelhdm.data.digits import Digits
from pixelhdm.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "new"
    Digits(str(folder)).prepare()
    return folder


def opened(folder: Path, split: str = "train") -> Digits:
    digits = Digits(str(folder), split)
    digits.open()
    return digits


def test_splits_hold_every_digit_of_scikit_learn_once(folder):
    parts = {split: opened(folder, split) for split in ("train", "val")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1617, "val": 180}
    records = {
        name: [part.load(i, 0, 8, 8) for i in range(len(part))] for name, part in parts.items()
    }
    together = sorted(
        (record.condition, record.image.tobytes()) for part in records.values() for record in part
    )
    real = load_digits()
    levels = np.round(real.images / 16 * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    assert together == sorted(
        (int(n), x.tobytes()) for n, x in zip(real.target, levels, strict=True)
    )
    assert {record.condition for record in records["val"]} == set(range(10))


def test_images_are_grey_and_use_the_whole_range(folder):
    image, label = opened(folder).load(0, 0, 8, 8)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert (image == image[..., :1]).all()
    assert isinstance(label, int)
    everything = opened(folder).images
    assert (everything.min(), everything.max()) == (0, 255)


def test_prepare_writes_once_and_leaves_no_other_file(folder):
    file = folder / "digits.npz"
    before = file.stat()
    Digits(str(folder)).prepare()
    assert file.stat() == before
    assert [entry.name for entry in folder.iterdir()] == ["digits.npz"]


def test_fingerprint_tells_splits_and_data_apart(folder, tmp_path):
    train = opened(folder)
    assert train.fingerprint() == opened(folder).fingerprint()
    assert train.fingerprint() != opened(folder, "val").fingerprint()
    with np.load(folder / "digits.npz") as stored:
        changed = stored["image"].copy()
        changed[1, 0, 0, 0] += 1
        np.savez(tmp_path / "digits.npz", image=changed, label=stored["label"])
    assert opened(tmp_path).fingerprint() != train.fingerprint()


@pytest.mark.parametrize("keep", [0.0, 1e-5, 0.001, 0.3, 0.9, 0.9999])
def test_a_torn_file_is_named(folder, tmp_path, keep):
    data = (folder / "digits.npz").read_bytes()
    (tmp_path / "digits.npz").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match=r"digits\.npz must be the digits file.*Delete it"):
        opened(tmp_path)


@pytest.mark.parametrize("content", ["text", "array", "keys", "flipped", "nothing"])
def test_another_file_is_named(folder, tmp_path, content):
    file = tmp_path / "digits.npz"
    if content == "text":
        file.write_text("not an archive")
    elif content == "array":
        with open(file, "wb") as out:
            np.save(out, np.zeros(3))
    elif content == "keys":
        np.savez(file, other=np.zeros(3))
    elif content == "flipped":
        data = bytearray((folder / "digits.npz").read_bytes())
        data[len(data) // 2] ^= 255
        file.write_bytes(data)
    with pytest.raises(UserError, match=r"digits\.npz must be the digits file"):
        opened(tmp_path)


def test_class_folders_are_not_taken_for_digits(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match=r"must hold no other folders.*ImageFolder"):
        Digits(str(tmp_path)).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["cats"]
