"""predict --sweep, as a person runs it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.e2e.conftest import QUICKSTART
from tests.e2e.drawn import TEXT, Links, facts, files, pixels, save_text_checkpoint

CLASSES = ["predict", *QUICKSTART, "--ckpt_path=last", "--save_images.folder=out"]
CLASSES += ["--data.draw={classes: [1, 7], num_images: 2}"]
ADAMS = "{class_path: AdamsSampler, init_args: {order: 3}}"
SWEEP = [
    "--sweep.scales=[1, 3]",
    "--sweep.steps=[1, 4]",
    f"--sweep.samplers=[EulerSampler, {ADAMS}]",
]
SHEETS = [f"sweep/class000{number}_seed00000{seed}.png" for number in (1, 7) for seed in (0, 1)]


def test_each_image_is_drawn_with_all_settings_and_a_sheet_shows_them(trained, run):
    assert "Drew 32 images, 0 were" in run(*CLASSES, *SWEEP)
    assert [name for name in files("out") if name.startswith("sweep/")] == SHEETS
    names = [name for name in files("out") if name.startswith("class0007_seed000001/")]
    assert len(names) == 8
    name = "class0007_seed000001/AdamsSampler_order=3_steps004_scale3.png"
    assert name in names
    told = facts(f"out/{name}")
    assert (told["sampler"], told["steps"], told["scale"]) == ("AdamsSampler order=3", "4", "3")
    assert (told["calls"], told["class"], told["seed"]) == ("6", "7", "1")
    run(
        *CLASSES,
        f"--model.sampler={ADAMS}",
        "--model.sampler.num_steps=4",
        "--model.guidance.scale=3",
        "--save_images.folder=plain",
    )
    drawn = pixels("out")
    np.testing.assert_array_equal(drawn[name], pixels("plain")["class0007_seed000001.png"])
    page = Links(Path("out/index.html"))
    assert [image["src"] for image in page.images[:4]] == SHEETS
    assert len(page.images) == 4 + 32
    assert "scale 3 · sampler AdamsSampler order=3 · steps 4 · calls 6" in page.text
    sheet = np.asarray(Image.open(f"out/{SHEETS[3]}"))
    large = drawn[name].repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(sheet[-68:-4, -68:-4], large)  # the last row's last


def test_an_interrupted_sweep_goes_on(trained, run):
    assert "Drew 24 images, 0 were there already, 8 are left" in run(
        *CLASSES, *SWEEP, "--data.batch_size=4", "--trainer.limit_predict_batches=6"
    )
    assert not Path("out/sweep").exists()
    Path("out/class0001_seed000000/EulerSampler_steps001_scale1.png").unlink()
    assert "Drew 9 images, 23 were there" in run(*CLASSES, *SWEEP)
    assert len(files("out/sweep")) == 4
    more = [*SWEEP, "--sweep.scales=[1, 3, 5]"]
    assert "Drew 16 images, 32 were there" in run(*CLASSES, *more)


def test_what_is_left_out_is_the_runs_and_the_prompts_own(run):
    save_text_checkpoint()
    lines = [{"prompt": "the sea", "scale": 5}, {"prompt": "a barn", "file_name": "own/barn"}]
    Path("own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("predict", *TEXT, "--data.prompts=own.jsonl", "--sweep", "{steps: [1, 3]}")
    (folder,) = Path("runs/quickstart/predict").iterdir()
    assert folder.name.startswith("sweep_prompts=own_checkpoint=text_weights=raw_size=8x8")
    barn = [f"own/barn/HeunSampler_steps00{number}.png" for number in (1, 3)]
    sea = [f"00000_seed000000/HeunSampler_steps00{number}.png" for number in (1, 3)]
    sheets = ["sweep/00000_seed000000.png", "sweep/own/barn.png"]
    assert files(str(folder)) == sorted([*barn, *sea, *sheets, "index.html"])
    assert [facts(folder / name)["scale"] for name in (*sea, *barn)] == ["5", "5", "2", "2"]
    assert [facts(folder / name)["calls"] for name in sea] == ["2", "6"]
