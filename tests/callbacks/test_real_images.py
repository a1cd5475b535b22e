"""The reference of an evaluation: a file, or data.train with its file in the run folder."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch import Trainer

from pixelhdm.callbacks import real_images
from pixelhdm.callbacks.real_images import RealImages
from pixelhdm.data.mix import Mix
from pixelhdm.data.source import ImageSource
from pixelhdm.errors import UserError
from pixelhdm.evaluation.extractors.extractor import Extractor
from pixelhdm.evaluation.walk import Walk
from pixelhdm.processes import Meeting
from tests.stubs import ColourFeatures, Numbers


class Told(list):
    """What was told to a person."""

    def text(self) -> str:
        return "\n".join(self)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    lines = Told()
    monkeypatch.setattr(real_images, "rank_zero_info", lines.append)
    return lines


def trainer(folder: Path, source: ImageSource | None) -> Trainer:
    """A trainer with a source of images."""
    own = Trainer(default_root_dir=folder, accelerator="cpu", logger=False)
    own.datamodule = SimpleNamespace(sources={"train": source}, batch_size=8, num_workers=0)
    return own


def prepared(
    folder: Path,
    source: ImageSource,
    num_images: int = 10,
    extractor: Extractor | None = None,
    file: str | None = None,
) -> RealImages:
    real = RealImages(file)
    extractors = [extractor or ColourFeatures()]
    real.prepare(trainer(folder, source), extractors, (4, 4), num_images, Meeting())
    return real


def num_kept(real: RealImages) -> int:
    return len(real.references["colours"].features)


def test_twice_as_many_features_are_kept_as_images_are_drawn(tmp_path, told, monkeypatch):
    monkeypatch.setattr(Walk, "num_kept", 20)
    monkeypatch.setattr(real_images, "MOST", 70)
    source, file = Numbers(80), tmp_path / "reference_4x4_colours.npz"
    assert num_kept(prepared(tmp_path, source, 10)) == 20
    made = file.stat().st_mtime_ns
    assert num_kept(prepared(tmp_path, source, 5)) == 20
    assert file.stat().st_mtime_ns == made
    told.clear()
    real = prepared(tmp_path, source, 30)
    assert num_kept(real) == 60
    assert "keeps features of 20 images, and the scores of 30 real ones need 60" in told.text()
    assert real.floors(ColourFeatures(), 30).keys() == {"FD", "KD"}
    told.clear()
    assert num_kept(prepared(tmp_path, source, 10)) == 60  # more than enough
    assert not told
    assert num_kept(prepared(tmp_path, source, 50)) == 70  # MOST
    told.clear()
    assert num_kept(prepared(tmp_path, source, 10_000)) == 70
    assert not told


def test_a_file_of_all_images_there_are_is_not_made_again(tmp_path, told):
    source = Numbers(30, bad=(4, 7))
    assert num_kept(prepared(tmp_path, source, 10)) == 28
    told.clear()
    assert num_kept(prepared(tmp_path, source, 10_000)) == 28
    assert not told


def test_a_file_of_an_older_version_keeps_10_000(tmp_path, told):
    file = tmp_path / "reference_4x4_colours.npz"
    prepared(tmp_path, Numbers(30), 10)
    with np.load(file) as arrays:
        kept = dict(arrays)
    facts = json.loads(str(kept["facts"]))
    assert facts.pop("num_kept") == 30
    np.savez(file, **kept | {"facts": np.array(json.dumps(facts))})
    told.clear()
    prepared(tmp_path, Numbers(30), 10)
    assert not told
    np.savez(file, **kept | {"facts": np.array("[]")})  # no facts of ours
    prepared(tmp_path, Numbers(30), 10)
    assert "Statistics of 30 images" in told.text()


def test_unreadable_images_and_a_mixs_weights_are_told(tmp_path, told):
    parts = [Numbers(30, bad=(1, 2, 3, 4)), Numbers(20)]
    prepared(tmp_path / "a", Mix(parts, [1.0, 4.0]))
    assert "Colours, each image once, whatever weights the mix gives:" in told.text()
    assert "Left out 4 images that cannot be read:" in told
    assert len([line for line in told if "it is bad" in line]) == 3
    told.clear()
    prepared(tmp_path / "b", Mix([Numbers(30), Numbers(20)]))
    assert len(told) == 1
    assert "weights" not in told.text()


def test_leftovers_of_killed_calls_are_removed(tmp_path, told):
    prepared(tmp_path, Numbers(30))
    left = tmp_path / ".reference_4x4_colours.npz.17.part"
    other = tmp_path / ".reference_8x8_colours.npz.17.part"
    for file in (left, other):
        file.write_bytes(b"of a kill")
        os.utime(file, (0, 0))
    prepared(tmp_path, Numbers(30))
    assert not left.exists()
    assert other.exists()


def test_a_file_is_found_at_home_and_must_be_of_the_drawn_size(tmp_path, told, monkeypatch):
    prepared(tmp_path, Numbers(30))
    monkeypatch.setenv("HOME", str(tmp_path))
    real = prepared(tmp_path, Numbers(9), file="~/reference_4x4_colours.npz")
    assert num_kept(real) == 30
    assert real.name == str(tmp_path / "reference_4x4_colours.npz")
    real.check(trainer(tmp_path, None))
    with pytest.raises(UserError, match=r"drawn size, 8x8, got .* of 4x4\. Draw"):
        real.prepare(trainer(tmp_path, None), [ColourFeatures()], (8, 8), 10, Meeting())


def test_a_score_of_kept_features_alone_needs_some(tmp_path, told):
    with pytest.raises(UserError, match="must keep Colours's features of at least 4 images, got 3"):
        prepared(tmp_path, Numbers(3), extractor=ColourFeatures("clip"))
    assert num_kept(prepared(tmp_path, Numbers(3))) == 3
