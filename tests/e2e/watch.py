"""Callbacks that a test gives to a run in another process, by --trainer.callbacks."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class Unreadable(Callback):
    """Keep what no checkpoint is read with."""

    def state_dict(self) -> dict[str, Any]:
        return {"file": Path("x")}


class KillAt(Callback):
    """Kill every process in the last batch of the step after `step`, with gradients half summed."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        last = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if last and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Witness(Callback):
    """Fail where a trained parameter has no gradient; keep what each process ends with."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise RuntimeError(f"{name} has no gradient")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        file = Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt"
        torch.save(pl_module.state_dict(), file)


class StopAt(Callback):
    """Ask the trainer to stop after a batch, numbered over the whole run, as a time limit does, or
    in the validation after it, as early stopping does.
    """

    def __init__(self, batch: int, in_validation: bool = False):
        self.batch, self.in_validation = batch, in_validation

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch and not self.in_validation:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch and self.in_validation:
            trainer.should_stop = True


class SpoilAt(Callback):
    """Make the gradient of a step NaN."""

    def __init__(self, step: int):
        self.step = step

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            next(pl_module.parameters()).grad.fill_(torch.nan)
