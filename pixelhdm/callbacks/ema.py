"""Exponential moving average of the weights, and averages with power-function profiles."""

import copy
import itertools
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pixelhdm.checkpoint_files import full
from pixelhdm.checkpoints import EMA_PREFIX, PROFILES_PREFIX, profile_name
from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.module import PixelHDMModule
from pixelhdm.snapshots import remove_later, write_snapshot
from pixelhdm.training.power_ema import Profile, exponent, profile_decay

Device = Literal["auto", "cpu"]


class EMA(Callback):
    """Exponential moving average of network and conditioner, float32, beside them on their device.

    After optimizer step n: average += (1 - d) (weight - average) with d = min(decay, (1 + n) / (10
    + n)); the ramp keeps short runs from remembering their start. Saved with the checkpoint under
    `ema.`. Where a run goes on with the average of the stage before it (model.init_from), n counts
    on from the steps that this average has seen, and the profiles start anew.

    With sigma_rel, averages with power-function profiles (arXiv:2312.02696, section 3.1) are kept
    too, in float32 and in the checkpoint under `profiles.`. Snapshots of them in
    <run folder>/ema_snapshots let `python main.py ema` make the average of any other length after
    the training (section 3.2). They are float16, so that one of the default network takes 0.73 GB;
    `main.py ema` says how much that rounding matters, under 0.1 % for lengths from 0.05 on. A
    resumed run deletes the snapshots after its start, which it will make again.

    With every_n_steps the averages move to the weights of every n-th step as far as n steps to the
    same weights would have taken them: 1 - d^n of the way, or 1 - d d' … during the ramp. Between
    these they stay.

    Args:
        decay: decay per optimizer step at the end of the ramp; 0 makes the average equal to the
            weights.
        sigma_rel: relative lengths of the averages to keep beside it, 0.05 and 0.1 for instance
            (standard deviation of an average's weights in time, as a part of the training so
            far); needs snapshot_every_n_steps. Each costs the memory of the weights.
        snapshot_every_n_steps: optimizer steps between snapshots of these averages, beside the one
            at the end of training; 16 to 64 in a run are enough. 0 without sigma_rel.
        device: where all averages lie: auto, beside the weights, or cpu, in CPU memory. There they
            cost no memory of the GPU but the time to copy the weights each time, and a copy on the
            GPU while something is drawn or validated with them.
        every_n_steps: optimizer steps between updates of the averages. 10 makes them cheap on a
            CPU; the average is n - 1 steps behind at most.
    """

    def __init__(
        self,
        decay: float = 0.9999,
        sigma_rel: list[float] | None = None,
        snapshot_every_n_steps: int = 0,
        device: Device = "auto",
        every_n_steps: int = 1,
    ):
        if not 0 <= decay < 1:
            raise UserError(f"decay must lie in 0 … 1 (1 excluded), got {decay}.")
        self.decay, self.seen = decay, 0
        check_at_least(0, snapshot_every_n_steps=snapshot_every_n_steps)
        check_at_least(1, every_n_steps=every_n_steps)
        check_one_of(Device, device=device)
        self.device, self.every_n_steps = device, every_n_steps
        self.sigma_rel, self.snapshot_every_n_steps = sigma_rel or [], snapshot_every_n_steps
        self.averaged: int | None = None  # step of the last update
        self.kept = 1.0  # share of the average that is left after the steps since then
        self.stored = 0  # step of the last snapshots
        for sigma in self.sigma_rel:
            exponent(sigma)
        if len(set(self.sigma_rel)) < len(self.sigma_rel):
            raise UserError(f"sigma_rel must differ from each other, got {self.sigma_rel}.")
        if bool(self.sigma_rel) != bool(snapshot_every_n_steps):
            raise UserError(
                "sigma_rel and snapshot_every_n_steps must be given together, got "
                f"{self.sigma_rel or 'none'} and {snapshot_every_n_steps}. Snapshots of these "
                "averages are what others are reconstructed from; 16 to 64 in a run are enough."
            )

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if stage != "fit":
            return
        self.averaged, self.kept = None, 1.0
        if self.device == "cpu" and isinstance(
            trainer.strategy, FSDPStrategy | ModelParallelStrategy
        ):
            raise UserError(
                "ema.device must be auto where the weights are sharded, got cpu. Each process then "
                "keeps its part of the average alone."
            )
        if pl_module.ema is None:
            pl_module.add_average(on_cpu=self.device == "cpu")
        if self.sigma_rel:
            pl_module.profiles = nn.ModuleDict(
                {profile_name(sigma): copy.deepcopy(pl_module.ema) for sigma in self.sigma_rel}
            )
        if self.device == "cpu":
            leave_to_cpu(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        self.seen = trainer.global_step
        if self.averaged is None:
            self.averaged = self.seen
        if not self.sigma_rel:
            return
        if trainer.is_global_zero and not trainer.fast_dev_run:
            removed = remove_later(trainer.default_root_dir, self.averaged)
            if removed:
                rank_zero_info(
                    f"Removed {removed} EMA snapshots of steps after {self.averaged}, where this "
                    "run starts."
                )

    def on_train_batch_start(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        pl_module.ema.rest()  # all that draws between two steps has drawn

    def on_validation_end(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        self.teardown(trainer, pl_module, "validate")

    def teardown(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if pl_module.ema is not None:
            pl_module.ema.rest()

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        if pl_module.step_skipped:
            return
        steps = pl_module.average_steps + self.seen
        self.kept *= min(self.decay, (1 + steps) / (10 + steps))
        if self.is_due(self.every_n_steps, self.averaged):
            before = self.averaged
            self.update(pl_module)
            if self.sigma_rel and self.is_due(self.snapshot_every_n_steps, before):
                self.store(trainer, pl_module)

    def is_due(self, every_n_steps: int, before: int) -> bool:
        """Whether a step is due that comes every n steps and came last by step `before`: also the
        first good step after a skipped one that was due.
        """
        return self.seen // every_n_steps > before // every_n_steps

    def update(self, pl_module: PixelHDMModule) -> None:
        """Let the weights of this step count for the steps since the last update."""
        averages, weights = zip(*pl_module.averaged(), strict=True)
        weights = pl_module.ema.taken(weights)
        torch._foreach_lerp_(averages, weights, 1 - self.kept)
        pl_module.ema.rest()
        for sigma in self.sigma_rel:
            averages = list(pl_module.profiles[profile_name(sigma)].parameters())
            kept = profile_decay(sigma, self.seen, self.averaged)
            torch._foreach_lerp_(averages, weights, 1 - kept)
        self.averaged, self.kept = self.seen, 1.0

    @torch.no_grad()
    def store(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        """Write a snapshot of every profile; all processes must call it together."""
        if trainer.fast_dev_run:
            return
        self.stored = self.averaged
        for sigma in self.sigma_rel:
            state = {}
            for name, value in pl_module.profiles[profile_name(sigma)].state_dict().items():
                whole = full(value)
                if trainer.is_global_zero:
                    state[name] = whole.to("cpu", torch.float16).contiguous()
            if trainer.is_global_zero:
                write_snapshot(trainer.default_root_dir, Profile(sigma, self.averaged), state)

    def on_train_end(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        if self.sigma_rel and self.averaged != self.stored:
            self.store(trainer, pl_module)

    def state_dict(self) -> dict[str, float]:
        state = {"averaged": self.averaged} if self.sigma_rel or self.every_n_steps > 1 else {}
        return state | ({"kept": self.kept} if self.every_n_steps > 1 else {})

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.averaged, self.kept = state_dict["averaged"], state_dict.get("kept", 1.0)


def leave_to_cpu(pl_module: PixelHDMModule) -> None:
    """Let DDP, which wants all weights on one device, leave the averages alone; each process makes
    the same ones.
    """
    named = itertools.chain(pl_module.named_parameters(), pl_module.named_buffers())
    averages = [name for name, _ in named if name.startswith((EMA_PREFIX, PROFILES_PREFIX))]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, averages)
