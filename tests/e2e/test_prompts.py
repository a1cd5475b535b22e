"""Prompts in, pictures out: predict and the sample grids with text."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pixelhdm.module import PixelHDMModule
from tests.e2e.conftest import QUICKSTART
from tests.e2e.drawn import TEXT, Links, facts, files, pixels, save_text_checkpoint
from tests.e2e.life import Life

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
LINES = [
    {"prompt": "a red barn", "negative_prompt": "räin <b> & snow", "file_name": "barns/one"},
    {"prompt": "the sea", "size": "4x12", "scale": 1},
    {"prompt": "the sea", "height": 12, "seed": 40},
]


@pytest.fixture
def draw(run: Callable[..., str]) -> Callable[..., str]:
    """Predict from text.ckpt into a folder."""
    save_text_checkpoint()
    Path("own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))

    def call(folder: str, *flags: str, prompts: str = "own.jsonl") -> str:
        words = [f"--data.prompts={prompts}", f"--save_images.folder={folder}", *flags]
        return run("predict", *TEXT, *words)

    return call


def test_pictures_carry_what_made_them_and_a_page_shows_all(draw):
    output = draw("out", "--model.guidance.scale=2.5")
    assert "Drew 3 images, 0 were there already. Look at them: out/index.html" in output
    assert files("out") == [
        "00001_seed000000.png",
        "00002_seed000040.png",
        "barns/one.png",
        "index.html",
    ]
    told = facts("out/barns/one.png")
    assert told["prompt"] == "a red barn"
    assert told["negative_prompt"] == "räin <b> & snow"
    assert (told["seed"], told["scale"], told["size"]) == ("0", "2.5", "8x8")
    assert (told["sampler"], told["steps"], told["weights"]) == ("HeunSampler", "2", "raw")
    assert told["checkpoint"] == "text.ckpt"
    assert yaml.safe_load(told["config"])["model"]["network"]["init_args"]["hidden_dim"] == 32
    assert Image.open("out/00001_seed000000.png").size == (12, 4)
    assert facts("out/00001_seed000000.png")["scale"] == "1"
    assert facts("out/00002_seed000040.png")["seed"] == "40"
    page = Links(Path("out/index.html"))
    assert [unquote(image["src"]) for image in page.images] == [
        "barns/one.png",
        "00001_seed000000.png",
        "00002_seed000040.png",
    ]
    assert all(image["loading"] == "lazy" for image in page.images)
    assert "not: räin <b> & snow" in page.text
    assert "seed 40 · 12×8 · scale 2.5" in page.text


def test_an_interrupted_call_goes_on_where_it_stopped(draw, monkeypatch):
    draw("whole")
    drawn, draw_batch = [], PixelHDMModule.draw_batch

    def counted(self: PixelHDMModule, batch: dict, *rest: object) -> torch.Tensor:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.extend(item.file for item in batch["items"])
        return draw_batch(self, batch, *rest)

    monkeypatch.setattr(PixelHDMModule, "draw_batch", counted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        draw("parts", "--data.batch_size=1")
    assert files("parts") == sorted(drawn)
    torn = Path("parts") / drawn[0]
    torn.write_bytes(torn.read_bytes()[:-40])
    for leftover in ("parts", "parts/barns"):
        (Path(leftover) / ".x.png.123.part").write_bytes(b"a kill while it was written")
    kept = (Path("parts") / drawn[1]).stat().st_mtime_ns
    monkeypatch.setattr(PixelHDMModule, "draw_batch", draw_batch)
    assert "Drew 2 images, 1 were there already" in draw("parts", "--data.batch_size=1")
    assert (Path("parts") / drawn[1]).stat().st_mtime_ns == kept
    assert files("parts") == files("whole")
    for name, image in pixels("whole").items():
        assert np.abs(image - pixels("parts")[name]).max() <= 1
    assert "Drew 0 images, 3 were there already" in draw("parts")


@pytest.mark.parametrize(
    ("flags", "num"),
    [
        (["--data.draw.seed=1"], 2),  # the third has a seed of its own
        (["--data.draw.height=16"], 1),  # the others have a height of their own
        (["--model.guidance.scale=3"], 3),
        (["--model.sampler.num_steps=3"], 3),
        (["--model.sampler=EulerSampler"], 3),
        (["--model.flow.t_eps=0.04"], 3),
        (["--trainer.precision=bf16-mixed"], 3),
        (["--model.loss.frequency.quality=80", "--data.batch_size=1"], 0),
    ],
)
def test_images_of_other_settings_are_drawn_again(draw, flags, num):
    draw("out")
    assert f"Drew {num} images" in draw("out", *flags)


def test_images_of_another_checkpoint_are_drawn_again(draw):
    draw("out")
    state = torch.load("text.ckpt", weights_only=True)
    state["state_dict"]["conditioner.words.weight"][0, 0] += 1e-3
    torch.save(state, "text.ckpt")
    assert "Drew 3 images, 0 were" in draw("out")


def test_geneval_finds_its_folders(draw):
    lines = [
        {"tag": "colors", "include": [{"class": "cow", "count": 1}], "prompt": f"a {color} cow"}
        for color in ("red", "blue")
    ]
    Path("meta.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw("out", prompts="meta.jsonl")
    names = ["metadata.jsonl", *(f"samples/{number:05d}.png" for number in range(4))]
    expected = [f"{group:05d}/{name}" for group in (0, 1) for name in names]
    assert files("out") == [*expected, "index.html"]
    for number, line in enumerate(lines):
        with open(f"out/{number:05d}/metadata.jsonl") as file:
            assert json.load(file) == line
    seeds = [facts(f"out/{name}")["seed"] for name in files("out") if name.endswith(".png")]
    assert seeds == [str(seed) for seed in range(8)]
    assert len({str(image.tolist()) for image in pixels("out").values()}) == 8

    Path("meta.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(SystemExit, match=r"must hold no others, got 4 .* 00001/samples/00000.png"):
        draw("out", prompts="meta.jsonl")


def test_a_call_that_draws_a_part_touches_whole_grids_alone(draw):
    Path("dpg").mkdir()
    for name in ("b", "a"):
        Path(f"dpg/{name}.txt").write_text(f"a picture of {name}")
    draw("out", prompts="dpg")
    other = ["--model.sampler.num_steps=5"]
    output = draw("out", *other, "--trainer.limit_predict_batches=2", prompts="dpg")
    assert "Drew 6 images, 0 were there already, 2 are left" in output
    assert len(Links(Path("out/index.html")).images) == 6
    assert [facts(f"out/grids/{name}.png")["steps"] for name in "ab"] == ["5", "2"]
    assert "Drew 2 images, 6 were there already." in draw("out", *other, prompts="dpg")
    for name in "ab":
        parts = [p for file, p in pixels("out/samples").items() if file.startswith(name)]
        grid = pixels("out/grids")[f"{name}.png"]
        np.testing.assert_array_equal(grid[:8], np.concatenate(parts[:2], axis=1))
        np.testing.assert_array_equal(grid[8:], np.concatenate(parts[2:], axis=1))


def test_the_config_in_a_picture_draws_it_again(run, trained):
    settings = ["--data.draw={classes: 3, num_images: 1}", "--ckpt_path=last"]
    run("predict", *QUICKSTART, *settings, "--save_images.folder=out")
    name = "class0003_seed000000.png"
    told = facts(f"out/{name}")
    Path("again.yaml").write_text(told["config"], encoding="utf-8")
    assert told["checkpoint"].endswith("checkpoints/step_00000008.ckpt")
    assert yaml.safe_load(told["config"])["ckpt_path"] == told["checkpoint"]
    run("predict", "-c", "again.yaml", "--save_images.folder=again")
    np.testing.assert_array_equal(pixels("out")[name], pixels("again")[name])


def test_a_later_stage_does_not_draw_with_the_weights_of_the_one_before(run, trained):
    flags = [*QUICKSTART, "--model.init_from=text.ckpt"]
    save_text_checkpoint()
    for command in ("predict", "validate"):
        with pytest.raises(SystemExit, match="must be told which weights to take, got no --ckpt"):
            run(command, *flags)


def test_dpg_finds_its_grids(draw):
    Path("dpg").mkdir()
    for name in ("b", "a"):
        Path(f"dpg/{name}.txt").write_text(f"a picture of {name}")
    draw("out", prompts="dpg")
    assert files("out/grids") == ["a.png", "b.png"]
    assert len(files("out/samples")) == 8
    singles, grids = pixels("out/samples"), pixels("out/grids")
    own = [singles[f"b_seed{seed:06d}.png"] for seed in (4, 5, 6, 7)]
    whole = np.concatenate([np.concatenate(own[i : i + 2], axis=1) for i in (0, 2)])
    np.testing.assert_array_equal(grids["b.png"], whole)
    assert facts("out/grids/b.png")["seed"] == "4, 5, 6, 7"
    before = {name: (Path("out") / name).stat().st_mtime_ns for name in files("out")}
    Path("out/samples/a_seed000001.png").unlink()
    Path("out/grids/b.png").unlink()
    draw("out", prompts="dpg")
    after = {name: (Path("out") / name).stat().st_mtime_ns for name in files("out")}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"index.html", "samples/a_seed000001.png", "grids/b.png"}


def test_two_processes_share_prompts_of_several_kinds(draw):
    draw("one")
    flags = [*TEXT, *TWO, "--data.prompts=own.jsonl", "--save_images.folder=two"]
    Path("two").mkdir()
    (Path("two") / "00001_seed000000.png").write_bytes(
        (Path("one") / "00001_seed000000.png").read_bytes()
    )
    output = Life("predict", *flags, processes=2).end()
    assert "Drew 2 images, 1 were there already" in output
    assert files("one") == files("two")
    for name, image in pixels("one").items():
        assert np.abs(image - pixels("two")[name]).max() <= 1


def test_a_yaml_list_shows_in_the_default_folder(run):
    save_text_checkpoint()
    Path("list.yaml").write_text(
        "data: {prompts: [a barn, {prompt: sea, size: 4x12}]}\n", encoding="utf-8"
    )
    run("predict", *TEXT, "-c", "list.yaml")
    (folder,) = Path("runs/quickstart/predict").iterdir()
    assert files(str(folder)) == ["00000_seed000000.png", "00001_seed000000.png", "index.html"]
    Path("some.txt").write_text("a barn\n")
    run("predict", *TEXT, "--data.prompts=some.txt")
    assert list(Path("runs/quickstart/predict").glob("prompts=some_checkpoint=text_weights=raw_*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.prompts=[{prompt: a, size: 8x9}]"], "entry 1: image height .* got 8x9. Use 8x8"),
        (["--data.prompts=[{prompt: a, colour: red}]"], "entry 1: keys must be among .*, got col"),
        (["--data.prompts=[1984]"], "entry 1: must be a text or a mapping, got 1984"),
        (["--data.prompts=a barn"], "got a barn, which does not exist. Prompts themselves are"),
        (["--data.draw.classes=3"], "conditions must be captions for HashConditioner, got class"),
        (
            ["--data.prompts=[a]", "--data.draw.classes=3"],
            "prompts must be empty where .* both",
        ),
        ([], "data.prompts or data.draw.classes must say what to draw, got neither"),
        (
            ["--data.prompts=[a]", "--model.conditioner.class_path=ClassConditioner"],
            "must be class numbers for ClassConditioner, got captions .* place of data.prompts",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence_before_anything_is(run, flags, words):
    save_text_checkpoint()
    given = [*TEXT, "--save_images.folder=out", *flags]
    if "ClassConditioner" in str(flags):
        given += ["--model.conditioner.num_classes=10"]
    with pytest.raises(SystemExit, match=re.compile(f"error: .*{words}")):
        run("predict", *given)
    assert not Path("out").exists()
