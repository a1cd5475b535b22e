"""Files as the authors of the published networks write them."""

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from tests.published.parts import State


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def projector(prefix: str, dim: int) -> State:
    """A REPA projector, which no converted model has."""
    widths = (dim, dim, dim, 8)
    return {
        f"{prefix}{2 * i}.{name}": torch.zeros(widths[i + 1], *([widths[i]] * (name == "weight")))
        for i in range(3)
        for name in ("weight", "bias")
    }


def save_lightning(path: Path, raw: State, ema: State, step: int = 1600000) -> Path:
    """PixelDiT's and PixelGen's: raw, average and projector in one state."""
    state = prefixed(raw, "denoiser.") | prefixed(ema, "ema_denoiser.")
    state |= projector("diffusion_trainer.proj.0.", 8)
    content = {"epoch": 3, "global_step": step, "pytorch-lightning_version": "2.5.0"}
    content |= {"state_dict": state, "loops": {}, "optimizer_states": [{"state": {}}]}
    torch.save(content, path)
    return path


def save_pixeldit_t2i(path: Path, raw: State, ema: State | None = None) -> Path:
    """PixelDiT-T2I's .pth, with the random state that a training leaves."""
    content = {"state_dict": prefixed(raw, "core.") | projector("_repa_projector.", 8)}
    if ema is not None:
        content["state_dict_ema"] = prefixed(ema, "core.") | projector("_repa_projector.", 8)
    content["rng_state"] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    torch.save(content | {"epoch": 2, "optimizer": {"state": {}}, "scheduler": {}}, path)
    return path


def save_jit(path: Path, raw: State, ema: State) -> Path:
    """JiT's checkpoint-last.pth: the model, two averages, optimizer and arguments."""
    content = {"model": prefixed(raw, "net."), "model_ema1": prefixed(ema, "net.")}
    content["model_ema2"] = prefixed(raw, "net.")
    args = argparse.Namespace(model="JiT-B/16", lr=None, batch_size=128, output_dir="out")
    torch.save(content | {"optimizer": {"state": {}}, "epoch": 599, "args": args}, path)
    return path
