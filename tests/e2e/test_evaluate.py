"""`test`: images drawn, compared and written down, as a person asks for it."""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from pixelhdm.data.digits import Digits
from pixelhdm.evaluation import image_store
from pixelhdm.evaluation.record import read_records
from pixelhdm.module import PixelHDMModule
from tests.e2e.conftest import QUICKSTART, ROOT
from tests.e2e.drawn import TEXT, files, pixels, save_text_checkpoint
from tests.e2e.life import Life
from tests.stubs import ColourFeatures
from tests.text_shards import save_shards
from tests.tiny_qwen3 import save_tiny_qwen3

COLOURS = "--evaluate.extractors=[{class_path: tests.stubs.ColourFeatures}]"
TWO_KINDS = (
    "--evaluate.extractors=[{class_path: tests.stubs.ColourFeatures}, "
    "{class_path: tests.stubs.ColourFeatures, init_args: {kind: inception, key: more}}]"
)
TEST = ["test", *QUICKSTART, "--ckpt_path=last", "--evaluate.folder=out", COLOURS]
PROMPTS = "--data.prompts=[{prompt: a barn, seed: 7, scale: 1}, {prompt: sea, negative_prompt: a}]"
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the images that are drawn in this process; small chunks."""
    seeds, draw_batch = [], PixelHDMModule.draw_batch

    def noted(self: PixelHDMModule, batch: dict, *rest: object) -> torch.Tensor:
        seeds.extend(batch["seed"].tolist())
        return draw_batch(self, batch, *rest)

    monkeypatch.setattr(PixelHDMModule, "draw_batch", noted)
    monkeypatch.setattr(image_store, "CHUNK", 8)
    return seeds


def stored(folder: str = "out") -> dict[str, np.ndarray]:
    """All stored images with their conditions and seeds, in order."""
    parts = [np.load(file) for file in sorted(Path(folder).glob("images/*.npz"))]
    return {
        name: np.concatenate([part[name] for part in parts])
        for name in ("images", "conditions", "seeds")
    }


def written(folder: str = "out") -> dict[str, float]:
    """The scores in a folder by their names."""
    found = json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))
    return {score["name"]: score["value"] for score in found["scores"]}


def distance(drawn: np.ndarray) -> float:
    """The Fréchet distance of drawn images' colours to those of all digits, by scipy."""
    digits = Digits()
    digits.open()
    real = np.stack([digits.load(index, 0, 8, 8).image for index in range(len(digits))])
    a, b = (ColourFeatures()(torch.from_numpy(own)).pool.double().numpy() for own in (drawn, real))
    mixed = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return shift + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * mixed)


def test_balanced_images_are_scored_against_the_training_images(run, trained, drawn):
    output = run(*TEST, "--evaluate.num_images=34", "--evaluate.seed=5", "--data.batch_size=3")
    assert drawn == list(range(5, 39))
    assert "4 of each of the first 4 of 10 classes, 3 of the others; compared with data" in output
    own = stored()
    assert own["seeds"].tolist() == drawn
    assert own["conditions"].tolist() == [number % 10 for number in range(34)]
    assert written()["FD-Colours"] == pytest.approx(distance(own["images"]), rel=1e-4)
    assert re.search(r"^FD-Colours ↓ +[\d.e-]+ .* 34 +1,617 +Colours", output, re.MULTILINE)

    one = ["--data.draw={classes: 3, num_images: 1, seed: 18}", "--save_images.folder=one"]
    run("predict", *QUICKSTART, "--ckpt_path=last", *one)
    image = pixels("one")["class0003_seed000018.png"]
    assert np.abs(own["images"][13].astype(int) - image).max() <= 1

    (record,) = read_records(Path("runs/quickstart"))
    assert record == json.loads(Path("out/scores.json").read_text(encoding="utf-8"))
    assert (record["kind"], record["step"], record["num_images"]) == ("test", 8, 34)
    assert record["settings"]["sampler"] == "HeunSampler"
    assert (record["settings"]["steps"], record["settings"]["scale"]) == (2, 2.0)
    assert list(Path("runs/quickstart/tensorboard").glob("events*"))
    grid = np.asarray(Image.open("out/samples.png"))
    for number in (0, 10, 33):  # 8 pixels of 8, behind the labels
        row, column = number % 10, number // 10
        left = grid.shape[1] - (4 - column) * 68
        cell = grid[4 + 68 * row :, left:][:64, :64]
        np.testing.assert_array_equal(cell[::8, ::8], own["images"][number])


def same_bytes(one: str, other: str) -> int:
    """How many files are the same in both folders, which have the same."""
    assert files(one) == files(other)
    return sum(
        (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes() for name in files(one)
    )


def test_two_processes_find_the_same_to_the_bit(trained):
    flags = [*QUICKSTART, "--ckpt_path=last", "--evaluate.num_images=300", TWO_KINDS]
    Life("test", *flags, "--evaluate.folder=one").end()
    Life("test", *flags, *TWO, "--evaluate.folder=two", processes=2).end()
    assert len(files("one")) == 3 * 3 + 2
    assert same_bytes("one", "two") == len(files("one")) - 1
    assert written("one") == written("two")
    records = read_records(Path("runs/quickstart"))
    assert [len(record["scores"]) for record in records] == [8, 8]


def test_a_killed_call_goes_on_with_what_is_left(trained):
    flags = [*QUICKSTART, "--ckpt_path=last", "--evaluate.folder=out", "--data.batch_size=8"]
    flags += ["--evaluate.num_images=400", COLOURS, "--model.sampler.num_steps=10"]
    killed = Life("test", *flags)
    first = Path("out/features")
    while not list(first.glob("*/00000.npz")):
        assert not killed.is_over(), killed.printed()
        time.sleep(0.005)
    killed.send(signal.SIGKILL)
    while not killed.is_over():
        time.sleep(0.005)
    left = 4 - len(list(Path("out/images").glob("*.npz")))
    assert left > 0
    kept = Path("out/images/00000.npz").stat().st_mtime_ns
    Path("out/images/.00003.npz.17.part").write_bytes(b"a kill while it was written")
    output = Life("test", *flags).end()
    assert f"{(4 - left) * 128} of 400 images were drawn before" in output
    assert Path("out/images/00000.npz").stat().st_mtime_ns == kept
    assert stored()["seeds"].tolist() == list(range(400))
    assert not list(Path("out/images").glob(".*"))
    assert written()["FD-Colours"] == pytest.approx(distance(stored()["images"]), rel=1e-4)


def test_prompts_come_in_turn_with_what_they_ask_for(run, drawn):
    save_text_checkpoint()
    words = [*TEXT, PROMPTS, COLOURS, "--evaluate.num_images=11", "--evaluate.folder=out"]
    output = run("test", *words, "--evaluate.save_npz=true")
    assert "6 of each of the first 1 of 2 prompts, 5 of the others" in output
    own = stored()
    assert own["conditions"].tolist() == ["a barn", "sea"] * 5 + ["a barn"]
    assert own["seeds"].tolist() == list(range(11))
    with np.load("out/samples_11x8x8x3.npz") as arrays:
        assert arrays.files == ["arr_0"]
    run("predict", *TEXT, "--data.prompts=[{prompt: a barn, seed: 4, scale: 1}, {prompt: sea, "
        "negative_prompt: a, seed: 5}]", "--save_images.folder=pair")  # fmt: skip
    for number, image in zip((4, 5), pixels("pair").values(), strict=True):
        assert np.abs(own["images"][number].astype(int) - image).max() <= 1


def test_a_text_config_and_what_fit_leaves_behind(run, run_folder):
    """The recipe of text to image, made tiny, by the config.yaml of its run."""
    save_tiny_qwen3(run_folder / "qwen3")
    save_shards(run_folder / "data/mine")
    files = [ROOT / "configs_t2i/base.yaml", ROOT / "tests/offline_t2i.yaml"]
    config = [word for file in files for word in ("-c", file)]
    own = ["--trainer.max_steps=1", "--sample_images.every_n_steps=0", "--model.loss.repa=null"]
    sizes = ["--data.batch_tokens=null", "--data.buckets=null"]
    run("fit", *config, *own, *sizes, "--trainer.default_root_dir=run")
    flags = ["-c", "run/config.yaml", "--ckpt_path=last", COLOURS, "--evaluate.num_images=10"]
    with pytest.raises(SystemExit, match=r"must all have one size, got 16x8 .* and 8x16"):
        run("test", *flags)
    Path("some.txt").write_text("picture 1\na red square\n")
    output = run("test", *flags, "--data.prompts=some.txt")
    (folder,) = Path("run/test").iterdir()
    assert folder.name.startswith("prompts=some_checkpoint=step_00000001_weights=ema_sampler=")
    assert str(folder) in output
    assert stored(str(folder))["images"].shape == (10, 12, 12, 3)


def test_predict_writes_an_array_once_all_images_are_there(run):
    save_text_checkpoint()
    draw = ["predict", *TEXT, "--data.prompts=[a, b, c]", "--save_images.folder=out"]
    output = run(*draw, "--save_npz", "--trainer.limit_predict_batches=1", "--data.batch_size=2")
    assert "array of all images is written once none is left" in output
    assert not list(Path("out").glob("*.npz"))
    Path("npz.yaml").write_text("save_npz: true\n")
    assert "as one array: out/samples_3x8x8x3.npz" in run(*draw, "-c", "npz.yaml")
    Path("out/samples_3x8x8x3.npz").unlink()
    assert "Drew 0 images, 3 were" in run(*draw, "--save_npz")
    with np.load("out/samples_3x8x8x3.npz") as arrays:
        assert arrays.files == ["arr_0"]
        np.testing.assert_array_equal(arrays["arr_0"], np.stack([*pixels("out").values()]))
    with pytest.raises(SystemExit, match="must all have one size"):
        run(*draw, "--save_npz", "--data.prompts=[a, {prompt: b, size: 4x12}]")


def test_predict_writes_classes_too(run, trained):
    run("predict", *QUICKSTART, "--ckpt_path=last", "--save_images.folder=out", "--save_npz=true")
    with np.load("out/samples_4x8x8x3.npz") as arrays:
        assert arrays["arr_1"].tolist() == [1, 7, 1, 7]
        last = pixels("out")["class0007_seed000001.png"]
        np.testing.assert_array_equal(arrays["arr_0"][3], last)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--evaluate.extractors=[]"], "extractors must be different ones or be left out, got"),
        (["--data.train=null"], "reference must be a file .* where data.train is empty, got neith"),
        (
            ["--evaluate.reference=no.npz"],
            "got no.npz, which does not exist. Make one with main.py",
        ),
        (["--trajectory=gif"], "trajectory.* It belongs to predict"),
        (
            ["--data.prompts=[a barn]", "--data.draw.classes=null"],
            "must be class numbers for ClassConditioner, got captions",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_before_anything_is_drawn(run, trained, flags, words):
    with pytest.raises(SystemExit, match=re.compile(f"error: .*{words}")):
        run(*TEST, *flags)
    assert not Path("out").exists()


def test_a_text_model_needs_prompts_and_a_checkpoint(run):
    save_text_checkpoint()
    with pytest.raises(SystemExit, match=r"error: data.prompts must say what to draw where"):
        run("test", *TEXT, COLOURS)
    with pytest.raises(SystemExit, match=r"error: test needs trained weights, got no --ckpt_path"):
        run("test", *QUICKSTART, COLOURS)
