"""Writing exported models."""

import inspect
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from pixelhdm.errors import UserError
from pixelhdm.files import TEMPORARY
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.exports.exported import (
    TEXT_ENCODER,
    WEAK,
    Description,
    is_exported,
    read_description,
    settings_in,
    state_of,
    write_description,
    write_weights,
)
from pixelhdm.inference.exports.model_card import CARD, SAMPLES, model_card
from pixelhdm.inference.model import Model
from pixelhdm.models.encoders.frozen import expanded

NO_WEAKER = {"weak": None, "weak_weights": "ema"}
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".pkl")


def save(
    folder: Path,
    model: Model,
    drawing: Drawing,
    known: Description,
    copies_text_encoder: bool,
    samples: Image.Image | None,
) -> None:
    """Write a model with its card, whole or not at all; an earlier export makes room.

    Args:
        folder: where to write.
        model: what draws.
        drawing: how it draws unless told otherwise.
        known: what else is told.
        copies_text_encoder: whether a text encoder that is a folder of this machine is copied, so
            that the folder is whole.
        samples: picture for the card.

    Raises:
        UserError: the folder holds something else, or a part cannot be written down.
    """
    check_target(folder)
    folder = folder.resolve()  # the name of . is empty
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", suffix=TEMPORARY
    ) as temporary:
        target = Path(temporary) / folder.name
        target.mkdir()
        settings = {name: dict(part) for name, part in known.model.items()}
        settings |= {
            name: settings_of(part, known.model.get(name, {}))
            for name, part in drawing._asdict().items()
        }
        known = replace(known, model=settings)
        weaker = getattr(drawing.guidance, "weaker", None)
        if weaker is not None:
            settings["guidance"]["init_args"]["weak"] = f"./{WEAK}"
            weak, about = weaker.model_like(model), known
            if is_exported(weaker.source):
                about = read_description(Path(weaker.source))
            about = replace(about, model={name: about.model[name] for name in Model._fields})
            write_model(target / WEAK, weak, about, copies_text_encoder)
        write_model(target, model, known, copies_text_encoder)
        if samples is not None:
            samples.save(target / SAMPLES, "png")
        text = model_card(known, num_weights(model), samples is not None)
        (target / CARD).write_text(text, encoding="utf-8")
        put(target, folder)


def write_model(folder: Path, model: Model, known: Description, copies_text_encoder: bool) -> None:
    """Write a model's weights and config, and its text encoder where it is to be copied."""
    folder.mkdir(exist_ok=True)
    settings = {name: dict(part) for name, part in known.model.items()}
    source = settings_in(settings, "conditioner").get("source")
    encoder = Path(expanded(str(source)))
    if source is not None and copies_text_encoder and encoder.is_dir():
        copy_text_encoder(encoder, folder / TEXT_ENCODER)
        conditioner = settings["conditioner"]
        own = {"source": f"./{TEXT_ENCODER}"}
        settings["conditioner"] = conditioner | {"init_args": conditioner["init_args"] | own}
    if hasattr(model.conditioner, "encoder"):  # so that it is known without the encoder's files
        own = settings["conditioner"]["init_args"] | {"width": model.conditioner.encoder.width}
        settings["conditioner"] = settings["conditioner"] | {"init_args": own}
    write_description(folder, replace(known, model=settings))
    write_weights(folder, state_of(model))


def copy_text_encoder(source: Path, target: Path) -> None:
    """Copy a text encoder's files; of its weights the safetensors alone where there are any."""
    target.mkdir()
    files = [file for file in source.iterdir() if file.is_file() and file.name[0] != "."]
    is_safe = any(file.suffix == ".safetensors" for file in files)
    for file in files:
        if not (is_safe and file.suffix in PICKLED):
            shutil.copyfile(file, target / file.name)


def settings_of(part: Any, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Class path and arguments of a part, from its attributes of the same names.

    What it does not keep stays as it was in `earlier`, the settings that it was built from.

    Raises:
        UserError: an argument is nowhere to be found.
    """
    if is_dataclass(part):
        return asdict(part)
    kind = type(part)
    path, known = f"{kind.__module__}.{kind.__qualname__}", {}
    if earlier.get("class_path") == path:
        known = earlier.get("init_args") or {}
    if hasattr(part, "weaker"):
        known = known | NO_WEAKER
    found = {}
    for name in inspect.signature(kind).parameters:
        if name not in known and not hasattr(part, name):
            raise UserError(
                f"{kind.__name__} must keep its argument {name} as an attribute to be saved, got "
                "none of this name."
            )
        value = getattr(part, name, known.get(name))
        found[name] = list(value) if isinstance(value, tuple) else value
    return {"class_path": path, "init_args": found}


def num_weights(model: Model) -> int:
    """Number of parameters of network and conditioner; a text encoder's do not count."""
    return sum(value.numel() for part in model[:2] for value in part.parameters())


def check_target(folder: Path) -> None:
    """Raise a UserError unless a folder is free for an export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out must be a folder, got {folder}, which is a file.")
    if folder.is_dir() and any(folder.iterdir()) and not is_exported(str(folder)):
        raise UserError(
            f"out must be empty, new or an earlier export, got {folder}, which holds other files. "
            "Choose another folder."
        )


def put(written: Path, folder: Path) -> None:
    """Move what was written to its place, over an earlier export's; other files stay."""
    if not folder.exists():
        os.replace(written, folder)
        return
    for name in (TEXT_ENCODER, WEAK):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / SAMPLES).unlink(missing_ok=True)
    for part in written.iterdir():
        os.replace(part, folder / part.name)
