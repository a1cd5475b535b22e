"""Folders of exported models: what draws, without a pickle."""

from pathlib import Path

from pixelhdm.inference.model import Model

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def is_exported(source: str) -> bool:
    """Whether a path is the folder of an exported model."""
    return all((Path(source) / name).is_file() for name in (CONFIG, WEIGHTS))


def load_model(folder: Path) -> Model:
    """What draws, on the CPU."""
    raise NotImplementedError
