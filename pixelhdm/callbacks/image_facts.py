"""What a drawn image's file tells of how it was made."""

import os
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import yaml
from lightning.pytorch import Trainer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pixelhdm.data.draws import DrawItem
from pixelhdm.files import replacing
from pixelhdm.inference.grid import Pixels
from pixelhdm.module import PixelHDMModule

PREFIX, CONFIG = "pixelhdm.", "pixelhdm.config"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
NOT_DRAWING = ("loss", "optimizer", "schedule", "weights", "init_from", "init_weights", "init_ema")


def shared_facts(trainer: Trainer, pl_module: PixelHDMModule, config: str) -> dict[str, str]:
    """What all images of a call depend on."""
    source = Path(trainer.ckpt_path or pl_module.init_from)
    return {
        "checkpoint": str(source),
        "checkpoint_digest": digest_of_checkpoint(source),
        "weights": pl_module.weights,
        "sampler": type(pl_module.sampler).__name__,
        "steps": str(pl_module.sampler.num_steps),
        "precision": str(trainer.precision),
        "model_digest": digest_of_model(config),
    }


def own_facts(item: DrawItem, scale: float) -> dict[str, str]:
    """What one image depends on beside that; `scale` is the strength where it has none."""
    if isinstance(item.condition, int):
        shown = {"class": str(item.condition)}
    else:
        shown = {"prompt": item.condition, "negative_prompt": item.negative}
    return shown | {
        "seed": str(item.seed),
        "scale": f"{item.strength(scale):.12g}",
        "size": f"{item.height}x{item.width}",
    }


def digest_of_checkpoint(path: Path) -> str:
    """A short text that differs when the tensors of a checkpoint do, from its list of contents."""
    try:
        with ZipFile(path) as archive:
            parts = [(part.CRC, part.file_size) for part in archive.infolist()]
    except (OSError, BadZipFile):  # reading it, which comes next, says what is wrong
        return ""
    return sha256(repr(parts).encode()).hexdigest()[:16]


def digest_of_model(config: str) -> str:
    """A short text that differs when a setting of the model does that drawing depends on."""
    model: dict[str, Any] = (yaml.safe_load(config) or {}).get("model", {})
    kept = {name: value for name, value in model.items() if name not in NOT_DRAWING}
    return sha256(yaml.safe_dump(kept).encode()).hexdigest()[:16]


def write_png(file: Path, image: Pixels, facts: dict[str, str], config: str = "") -> None:
    """Write an image without loss, with its facts and the config as text."""
    info = PngInfo()
    for name, value in facts.items():
        info.add_itxt(PREFIX + name, value)
    if config:
        info.add_itxt(CONFIG, config, zip=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        Image.fromarray(image).save(temporary, "png", pnginfo=info)


def has_facts(file: Path, facts: dict[str, str]) -> bool:
    """Whether a file is there, whole, and tells these facts."""
    try:
        with Image.open(file, formats=["png"]) as image:
            told = {name: str(value) for name, value in image.info.items()}
            image.verify()  # all but the end
        with open(file, "rb") as stream:
            stream.seek(-len(PNG_END), os.SEEK_END)
            is_whole = stream.read() == PNG_END
    except (OSError, SyntaxError, ValueError):  # missing, torn, or another kind of file
        return False
    own = {name: value for name, value in told.items() if name.startswith(PREFIX)}
    own.pop(CONFIG, None)
    return is_whole and own == {PREFIX + name: value for name, value in facts.items()}
