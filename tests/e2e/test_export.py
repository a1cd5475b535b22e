"""The command export, and that what it writes draws what predict draws."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelhdm.pipeline import PixelHDMPipeline
from tests.e2e.conftest import QUICKSTART


@pytest.mark.usefixtures("trained")
def test_an_export_draws_what_predict_draws(run):
    run("predict", *QUICKSTART, "--ckpt_path=last", "--save_images.folder=drawn")
    said = run("export", "--ckpt_path=runs/quickstart", "--out=exported")
    assert "Wrote exported:" in said
    assert "main.py demo --model exported" in said
    pipe = PixelHDMPipeline.from_pretrained("exported", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    out = pipe(class_labels=[1, 7], num_images_per_prompt=2, seed=0)
    for number, image, seed in zip([1, 1, 7, 7], out.images, out.seeds, strict=True):
        expected = Image.open(f"drawn/class{number:04d}_seed{seed:06d}.png")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert Image.open("exported/samples.png").height > 64
    card = Path("exported/README.md").read_text(encoding="utf-8")
    for words in ("| images seen | 64 |", "| data | Digits |", "VelocityLoss (weight 1.0)"):
        assert words in card
    here = str(Path.cwd()).encode()
    for file in Path("exported").rglob("*"):
        assert here not in file.read_bytes()


@pytest.mark.usefixtures("trained")
def test_what_is_exported_may_be_raw_and_half(run):
    flags = ["--ckpt_path=last", "--config=runs/quickstart/config.yaml", "--out=exported"]
    run("export", *flags, "--num_samples=0")
    size = Path("exported/model.safetensors").stat().st_size
    run("export", *flags, "--weights=raw", "--dtype=bfloat16", "--num_samples=0")
    assert Path("exported/model.safetensors").stat().st_size < 0.6 * size
    assert not Path("exported/samples.png").exists()
    assert "| weights | raw |" in Path("exported/README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("trained")
def test_what_cannot_be_exported_is_told_in_a_sentence(run):
    for flags, words in (
        (["--ckpt_path=nowhere"], "error: ckpt_path must be a checkpoint or the folder of a run"),
        (["--ckpt_path=last"], "error: config must name the run's config"),
        (["--ckpt_path=runs/quickstart", "--num_samples=-1"], "num_samples must be at least 0"),
        (["--ckpt_path=runs/quickstart", "--out=runs"], "which holds other files"),
    ):
        with pytest.raises(SystemExit, match=words):
            run("export", *["--out=exported"][: len(flags)], *flags)
