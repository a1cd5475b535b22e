import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from pixelhdm.callbacks import save_trajectory
from pixelhdm.callbacks.save_images import SaveImages
from pixelhdm.callbacks.save_trajectory import SaveTrajectory
from pixelhdm.data.draws import DrawItem, Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.inference.samplers import Step
from pixelhdm.inference.showing.trajectory import Trajectory
from tests.test_module import text_module


class Folder(SaveImages):
    """Images with few facts."""

    def __init__(self, target: Path):
        super().__init__()
        self.target, self.checkpoint = target, "one"

    def facts(self, item: DrawItem) -> dict[str, str]:
        return {"seed": str(item.seed), "checkpoint": self.checkpoint}


class Asked(Trainer):
    """A trainer of which the callback asks these alone."""

    datamodule, callbacks = None, []

    def __init__(self, folder: Path, prompts: list | str, draws: Draws, is_first: bool):
        self.datamodule = PixelHDMDataModule(8, 4, draws, prompts=prompts)
        self.datamodule.draw_list = self.datamodule.to_draw()
        self.callbacks, self.is_first = [Folder(folder)], is_first

    @property
    def is_global_zero(self) -> bool:
        return self.is_first


class Saver:
    """The callback in a process that draws `items` of 40 images; each is as grey as its seed."""

    def __init__(self, folder: Path, settings: Trajectory, is_first: bool = True):
        self.trainer = Asked(folder, ["a"], Draws(num_images=40), is_first)
        self.items = self.trainer.datamodule.draw_list.items
        self.module, self.callback = text_module(), SaveTrajectory(settings)
        self.callback.setup(self.trainer, self.module, "predict")

    def draw(self, items: list[DrawItem]) -> None:
        shades = torch.tensor([item.seed for item in items]) / 127.5 - 1
        image = torch.ones(len(items), 8, 8, 3) * shades[:, None, None, None]
        for number in range(4):
            self.module.on_step(Step(number, 3, number / 3, image + (3 - number) / 10, image))
        pixels = torch.zeros(len(items), 8, 8, 3, dtype=torch.uint8)
        self.callback.on_predict_batch_end(self.trainer, self.module, pixels, {"items": items})

    def end(self) -> None:
        self.callback.teardown(self.trainer, self.module, "predict")


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_processes_gather_one_grid_of_the_first_images(tmp_path, monkeypatch):
    settings = Trajectory("webp", "grid")
    parts: list[dict] = []
    savers = [Saver(tmp_path, settings, is_first) for is_first in (True, False)]
    for rank, saver in enumerate(savers):
        saver.draw(saver.items[rank::2])
        parts.append(pickle.loads(pickle.dumps(saver.callback.ways)))
    assert sum(map(len, parts)) == 36
    monkeypatch.setattr(save_trajectory, "gather_objects", lambda own: parts)
    savers[1].end()
    assert not names(tmp_path)
    savers[0].end()
    assert names(tmp_path) == {"trajectory.webp"}
    with Image.open(tmp_path / "trajectory.webp") as image:
        assert image.n_frames == 4
        image.seek(3)
        last = np.asarray(image.convert("RGB"))
    assert last.shape == (55 * 8, 55 * 8, 3)
    middles = last[5 * 8 :: 72, 5 * 8 :: 72, 0].ravel()
    np.testing.assert_array_equal(middles, range(36))  # in the order of the list
    assert all(map(savers[0].callback.is_there, savers[0].items))


@pytest.mark.parametrize("layout", ["image", "grid", "both"])
def test_what_lies_beside_an_image_decides_whether_it_is_drawn_again(tmp_path, layout):
    saver = Saver(tmp_path, Trajectory("strip", layout, num_frames=2))
    items, is_there = saver.items, saver.callback.is_there
    assert [is_there(item) for item in items] == [layout == "grid" and i >= 36 for i in range(40)]
    saver.draw(items)
    saver.end()
    assert all(map(is_there, items))
    one = {"00000_seed000039_strip.png", "00000_seed000000_strip.png"}
    assert one.issubset(names(tmp_path)) == (layout != "grid")
    assert ("trajectory_strip.png" in names(tmp_path)) == (layout != "image")
    for changed in (Trajectory("strip", layout, num_frames=3), Trajectory("gif", layout)):
        again = Saver(tmp_path, changed)
        assert not again.callback.is_there(items[0])
    saver.callback.images.checkpoint = "two"
    assert not is_there(items[0])


def test_a_grid_that_is_there_is_not_replaced_by_a_part(tmp_path):
    saver = Saver(tmp_path, Trajectory("gif", "grid"))
    saver.draw(saver.items[:5])
    saver.end()
    assert not any(map(saver.callback.is_there, saver.items[:36]))
    saver.draw(saver.items)
    saver.end()
    whole = (tmp_path / "trajectory.gif").read_bytes()
    again = Saver(tmp_path, Trajectory("gif", "grid"))
    again.draw(again.items[3:4])  # its picture was deleted
    again.end()
    assert (tmp_path / "trajectory.gif").read_bytes() == whole


def test_images_of_other_numbers_of_steps_share_a_strip_without_times(tmp_path):
    saver = Saver(tmp_path, Trajectory("strip", "grid"))
    saver.draw(saver.items[:1])
    ways = list(saver.callback.ways.values())
    saver.callback.write("same.png", saver.items[:2], [ways[0], ways[0]])
    short = ways[0]._replace(frames=ways[0].frames[::3], times=ways[0].times[::3])
    saver.callback.write("other.png", saver.items[:2], [ways[0], short])
    below = {name: np.asarray(Image.open(tmp_path / name))[-18:].min() for name in names(tmp_path)}
    assert below["same.png"] < 100
    assert below["other.png"] == 255


def test_files_that_would_be_in_the_way_are_errors(tmp_path):
    clash = [{"prompt": "a", "file_name": "b"}, {"prompt": "c", "file_name": "b_strip"}]
    taken = [{"prompt": "a", "file_name": "trajectory_strip"}]
    for prompts, words in ((clash, "got b_strip.png"), (taken, "got trajectory_strip.png")):
        trainer = Asked(tmp_path, prompts, Draws(), True)
        SaveTrajectory(Trajectory("gif")).setup(trainer, text_module(), "predict")
        with pytest.raises(UserError, match=words):
            SaveTrajectory(Trajectory("strip")).setup(trainer, text_module(), "predict")
    trainer.datamodule.draw_list = trainer.datamodule.draw_list._replace(layout="geneval")
    SaveTrajectory(Trajectory("gif", "grid")).setup(trainer, text_module(), "predict")
    with pytest.raises(UserError, match="layout must be grid for a benchmark, got both"):
        SaveTrajectory(Trajectory("gif", "both")).setup(trainer, text_module(), "predict")


def test_a_missing_package_is_told_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        Saver(tmp_path, Trajectory("mp4"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_frames": 1}, "num_frames must be at least 2, got 1"),
        ({"duration": 0.0}, "duration must lie in 0.1 … 600 seconds, got 0.0"),
        ({"duration": float("nan")}, "duration must lie in 0.1 … 600 seconds, got nan"),
    ],
)
def test_settings_that_cannot_be_meant_are_errors(settings, words):
    with pytest.raises(UserError, match=words):
        Trajectory(**settings)
