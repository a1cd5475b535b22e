"""When checkpoints are written, and how a run is interrupted."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from pixelhdm.checkpoints import ENDING, FOLDER, check_readable, delete, remove_leftovers
from pixelhdm.errors import check_at_least
from pixelhdm.liveness import end_if_lost
from pixelhdm.module import PixelHDMModule

REQUEUE = getattr(signal, "SIGUSR1", None)  # Windows has none
SIGNALS = [s for s in (signal.SIGINT, signal.SIGTERM, REQUEUE) if s is not None]


class Interrupted(Exception):
    """A person or the system asked the run to stop; everything is saved."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class RunCheckpoint(Checkpoint):
    """Save everything that a run needs to go on, into <run folder>/checkpoints/step_….ckpt: a file,
    or with the strategy fsdp2 a folder, into which each process writes its part.

    Saves every few steps, at the end, and when asked to stop (Ctrl-C, SIGTERM, SIGUSR1; a second
    one stops at once). Where a step is skipped, the next good one is saved in its place. A run ends
    between two steps, not between the accumulated batches of one.

    Args:
        every_n_steps: optimizer steps between checkpoints; 0 saves at the end alone.
        keep: number of checkpoints to keep, the newest ones; 0 keeps all. An older one goes when
            the step after the newer one was good, so that a diverged run keeps its last good one.
    """

    def __init__(self, every_n_steps: int = 1000, keep: int = 1):
        check_at_least(0, every_n_steps=every_n_steps, keep=keep)
        self.every_n_steps, self.keep = every_n_steps, keep
        self.started, self.seen, self.good = 0, 0, 0
        self.signum: int | None = None
        self.latest: Path | None = None
        self.doubtful, self.is_rank_zero = False, True
        self.within_step = self.stops_after_step = self.at_end = False
        self.position: tuple[int, dict[str, Any]] | None = None
        self.handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(trainer.default_root_dir)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = self.seen = self.good = trainer.global_step
        self.is_rank_zero = trainer.is_global_zero
        self.within_step = self.stops_after_step = False
        self.signum = None
        if threading.current_thread() is threading.main_thread():
            self.handlers = {s: signal.signal(s, self.ask_to_stop) for s in SIGNALS}

    def ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: remember the first signal, act at once on the second."""
        end_if_lost()
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        if self.is_rank_zero:
            name = signal.Signals(signum).name
            print(f"\n{name}: saving after this step. Once more to stop at once.", flush=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        step = trainer.global_step
        self.within_step = step == self.seen
        if self.within_step:
            self.delay_stop(trainer)
            return
        self.seen = step
        self.position = trainer.current_epoch, trainer.fit_loop.state_dict()
        trainer.should_stop |= self.stops_after_step
        stop = trainer.strategy.reduce_boolean_decision(self.signum is not None, all=False)
        due = stop
        if not pl_module.step_skipped:
            every, self.good, before = self.every_n_steps, step, self.good
            due = due or self.is_last(trainer) or (every and step // every > before // every)
            if self.doubtful:
                self.prune(trainer)
        if due:
            self.save(trainer)
        if stop:
            # One signal for all: it may not have reached each of them yet.
            asked = torch.tensor(float(self.signum or 0), device=pl_module.device)
            raise Interrupted(int(trainer.strategy.reduce(asked, reduce_op="max")))

    def on_validation_end(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        if self.within_step:
            self.delay_stop(trainer)

    def delay_stop(self, trainer: Trainer) -> None:
        """Keep a stop that was asked for within a step, by a time limit for instance, until its
        end: the gradients summed so far would be lost.
        """
        self.stops_after_step |= trainer.should_stop
        trainer.should_stop = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: PixelHDMModule, checkpoint: dict[str, Any]
    ) -> None:
        """At the end of a run keep the position right after its last step: Lightning has counted
        the epoch as done by then, wherever in it the run has stopped.
        """
        if self.at_end:
            checkpoint["epoch"], checkpoint["loops"]["fit_loop"] = self.position

    def on_train_end(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        if trainer.global_step > self.started:
            if self.latest != self.file(trainer):
                self.at_end = True
                self.save(trainer)
                self.at_end = False
            if not pl_module.step_skipped:
                self.prune(trainer)

    def is_last(self, trainer: Trainer) -> bool:
        """Whether this step is known to be the run's last; an end by validation is not known."""
        epochs = trainer.max_epochs
        last_epoch = epochs not in (None, -1) and trainer.current_epoch + 1 >= epochs
        at_end = last_epoch and trainer.is_last_batch
        asked = trainer.should_stop and trainer.fit_loop._can_stop_early  # not before min_steps
        return trainer.global_step == trainer.max_steps or asked or at_end

    def file(self, trainer: Trainer) -> Path:
        """The checkpoint of the current step."""
        name = f"step_{trainer.global_step:08d}{ENDING}"
        return Path(trainer.default_root_dir) / FOLDER / name

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint; the older ones stay until the weights in it have proved good."""
        if trainer.fast_dev_run:
            return
        for callback in trainer.callbacks:
            if type(callback).__module__.split(".")[0] not in ("pixelhdm", "lightning"):
                check_readable(callback.state_dict(), type(callback).__name__)
        self.latest, self.doubtful = self.file(trainer), True
        trainer.save_checkpoint(self.latest, weights_only=False)

    def prune(self, trainer: Trainer) -> None:
        """Delete the oldest checkpoints beyond `keep`."""
        self.doubtful = False
        if self.keep and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / FOLDER
            for old in sorted(folder.glob(f"step_*{ENDING}"))[: -self.keep]:
                delete(old)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        self.handlers = {}
