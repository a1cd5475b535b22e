"""Converted networks equal the published ones on the same weights."""

from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from pixelhdm.checkpoints import read_checkpoint
from pixelhdm.convert import convert
from pixelhdm.inference.model import Model
from pixelhdm.models.conditioners.context import Context
from pixelhdm.pipeline import PixelHDMPipeline
from tests.published import files, jit, pixeldit
from tests.stubs import randn
from tests.tiny_qwen3 import WIDTH, save_tiny_qwen3

# Times that 1000 (1 - t) and 1 - t hold exactly: noise, between, clean.
TIMES = torch.tensor([0.0, 0.25, 0.8125, 1.0])
LABELS = torch.tensor([0, 3, 9, 10])  # the last is the empty class
PIXELDIT_TEXT = pixeldit.Sizes(text_width=WIDTH, attention=24, attention_heads=2)
PIXELGEN_TEXT = jit.Sizes(text_width=WIDTH)


def images(height: int, width: int) -> Tensor:
    return randn(len(TIMES), height, width, 3)


def theirs(image: Tensor) -> Tensor:
    return rearrange(image, "b h w c -> b c h w")


def ours(model: Model, image: Tensor, context: Context) -> Tensor:
    with torch.no_grad():
        return theirs(model.network(image, TIMES, context).output)


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.5  # there is something to compare
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def model_of(folder: Path, weights: str) -> Model:
    return PixelHDMPipeline.from_checkpoint(folder, weights=weights, device="cpu").model


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_qwen3(tmp_path_factory.mktemp("encoder") / "qwen3"))


@pytest.mark.parametrize("post", [False, True])
def test_pixeldit(tmp_path, post):
    sizes = pixeldit.Sizes(post=post)
    raw, ema = (pixeldit.make_state(sizes, seed) for seed in (0, 1))
    file = files.save_lightning(tmp_path / "xl.ckpt", raw, ema)
    convert("pixeldit", str(file), str(tmp_path / "out"))
    assert (tmp_path / "out/checkpoints/step_01600000.ckpt").is_file()
    for weights, state in (("raw", raw), ("ema", ema)):
        model = model_of(tmp_path / "out", weights)
        context = model.conditioner(LABELS)
        for size in ((8, 12), (16, 4)):
            image = images(*size)
            expected = pixeldit.c2i(state, theirs(image), TIMES, LABELS)
            close(ours(model, image, context), expected)


def test_pixeldit_t2i(tmp_path, qwen3):
    raw, ema = (pixeldit.make_state(PIXELDIT_TEXT, seed) for seed in (0, 1))
    file = files.save_pixeldit_t2i(tmp_path / "v1.pth", raw, ema)
    convert("pixeldit_t2i", str(file), str(tmp_path / "out"), text_encoder=qwen3)
    for weights, state in (("raw", raw), ("ema", ema)):
        model, image = model_of(tmp_path / "out", weights), images(8, 12)
        states = list(randn(len(TIMES), PIXELDIT_TEXT.text_length, WIDTH))
        expected = pixeldit.t2i(state, theirs(image), 1000 * (1 - TIMES), torch.stack(states))
        close(ours(model, image, model.conditioner(states)), -expected)


@pytest.mark.parametrize("bottleneck", [8, None])
def test_jit(tmp_path, bottleneck):
    sizes = jit.Sizes(bottleneck=bottleneck)
    raw, ema = (jit.make_state(sizes, seed) for seed in (0, 1))
    file = files.save_jit(tmp_path / "checkpoint-last.pth", raw, ema)
    convert("jit", str(file), str(tmp_path / "out"), in_context_start=1)
    for weights, state in (("raw", raw), ("ema", ema)):
        model, image = model_of(tmp_path / "out", weights), images(12, 12)
        expected = jit.jit(state, theirs(image), TIMES, LABELS, 1)
        close(ours(model, image, model.conditioner(LABELS)), expected)


def test_pixelgen_for_classes_is_a_jit_in_a_lightning_file(tmp_path):
    state = jit.make_state(jit.Sizes(depth=24, hidden=16))
    file = files.save_lightning(tmp_path / "L.ckpt", state, state, step=7)
    convert("pixelgen", str(file), str(tmp_path / "out"))
    model, image = model_of(tmp_path / "out", "ema"), images(12, 12)
    expected = jit.jit(state, theirs(image), TIMES, LABELS, 8)  # where 24 blocks begin
    close(ours(model, image, model.conditioner(LABELS)), expected)


def test_pixelgen_t2i(tmp_path, qwen3):
    raw, ema = (jit.make_state(PIXELGEN_TEXT, seed) for seed in (0, 1))
    file = files.save_lightning(tmp_path / "T2I.ckpt", raw, ema)
    convert("pixelgen", str(file), str(tmp_path / "out"), text_encoder=qwen3)
    for weights, state in (("raw", raw), ("ema", ema)):
        model, image = model_of(tmp_path / "out", weights), images(12, 12)
        states = list(randn(len(TIMES), PIXELGEN_TEXT.text_length, WIDTH))
        expected = jit.pixelgen_t2i(state, theirs(image), TIMES, torch.stack(states))
        close(ours(model, image, model.conditioner(states)), expected)


@pytest.mark.parametrize(("weights", "seed"), [("raw", 0), ("ema", 1)])
def test_one_of_both_may_be_taken_for_both(tmp_path, weights, seed):
    states = [pixeldit.make_state(seed=number) for number in (0, 1)]
    file = files.save_lightning(tmp_path / "xl.ckpt", *states)
    convert("pixeldit", str(file), str(tmp_path / "out"), weights=weights)
    found = read_checkpoint(tmp_path / "out/checkpoints/step_01600000.ckpt")["state_dict"]
    table = states[seed]["y_embedder.embedding_table.weight"]
    for name in ("conditioner.pooled.weight", "ema.conditioner.pooled.weight"):
        assert torch.equal(found[name], table)


def test_a_file_with_one_copy_has_it_as_both_and_none_in_its_place_on_demand(tmp_path, capsys):
    state = pixeldit.make_state(PIXELDIT_TEXT)
    file = files.save_pixeldit_t2i(tmp_path / "v1.pth", state)
    convert("pixeldit_t2i", str(file), str(tmp_path / "out"))
    assert "raw weights and the average of the folder at once (raw)" in capsys.readouterr().out
    found = read_checkpoint(tmp_path / "out/checkpoints/step_00000000.ckpt")["state_dict"]
    for name in ("network.pixel_path.final.bias", "ema.network.pixel_path.final.bias"):
        assert torch.equal(found[name], -state["final_layer.linear.bias"])
    with pytest.raises(ValueError, match="weights must be in the file, got ema"):
        convert("pixeldit_t2i", str(file), str(tmp_path / "other"), weights="ema")
