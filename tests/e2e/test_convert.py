"""Converted weights through the real command line: drawn, drawn in Python, trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pixelhdm.checkpoints import check_whole, read_checkpoint
from pixelhdm.errors import UserError
from pixelhdm.pipeline import PixelHDMPipeline
from tests.e2e.conftest import ROOT
from tests.published import files, pixeldit
from tests.tiny_qwen3 import WIDTH, save_tiny_qwen3

FAST = (
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--model.sampler.num_steps=2",
    "--data.draw.num_images=1",
)
TUNED = (
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=0",
    "--sample_images.every_n_steps=0",
)


def same_pictures(pipe: PixelHDMPipeline, names: list[str], **asked: object) -> None:
    """What a pipeline draws, asked so, is what predict has drawn."""
    pipe.to("cpu", torch.float32).set_progress_bar_config(disable=True)
    out = pipe(num_inference_steps=2, seed=0, **asked)
    for name, image in zip(names, out.images, strict=True):
        expected = np.asarray(Image.open(f"drawn/{name}")).astype(int)
        assert expected.std() > 20
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1


def test_a_converted_model_draws_and_trains_on(run):
    raw, ema = (pixeldit.make_state(seed=number) for number in (0, 1))
    files.save_lightning(Path("xl.ckpt"), raw, ema, step=5)
    said = run("convert", "--from=pixeldit", "--ckpt=xl.ckpt", "--out=model", "--image_size=8")
    assert "PixelDiT after 5 steps, 70 tensors, 125,491 parameters, raw and ema weights." in said
    assert "non-commercial" in said
    draw = said.split("Draw: ")[1].split("\n")[0].split("main.py ")[1].split()
    run(*draw, *FAST, "--data.draw.classes=[1,7]", "--save_images.folder=drawn")
    pipe = PixelHDMPipeline.from_checkpoint("model", device="cpu")
    names = [f"class000{number}_seed000000.png" for number in (1, 7)]
    same_pictures(pipe, names, class_labels=[1, 7])
    pipe.save_pretrained("exported")
    card = Path("exported/README.md").read_text(encoding="utf-8")
    for words in (
        "license: other",
        "from published weights, converted",
        "xl.ckpt",
        "NVIDIA NSCLv1",
    ):
        assert words in card
    fit = ("fit", "-c", ROOT / "configs_c2i/quickstart.yaml", "-c", "model/config.yaml", *FAST)
    run(*fit, *TUNED, "--model.init_from=model", "--trainer.default_root_dir=tuned")
    with pytest.raises(UserError, match=r"without training\. If it holds weights alone"):
        check_whole(read_checkpoint("model/checkpoints/step_00000005.ckpt"), "model")
    end = read_checkpoint("tuned/checkpoints/step_00000002.ckpt")["state_dict"]
    start = read_checkpoint("model/checkpoints/step_00000005.ckpt")["state_dict"]
    assert end.keys() >= start.keys()
    for name, value in start.items():
        assert end[name].shape == value.shape
    key = "network.blocks.0.attention.qkv.weight"
    assert 0 < (end[key] - start[key]).abs().max() < 0.02
    assert not torch.equal(start[key], start[f"ema.{key}"])


def printed(run, capsys, *call: object) -> str:
    """The settings that a command would run with."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(call[0], *call[1], "--print_config")
    return capsys.readouterr().out


def test_a_converted_text_to_image_model_draws(run, capsys):
    save_tiny_qwen3("qwen3")
    sizes = pixeldit.Sizes(text_width=WIDTH, text_length=12, attention=24, attention_heads=2)
    files.save_pixeldit_t2i(Path("v1.pth"), pixeldit.make_state(sizes))
    flags = ["--from=pixeldit_t2i", "--ckpt=v1.pth", "--out=model", "--image_size=8"]
    run("convert", *flags, "--text_encoder=./qwen3")
    prompts = '[{"prompt": "a red square", "height": 8, "width": 12}]'
    call = ["-c", "model/config.yaml", "--ckpt_path=last", *FAST, f"--data.prompts={prompts}"]
    run("predict", *call, "--save_images.folder=drawn")
    names = [path.name for path in Path("drawn").glob("*.png") if "seed" in path.name]
    pipe = PixelHDMPipeline.from_checkpoint("model", device="cpu")
    same_pictures(pipe, names, prompt="a red square", height=8, width=12)
    # A base of our own recipes changes nothing of how these weights are trained and drawn.
    base = ["-c", ROOT / "configs_t2i/base.yaml", "-c", "model/config.yaml"]
    own, tuned = (
        yaml.safe_load(printed(run, capsys, command, files))["model"]
        for command, files in (("predict", base[2:]), ("fit", base))
    )
    for part in ("flow", "sampler", "guidance", "time_grid", "network", "conditioner"):
        assert own[part] == tuned[part]


def test_help_tells_the_licences(run, capsys):
    with pytest.raises(SystemExit):
        run("convert", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for words in ("--from {pixeldit,pixeldit_t2i,jit,pixelgen}", "non-commercial", "jit MIT"):
        assert words in text
