"""`sweep`: many settings evaluated and the best one named, as a person asks for it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pixelhdm.evaluation.record import read_records
from pixelhdm.module import PixelHDMModule
from pixelhdm.sweeping import run as sweeping_run
from tests.e2e.conftest import QUICKSTART
from tests.e2e.drawn import TEXT, facts, pixels, save_text_checkpoint
from tests.e2e.life import Life

COLOURS = "--evaluate.extractors=[{class_path: tests.stubs.ColourFeatures}]"
PLAIN = [*QUICKSTART, "--ckpt_path=last", COLOURS, "--evaluate.num_images=20"]
SWEEP = ["sweep", *PLAIN, "--sweep.folder=out"]
AXES = ["--sweep.scales=1..3/1", "--sweep.intervals=[[0, 1], [0, 0.5]]"]  # the last call is at 1


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Scale and seed of each image that is drawn in this process."""
    found, draw_batch = [], PixelHDMModule.draw_batch

    def noted(self: PixelHDMModule, batch: dict, *rest: object) -> object:
        found.extend((self.guidance.scale, seed) for seed in batch["seed"].tolist())
        return draw_batch(self, batch, *rest)

    monkeypatch.setattr(PixelHDMModule, "draw_batch", noted)
    return found


def table(folder: str = "out") -> list[dict[str, str]]:
    """The rows of table.csv."""
    with open(Path(folder) / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_setting_is_evaluated_once_with_the_same_noise(run, trained, drawn):
    told = run(*SWEEP, *AXES, "--sweep.emas=[raw, run]", "--sweep.num_grids=2")
    assert "Sweep of 10 settings (2 more would draw the same" in told
    assert "10 settings, 200 images" in told
    assert drawn == [(scale, seed) for scale in (1, 2, 3, 2, 3) * 2 for seed in range(20)]
    rows = table()
    assert [(row["ema"], float(row["scale"]), row["interval"]) for row in rows[:5]] == [
        ("raw", 1, ""), ("raw", 2, "0-1"), ("raw", 3, "0-1"), ("raw", 2, "0-0.5"),
        ("raw", 3, "0-0.5"),
    ]  # fmt: skip
    raw, averaged = ({row["KD-Colours"] for row in part} for part in (rows[:5], rows[5:]))
    assert not raw & averaged
    run("test", *PLAIN, "--evaluate.folder=one", "--model.guidance.scale=3")
    (own,) = [
        row for row in rows if (row["ema"], row["scale"], row["interval"]) == ("run", "3", "0-1")
    ]
    entry = read_records(Path("runs/quickstart"))[-1]
    scores = {score["name"]: score["value"] for score in entry["scores"]}
    assert float(own["FD-Colours"]) == scores["FD-Colours"]
    assert [entry["kind"] for entry in read_records(Path("runs/quickstart"))].count("sweep") == 10

    best = min(rows, key=lambda row: float(row["KD-Colours"]))
    assert f"Best by KD-Colours, lower is better: {float(best['KD-Colours']):.4g} ± " in told
    assert f"with scale {best['scale']}, " in told
    with Image.open("out/plot.png") as plot:
        assert plot.width > 500
    grids = sorted(file.name for file in Path("out/grids").iterdir())
    assert grids == ["image00.png", "image01.png"]
    images = np.load("one/images/00000.npz")["images"]
    grid = np.asarray(Image.open("out/grids/image01.png"))
    # four rows of three columns; in the third row, raw, run, raw, run
    cells = [grid[22 + 4 + 68 * row :][:64:8, grid.shape[1] - 68 :][:, :64:8] for row in range(4)]
    assert sum(np.array_equal(cell, images[1]) for cell in cells) == 1
    assert not list(Path("out/settings").glob("*/images/*"))


def test_an_interrupted_sweep_goes_on_and_a_larger_one_draws_what_is_new(
    run, trained, drawn, monkeypatch
):
    class Stop(Exception):
        pass

    write_result, num = sweeping_run.write_result, iter(range(9))

    def failing(*arguments: object) -> None:
        if next(num) == 1:
            raise Stop
        write_result(*arguments)

    monkeypatch.setattr(sweeping_run, "write_result", failing)
    with pytest.raises(Stop):
        run(*SWEEP, "--sweep.scales=[1, 2, 3]")
    assert len(drawn) == 40
    told = run(*SWEEP, "--sweep.scales=[1, 2, 3]")
    assert "1 of which are already evaluated in out. To do: 2 settings, 40 images" in told
    assert len(drawn) == 60  # the second one's were there
    told = run(*SWEEP, "--sweep.scales=[1, 2, 3, 4]", "--sweep.metric=FD-Colours")
    assert "3 of which are already evaluated" in told
    assert len(drawn) == 80
    assert "FD-Colours has no error estimate at 20 images" in told
    run(*SWEEP, "--sweep.scales=[1, 2]")
    assert (len(drawn), len(table())) == (80, 2)
    run(*SWEEP, "--sweep.scales=[1, 2]", "--evaluate.seed=5")
    assert len(drawn) == 120


def test_predict_and_test_take_the_best_setting(run, trained):
    flags = ["--sweep.scales=[3]", "--sweep.steps=[3]", "--sweep.intervals=[[0.2, 0.9]]"]
    told = run(*SWEEP, *flags, "--sweep.samplers=[EulerSampler]", "--sweep.emas=[raw]")
    assert "-c out/best.yaml --evaluate.num_images 50000" in told
    overlay = yaml.safe_load(Path("out/best.yaml").read_text(encoding="utf-8"))
    assert overlay["ckpt_path"] == "runs/quickstart/checkpoints/step_00000008.ckpt"
    run("predict", "-c", "runs/quickstart/config.yaml", "-c", "out/best.yaml",
        "--save_images.folder=images")  # fmt: skip
    name = next(iter(pixels("images")))
    assert facts(f"images/{name}")["sampler"] == "EulerSampler"
    own = {key: facts(f"images/{name}")[key] for key in ("steps", "scale", "weights", "guidance")}
    assert own == {"steps": "3", "scale": "3", "weights": "raw", "guidance": "interval=(0.2, 0.9)"}
    (row,) = table()
    call = ["test", *PLAIN, "-c", "out/best.yaml", "--evaluate.folder=one"]
    run(*call)
    entry = read_records(Path("runs/quickstart"))[-1]
    assert [score["value"] for score in entry["scores"]] == [
        float(row["FD-Colours"]),
        float(row["KD-Colours"]),
    ]


def test_two_processes_find_what_one_finds(trained):
    flags = [*SWEEP[1:], "--sweep.scales=[1, 2]", "--evaluate.num_images=200"]
    Life("sweep", *flags).end()
    one = table()
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--sweep.folder=two"]
    told = Life("sweep", *flags, *two, processes=2).end()
    assert told.count("Best by KD-Colours") == 1
    for a, b in zip(one, table("two"), strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sweep.scales=[]"], r"sweep\.scales must hold something or be left out, got \[\]"),
        (["--sweep.metric=FID"], r"must be one of FD-Colours, KD-Colours, which .* got FID"),
        (["--sweep.emas=[0.05]"], r"got 0\.05 for step_00000008\.ckpt, where .* has none"),
        (["--sweep.emas=[long]"], r"sweep\.emas"),
        (["--sweep.steps=[5, 5]"], r"sweep\.steps must hold different settings, got 5 twice"),
    ],
)
def test_sweeps_that_cannot_be_meant(run, trained, flags, words):
    with pytest.raises(SystemExit, match=words):
        run(*SWEEP, *flags)


def test_a_sweep_needs_a_checkpoint_and_prompts_without_scales(run):
    with pytest.raises(SystemExit, match="sweep needs a checkpoint, got no --ckpt_path"):
        run("sweep", *QUICKSTART)
    save_text_checkpoint()
    prompts = "--data.prompts=[{prompt: a barn, scale: 3}]"
    with pytest.raises(SystemExit, match="scale must be left out to sweep, got 3"):
        run("sweep", *TEXT, COLOURS, prompts, "--ckpt_path=text.ckpt")
