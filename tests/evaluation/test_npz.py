"""Images as one array, as guided-diffusion's evaluator takes them."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from pixelhdm.evaluation.npz import npz_name, write_image_npz

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)


def test_it_is_what_numpy_itself_writes(tmp_path):
    labels = np.arange(7)
    write_image_npz(tmp_path / "a/own.npz", iter(IMAGES), 7, 4, 6, labels)
    np.savez(tmp_path / "other.npz", IMAGES, labels)
    with np.load(tmp_path / "a/own.npz") as own, np.load(tmp_path / "other.npz") as other:
        assert own.files == other.files == ["arr_0", "arr_1"]
        for name in own.files:
            assert own[name].dtype == other[name].dtype
            np.testing.assert_array_equal(own[name], other[name])


def test_a_reader_of_rows_finds_version_1_and_the_bytes(tmp_path):
    """The evaluator reads header and rows itself, batch by batch."""
    write_image_npz(tmp_path / "own.npz", iter(IMAGES), 7, 4, 6)
    with zipfile.ZipFile(tmp_path / "own.npz") as archive:
        assert archive.namelist() == ["arr_0.npy"]
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED
        with archive.open("arr_0.npy") as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            header = np.lib.format.read_array_header_1_0(member)
            assert header == ((7, 4, 6, 3), False, np.dtype(np.uint8))
            assert member.read(2 * 4 * 6 * 3) == IMAGES[:2].tobytes()


@pytest.mark.parametrize(
    ("num", "height", "words"), [(8, 4, "must be 8, got 7"), (7, 5, r"shape \(5, 6, 3\), got \(4")]
)
def test_another_number_or_size_leaves_no_file(tmp_path, num, height, words):
    with pytest.raises(ValueError, match=words):
        write_image_npz(tmp_path / "own.npz", iter(IMAGES), num, height, 6)
    assert list(Path(tmp_path).iterdir()) == []


def test_it_is_called_as_guided_diffusion_calls_it():
    assert npz_name(50000, 256, 128) == "samples_50000x256x128x3.npz"
