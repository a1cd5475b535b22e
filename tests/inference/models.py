"""Small models as trainings leave them, without a training."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from pixelhdm.inference.model import Model
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.positioned_text_conditioner import PositionedTextConditioner
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.training.flow import FlowMatching
from tests.stubs import TINY, HashConditioner, perturb, tiny_network

KINDS = (HashConditioner, ClassConditioner, TextConditioner, PositionedTextConditioner)
CLASSES = {"class_path": "ClassConditioner", "init_args": {"num_classes": 10}}
TEXTS = {"class_path": "tests.stubs.HashConditioner", "init_args": {"num_words": 16}}
NETWORK = {"class_path": "PixelHDM", "init_args": TINY | {"rope_dims": list(TINY["rope_dims"])}}


def model_of(conditioner: dict[str, Any]) -> Model:
    """The model that `write_run` trains."""
    torch.manual_seed(0)
    kinds = {kind.__name__: kind for kind in KINDS}
    kind = kinds[conditioner["class_path"].rpartition(".")[2]]
    part = kind(TINY["hidden_dim"], **conditioner["init_args"])
    return Model(perturb(tiny_network()).eval(), perturb(part).eval(), FlowMatching())


def write_run(folder: Path, conditioner: dict[str, Any], **trainer: Any) -> Path:
    """A run's folder with a checkpoint, whose average are the weights of `model_of`, whose raw ones
    are zero.
    """
    parts = nn.ModuleDict(model_of(conditioner)._asdict() | {"flow": nn.Identity()})
    average = parts.state_dict()
    raw = {key: torch.zeros_like(value) for key, value in average.items()}
    state = raw | {f"ema.{key}": value for key, value in average.items()}
    file = folder / "checkpoints/step_00000012.ckpt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": state, "global_step": 12}, file)
    config = {
        "trainer": {"default_root_dir": str(folder), **trainer},
        "model": {
            "network": NETWORK,
            "conditioner": conditioner,
            "sampler": {"class_path": "HeunSampler", "init_args": {"num_steps": 3}},
            "guidance": {"class_path": "Guidance", "init_args": {"scale": 2.0}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        },
        "data": {"image_size": 8, "batch_size": 4, "draw": {"width": 12}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder
