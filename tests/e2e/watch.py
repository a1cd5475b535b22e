"""Callbacks that a test gives to a run in another process, by --trainer.callbacks."""

import hashlib
import json
import multiprocessing
import os
import signal
import time
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


class LoseAt(Callback):
    """Lose one process, in the step after `step` or in the validation that follows it: kill it, or
    let it fail.
    """

    def __init__(self, step: int, rank: int, fails: bool = False, in_validation: bool = False):
        self.step, self.rank, self.fails, self.in_validation = step, rank, fails, in_validation

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if not self.in_validation:
            self.lose(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.in_validation:
            self.lose(trainer)

    def lose(self, trainer: Trainer) -> None:
        if (trainer.global_step, trainer.global_rank) != (self.step, self.rank):
            return
        if self.fails:
            raise RuntimeError("lost on purpose")
        os.kill(os.getpid(), signal.SIGKILL)


class LateAt(Callback):
    """Wait for a signal in the step after `step`, having said so by a file <run folder>/late<rank>.

    Args:
        step: optimizer steps before.
        seconds: how long at most.
    """

    def __init__(self, step: int, seconds: float):
        self.step, self.seconds = step, seconds

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            own = Path(trainer.default_root_dir) / f"late{trainer.global_rank}"
            own.touch()
            checkpoint = next(c for c in trainer.checkpoint_callbacks)
            deadline = time.monotonic() + self.seconds
            while checkpoint.signum is None and time.monotonic() < deadline:
                time.sleep(0.01)
            own.unlink(missing_ok=True)


class DieWhileSaving(Callback):
    """Kill this process half way through the writing of a step's checkpoint."""

    def __init__(self, step: int):
        self.step = step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save = torch.save

        def die_half_way(content: dict[str, Any], path: Path) -> None:
            save(content, path)
            if content.get("global_step") == self.step:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = die_half_way


class DieWhileSharing(Callback):
    """Kill every process while it writes its part of a step's checkpoint, the last half way."""

    def __init__(self, step: int):
        self.step = step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save = torch.save

        def die(content: Any, path: Any, **settings: Any) -> None:
            save(content, path, **settings)
            is_part = isinstance(path, Path) and path.parent.name.startswith(".step_")
            if is_part and trainer.global_step == self.step:
                if trainer.global_rank == trainer.world_size - 1:
                    os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = die


class InterruptAt(Callback):
    """Send Ctrl-C to this process and to those that it has started, as a terminal does, in the
    step after `step`.
    """

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            children = [child.pid for child in multiprocessing.active_children()]
            for pid in (*children, os.getpid()):
                os.kill(pid, signal.SIGINT)
            time.sleep(0.2)  # let them end, if they do


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


class Record(Callback):
    """Write what this process trains on, a line a batch, to <run folder>/batches<rank>.jsonl, and
    the batches after which it validates to validations<rank>.jsonl.
    """

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        images = batch["image"]
        line = {
            "number": trainer.fit_loop.total_batch_idx,
            "step": trainer.global_step,
            "trainer_epoch": trainer.current_epoch,
            "epoch": trainer.datamodule.loader.epoch,
            "size": list(images.shape[1:3]),
            "index": batch["index"].tolist(),
            "weight": batch["weight"].tolist(),
            "seed": batch["seed"].tolist(),
            "condition": batch["condition"].tolist(),
            "pixels": [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images],
        }
        self.write(trainer, "batches", line)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, "validations", trainer.fit_loop.total_batch_idx)

    def write(self, trainer: Trainer, name: str, line: Any) -> None:
        """Append a line at once, so that it outlives a kill."""
        file = Path(trainer.default_root_dir) / f"{name}{trainer.global_rank}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
