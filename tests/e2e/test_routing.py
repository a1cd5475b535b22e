"""Token routing from the command line: train, go on, draw with routed guidance."""

import numpy as np
import pytest
import torch

from pixelhdm.models.routing import Detour
from pixelhdm.pipeline import PixelHDMPipeline
from tests.e2e.conftest import QUICKSTART, checkpoint, differences, logged
from tests.e2e.drawn import facts, pixels
from tests.e2e.life import Life, fit

ROUTED = [
    *QUICKSTART,
    "--model.network.init_args.patch_depth=3",
    "--model.network.init_args.routing=TokenRouting",
    "--model.network.init_args.routing.init_args.min_tokens=4",  # of images of 2x2 patches
]
TRAIN = [*ROUTED, "--trainer.limit_val_batches=1", "--model.guidance.routed=true"]
FILE = "class0007_seed000001.png"


@pytest.fixture
def trained() -> dict:
    """The end of a run of 8 steps."""
    fit(*TRAIN, "--trainer.default_root_dir=run")
    return checkpoint("run", 8)


def test_a_run_with_routing_resumes_exactly_and_routes_alike_on_two_processes(trained):
    again = ["--ckpt_path=run/checkpoints/step_00000004.ckpt", "--trainer.default_root_dir=again"]
    fit(*TRAIN, *again)
    assert differences(trained, checkpoint("again", 8)) == []
    flags = ["--trainer.devices=2", "--data.batch_size=4", "--trainer.default_root_dir=two"]
    Life("fit", *TRAIN, *flags, processes=2).end()
    assert logged("two", "train/total") == pytest.approx(logged("run", "train/total"), rel=1e-4)
    dense = ["--model.network.init_args.routing=null", "--model.guidance.routed=false"]
    fit(*TRAIN, *dense, "--trainer.default_root_dir=dense")
    assert logged("dense", "train/total") != logged("run", "train/total")


@pytest.mark.usefixtures("trained")
def test_routed_guidance_draws_the_same_at_any_batch_size_and_in_an_export(run, monkeypatch):
    flags = [*TRAIN, "--trainer.default_root_dir=run", "--ckpt_path=last"]
    opened, enter = [], Detour.enter

    def noted(self: Detour, number: int, x: torch.Tensor) -> torch.Tensor:
        opened.append(self.route is not None and number == self.blocks.start)
        return enter(self, number, x)

    monkeypatch.setattr(Detour, "enter", noted)
    run("predict", *flags, "--save_images.folder=routed", "--data.batch_size=4")
    assert any(opened)
    run("predict", *flags, "--save_images.folder=alone", "--data.batch_size=1")
    opened.clear()
    plain = ["--save_images.folder=plain", "--model.guidance.routed=false"]
    run("predict", *flags, *plain)
    assert not any(opened)
    drawn = {folder: pixels(folder) for folder in ("routed", "alone", "plain")}
    for name, image in drawn["routed"].items():
        assert np.abs(image - drawn["alone"][name]).max() <= 1
    assert any((image != drawn["plain"][name]).any() for name, image in drawn["routed"].items())
    assert facts(f"routed/{FILE}")["guidance"] == "routed=True"
    assert "guidance" not in facts(f"plain/{FILE}")
    run("export", "--ckpt_path=run", "--out=exported", "--num_samples=0")
    pipe = PixelHDMPipeline.from_pretrained("exported", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe(class_labels=[7], seed=1).images
    assert np.abs(np.asarray(image).astype(int) - drawn["routed"][FILE]).max() <= 1


def test_what_cannot_be_routed_is_told_in_a_sentence(run, caplog):
    for flag, words in (
        ("routing.init_args.share=1", "error: .*routing.share must be above 0 and below 1, got 1"),
        ("patch_depth=2", "error: .*routing.first … routing.last must be blocks .* in 1 … 2"),
        ("routing=null", "error: .*guidance.routed must be false for a network without routing"),
        ("routing.init_args.min_tokens=9", "error: .*8x8, whose 4 tokens are fewer than min_to"),
    ):
        with pytest.raises(SystemExit, match=words):
            run("fit", *TRAIN, f"--model.network.init_args.{flag}")
    largest = "--model.network.init_args.routing.init_args.min_tokens=1024"
    plain = ["--model.guidance.routed=false", "--trainer.max_steps=1"]
    caplog.clear()
    run("fit", *TRAIN, largest, *plain)
    assert caplog.text.count("Warning: routing leaves no tokens out in this run") == 1
