"""The command `export`: a folder that draws, from a training's checkpoint."""

import shlex
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from pixelhdm.checkpoints import Weights
from pixelhdm.data.draw_list import class_draws, prompt_draws
from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import Draws, by_group
from pixelhdm.data.prompts import read_prompts
from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.inference.draw import draw_images
from pixelhdm.inference.drawable import check_drawable
from pixelhdm.inference.exports.hub import upload
from pixelhdm.inference.exports.parts import build
from pixelhdm.inference.exports.save import check_target
from pixelhdm.inference.exports.trained import Trained, read_trained
from pixelhdm.inference.listed import drawing_for, request_for
from pixelhdm.inference.pixels import to_pixels
from pixelhdm.inference.showing.grid import labelled_grid
from pixelhdm.pipeline import PixelHDMPipeline

Stored = Literal["float32", "bfloat16", "float16"]
MOST_ROWS, BATCH = 10, 16  # of samples.png


def export(
    ckpt_path: str,
    out: str,
    config: str | list[str] | None = None,
    weights: Weights = "ema",
    dtype: Stored = "float32",
    num_samples: int = 4,
    text_encoder: Literal["copy", "refer"] = "copy",
    push_to_hub: str | None = None,
    private: bool = False,
) -> None:
    """Write a trained model as a folder that draws without the training's files.

    Weights are safetensors, settings JSON; beside them lies a model card with what is known of the
    training. Read it with PixelHDMPipeline.from_pretrained.

    Args:
        ckpt_path: checkpoint; folder of a run, for its checkpoint with the most steps; or last, for
            that of the config's run.
        out: folder to write: new, empty, or an earlier export, which makes room.
        config: YAML file of the training, or a list of them; empty takes config.yaml of the
            checkpoint's run.
        weights: which weights of the checkpoint: ema or raw.
        dtype: type that the weights are stored in; bfloat16 and float16 take half the room.
        num_samples: images of each class or prompt of the config in samples.png, of the first 10;
            0 draws none.
        text_encoder: a text encoder that is a folder of this machine: copy puts it into the folder,
            refer names its path.
        push_to_hub: owner/name on the Hugging Face Hub to upload it to; empty does not.
        private: whether only its owners see a new one there.

    Raises:
        UserError: a file is missing or does not fit, or the folder holds other files.
    """
    check_at_least(0, num_samples=num_samples)
    check_one_of(Stored, dtype=dtype)
    check_target(Path(out))
    found = read_trained(ckpt_path, config, weights)
    pipe = PixelHDMPipeline.from_trained(found)
    samples = sample_grid(pipe, found, num_samples) if num_samples else None
    pipe.to("cpu", getattr(torch, dtype))
    pipe.save_pretrained(out, text_encoder == "copy", samples)
    report(Path(out))
    if push_to_hub is not None:
        print(f"Uploaded to {upload(Path(out), push_to_hub, private, None)}")


def sample_grid(pipe: PixelHDMPipeline, found: Trained, num: int) -> Image.Image | None:
    """The first images that the config asks for, one row a class or prompt; None where it asks for
    none.
    """
    layers = [own.get("data") or {} for own in found.configs]
    draws = build({"draw": Draws}, layers, has_imports=True, group="data").parts["draw"]
    prompts, size = found.setting("data.prompts"), (pipe.height, pipe.width)
    try:
        asked = class_draws(draws, size)
        if prompts is not None:
            asked = prompt_draws(read_prompts(prompts), draws, size)
    except UserError as error:
        raise UserError(f"{error} With --num_samples 0 no samples are drawn.") from error
    rows = [row[:num] for row in by_group(asked.items)[:MOST_ROWS]]
    if not rows:
        return None
    items, drawn = [item for row in rows for item in row], {}
    check_drawable(items, pipe.model.network, pipe.model.conditioner, pipe.guidance)
    for batch in DrawLoader(items, BATCH):
        drawing = drawing_for(batch["items"][0], pipe.drawing, {})
        with pipe.precise():
            images = draw_images(pipe.model, drawing, request_for(batch))
        drawn |= zip(batch["items"], to_pixels(images).cpu().numpy(), strict=True)
    return labelled_grid([(row[0].label, [drawn[item] for item in row]) for row in rows])


def report(out: Path) -> None:
    """Say what was written and how it is used."""
    files = sorted(file for file in out.rglob("*") if file.is_file())
    print(f"Wrote {out}:")
    for file in files:
        print(f"  {file.relative_to(out)!s:<28} {readable(file.stat().st_size)}")
    print(f"Draw in Python:   PixelHDMPipeline.from_pretrained({str(out)!r})")
    print(f"Draw on a page:   {shlex.join(['python', 'main.py', 'demo', '--model', str(out)])}")


def readable(size: int) -> str:
    """A number of bytes for a person."""
    value, units = float(size), ["B", "KB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
