"""The progress line."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

TERMINAL_SECONDS, FILE_SECONDS = 0.5, 15.0


class StepProgress(ProgressBar):
    """One bar over the whole run: steps, time left, loss, images per second.

    On a terminal it is redrawn in place; into a file a line is written every 15 seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = True

    def disable(self) -> None:
        self.on = False

    def enable(self) -> None:
        self.on = True

    def begin(self, total: float, done: int, name: str) -> None:
        """Start a bar of `total` steps, of which `done` lie behind."""
        self.total = None if total in (-1, float("inf")) else int(total)
        self.first, self.name = done, name
        self.started = self.shown = time.monotonic()
        self.images_since = 0
        self.interval = TERMINAL_SECONDS if sys.stderr.isatty() else FILE_SECONDS

    def advance(self, done: int, images: int, facts: dict[str, Any], last: bool) -> None:
        """Count, and redraw when it is time."""
        self.images_since += images
        now = time.monotonic()
        if not self.on or (now - self.shown < self.interval and not last):
            return
        rate = self.images_since / max(now - self.shown, 1e-9)
        self.shown, self.images_since = now, 0
        values = {name: f"{float(value):.4f}" for name, value in facts.items()} | {
            "images/s": f"{rate:,.1f}"
        }
        line = tqdm.format_meter(
            n=done,
            total=self.total,
            elapsed=now - self.started,
            initial=self.first,
            prefix=self.name,
            unit="step",
            ncols=110,
            postfix=", ".join(f"{name} {value}" for name, value in values.items()),
        )
        end = "\n" if last or not sys.stderr.isatty() else ""
        print(f"\r{line}" if sys.stderr.isatty() else line, end=end, file=sys.stderr, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.max_steps
        if total == -1 and trainer.max_epochs not in (None, -1):
            per_epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
            total = trainer.max_epochs * per_epoch
        self.begin(total, trainer.global_step, "fit")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        facts = {}
        if time.monotonic() - self.shown >= self.interval or step == self.total:
            facts = {"loss": trainer.callback_metrics.get("train/total", float("nan"))}
        self.advance(step, len(batch["seed"]) * trainer.world_size, facts, step == self.total)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.begin(sum(trainer.num_val_batches), 0, "validate")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        if trainer.state.fn == "validate":
            self.count(trainer, batch, batch_idx)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(sum(trainer.num_predict_batches), 0, "predict")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        self.count(trainer, batch, batch_idx)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(sum(trainer.num_test_batches), 0, "test")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        self.count(trainer, batch, batch_idx)

    def count(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        """Count a batch of validate, predict or test."""
        done = batch_idx + 1
        self.advance(done, len(batch["seed"]) * trainer.world_size, {}, done == self.total)
