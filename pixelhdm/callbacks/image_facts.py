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

from pixelhdm.checkpoints import trained_file
from pixelhdm.data.draws import DrawItem
from pixelhdm.data.start_files import StartFiles
from pixelhdm.files import replacing
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.exports.exported import is_exported
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.showing.grid import Pixels
from pixelhdm.inference.sweep import described
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.module import PixelHDMModule

PREFIX, CONFIG = "pixelhdm.", "pixelhdm.config"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
OF_TRAINING = ("loss", "optimizer", "schedule", "weights", "init_from", "init_weights", "init_ema")
OF_SPEED = ("compile", "pixel_kernel", "attention")  # they draw the same, up to rounding
NOT_DRAWING = (*OF_TRAINING, *OF_SPEED)


def shared_facts(trainer: Trainer, pl_module: PixelHDMModule, config: str) -> dict[str, str]:
    """What all images of a call depend on."""
    source = Path(trainer.ckpt_path or pl_module.init_from)
    guidance, times = pl_module.guidance, settings_of(pl_module.time_grid, TimeGrid())
    guided = settings_of(guidance, Guidance(guidance.scale))
    facts = {
        "checkpoint": str(source),
        "checkpoint_digest": digest_of_checkpoint(source),
        "weights": pl_module.weights,
        "precision": str(trainer.precision),
        "model_digest": digest_of_model(config),
    }
    if guidance.weaker is not None:
        guided += f" weak={guidance.weaker.source} ({guidance.weaker.weights})"
        facts["weak_digest"] = digest_of_weaker(guidance.weaker.source)
    told = {"guidance": guided.strip(), "times": times}
    return facts | {name: value for name, value in told.items() if value}


def settings_of(part: Any, plain: Any) -> str:
    """Those settings of a part that differ from those of another, in words."""
    own, other = vars(part), vars(plain)
    names = [name for name in own if own[name] != other[name] and name != "weaker"]
    return " ".join(f"{name}={own[name]}" for name in names)


def own_facts(item: DrawItem, drawing: Drawing, calls: int) -> dict[str, str]:
    """What one image depends on beside that, how it is drawn, and in how many calls of the network,
    which guidance makes twice as large.
    """
    if isinstance(item.condition, int):
        shown = {"class": str(item.condition)}
    else:
        shown = {"prompt": item.condition, "negative_prompt": item.negative}
    return shown | {
        "seed": str(item.seed),
        "scale": f"{drawing.guidance.scale:.12g}",
        "size": f"{item.height}x{item.width}",
        "sampler": described(drawing.sampler),
        "steps": str(drawing.sampler.num_steps),
        "calls": str(calls),
        **({} if item.start is None else start_facts(item.start)),
    }


def start_facts(start: StartFiles) -> dict[str, str]:
    """What an image depends on that begins from another."""
    facts = {"image": start.image.name, "image_digest": start.image.digest}
    if start.mask is not None:
        facts |= {"mask": start.mask.name, "mask_digest": start.mask.digest}
    facts["strength"] = f"{start.strength:.12g}"
    if start.source is not None:
        facts |= {"source": str(start.source), "source_scale": f"{start.source_scale:.12g}"}
    return facts


def digest_of_checkpoint(path: Path) -> str:
    """A short text that differs when the tensors of a checkpoint do, from its list of contents."""
    parts = []
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            with ZipFile(file) as archive:
                parts += [(part.CRC, part.file_size) for part in archive.infolist()]
    except (OSError, BadZipFile):  # reading it, which comes next, says what is wrong
        return ""
    return sha256(repr(parts).encode()).hexdigest()[:16]


def digest_of_weaker(source: str) -> str:
    """The same of a weaker model: a checkpoint, or the folder of a run or of an exported model."""
    if not is_exported(source):
        return digest_of_checkpoint(Path(trained_file(source)))
    stats = [(file.name, file.stat()) for file in sorted(Path(source).iterdir())]
    parts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
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
