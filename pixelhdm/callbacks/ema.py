"""Exponential moving average of the weights."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from pixelhdm.errors import UserError
from pixelhdm.module import PixelHDMModule


class EMA(Callback):
    """Exponential moving average of network and conditioner, float32, beside them on their device.

    After optimizer step n: average += (1 - d) (weight - average) with d = min(decay, (1 + n) / (10
    + n)); the ramp keeps short runs from remembering their start. Saved with the checkpoint under
    `ema.`.

    Args:
        decay: decay per optimizer step at the end of the ramp; 0 makes the average equal to the
            weights.
    """

    def __init__(self, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise UserError(f"decay must lie in 0 … 1 (1 excluded), got {decay}.")
        self.decay, self.seen = decay, 0

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if stage == "fit" and pl_module.ema is None:
            pl_module.add_average()

    def on_train_start(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        self.seen = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        if pl_module.step_skipped:
            return
        decay = min(self.decay, (1 + self.seen) / (10 + self.seen))
        averages, weights = zip(*pl_module.averaged(), strict=True)
        torch._foreach_lerp_(averages, [weight.float() for weight in weights], 1 - decay)
