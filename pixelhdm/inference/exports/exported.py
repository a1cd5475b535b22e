"""Folders of exported models: what draws, without a pickle."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelhdm.errors import UserError, reason_of
from pixelhdm.files import replacing
from pixelhdm.inference.exports.parts import build
from pixelhdm.inference.model import Model
from pixelhdm.initial_weights import fitting
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.network import Network
from pixelhdm.training.flow import FlowMatching

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TEXT_ENCODER, WEAK = "text_encoder", "weak"
PATHS = {"conditioner": "source", "guidance": "weak"}  # arguments that may name a folder inside
RELATIVE = ("./", "../")
FORMAT = 1
MODEL_TYPES = {
    "network": Network,
    "conditioner": Callable[[int], Conditioner],
    "flow": FlowMatching,
}


@dataclass
class Description:
    """What config.json tells of a model.

    Args:
        model: class path and arguments of network, conditioner, flow, sampler, guidance, time_grid.
        height: height in pixels that it draws unless told otherwise.
        width: width in pixels that it draws unless told otherwise.
        precision: the trainer's in training: 32-true, bf16-mixed, 16-mixed.
        classes: names of the classes, where they are known.
        facts: what is known of the training, as text.
        format: of the file.
    """

    model: dict[str, Any]
    height: int
    width: int
    precision: str = "32-true"
    classes: list[str] | None = None
    facts: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


def is_exported(source: str) -> bool:
    """Whether a path is the folder of an exported model."""
    return all((Path(source) / name).is_file() for name in (CONFIG, WEIGHTS))


def read_description(folder: Path) -> Description:
    """What config.json tells, its paths relative to the folder written out.

    Raises:
        UserError: it is missing or not PixelHDM's.
    """
    file = folder / CONFIG
    try:
        known = Description(**json.loads(file.read_text(encoding="utf-8")))
        check_parts(known.model)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} must be the config of a model that PixelHDM exported, got "
            f"{reason_of(error)}. Write one with main.py export."
        ) from error
    if known.format != FORMAT:
        raise UserError(f"format of {file} must be {FORMAT}, got {known.format}. Update PixelHDM.")
    for part, name in PATHS.items():
        settings = settings_in(known.model, part)
        if str(settings.get(name)).startswith(RELATIVE):
            settings[name] = str((folder / settings[name]).resolve())
    return known


def check_parts(model: Mapping[str, Any]) -> None:
    """Raise a TypeError unless each part is a mapping, with its arguments in another one."""
    for name, part in model.items():
        if not isinstance(part, dict) or not isinstance(part.get("init_args", {}), dict):
            raise TypeError(f"{name} has no settings by name")


def settings_in(model: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The arguments of a part, to be changed."""
    return model.get(part, {}).get("init_args", {})


def write_description(folder: Path, known: Description) -> None:
    """Write config.json."""
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(
            json.dumps(asdict(known), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights, on the CPU, as they are stored.

    Raises:
        UserError: they are missing or torn.
    """
    file = folder / WEIGHTS
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} must hold the weights of an exported model, got {reason_of(error)}. Download "
            "or export it again."
        ) from error


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the weights, after config.json."""
    own = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(own, temporary, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, temporary)  # it would be closed to all others


def assembled(parts: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> Model:
    """A model of built parts with these weights, in float32 on the CPU, for drawing alone.

    Raises:
        UserError: the weights do not fit.
    """
    network = parts["network"]
    with torch.random.fork_rng(devices=[]):
        conditioner = parts["conditioner"](network.hidden_dim)
    model = Model(network, conditioner, parts["flow"])
    return filled(model, state, source)


def filled(model: Model, state: Mapping[str, Tensor], source: str) -> Model:
    """A model with these weights in the place of its own, for drawing alone.

    Raises:
        UserError: the weights do not fit.
    """
    kept = fitting(state_of(model), state, source)
    for name in ("network", "conditioner"):
        own = {k.removeprefix(f"{name}."): v for k, v in kept.items() if k.startswith(f"{name}.")}
        part = getattr(model, name)
        part.load_state_dict(own)
        part.eval().requires_grad_(False)
    return model


def state_of(model: Model) -> dict[str, Tensor]:
    """All weights of a model, named as a checkpoint names them."""
    return {
        f"{name}.{key}": value
        for name in ("network", "conditioner")
        for key, value in getattr(model, name).state_dict().items()
    }


def load_model(folder: Path) -> Model:
    """What draws, on the CPU.

    Raises:
        UserError: the folder is not that of an exported model, or does not fit together.
    """
    known = read_description(folder)
    built = build(MODEL_TYPES, [known.model], has_imports=False)
    return assembled(built.parts, read_weights(folder), str(folder))
