"""The global random generators, saved and restored."""

import random
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pixelhdm.processes import gather_objects


class RandomState(Callback):
    """Save torch's and Python's global generators of every process and restore them on resume.

    PixelHDM's own draws do not use them (each sample has its own seed); a network with dropout
    does.
    """

    def __init__(self) -> None:
        self.restored: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        own = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if torch.cuda.is_available():
            own["cuda"] = torch.cuda.get_rng_state()
        return {"ranks": gather_objects(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.restored is None or len(self.restored) != trainer.world_size:
            return
        own, self.restored = self.restored[trainer.global_rank], None
        torch.set_rng_state(own["torch"])
        random.setstate(own["python"])
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
