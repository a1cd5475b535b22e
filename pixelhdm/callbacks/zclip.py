"""Clipping of gradient norms that stand out from those of the steps before."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.module import PixelHDMModule, gradients

EPS = 1e-6
OF_STEP = THRESHOLD, SCORE = "train/clip_threshold", "train/grad_z"


class NormStatistics:
    """Running mean m and standard deviation s of gradient norms, and what they leave of the next.

    The first norms give m and s² as their mean and population variance. From then on a norm g has
    the score z = (g - m) / (s + 1e-6); where z > Z it is a spike and is cut to m + (Z² / z) s, so
    the more the higher it is. With u, what is left of g, m' = alpha m + (1 - alpha) u and
    s'² = alpha s² + (1 - alpha) (u - m')² (arXiv:2504.02507).

    Args:
        alpha: share that m and s² keep at every step.
        z_threshold: Z, the score above which a norm is a spike.
        warmup_steps: number of the first norms.
    """

    def __init__(self, alpha: float, z_threshold: float, warmup_steps: int):
        self.alpha, self.z_threshold, self.warmup_steps = alpha, z_threshold, warmup_steps
        self.first: list[float] = []
        self.mean: float | None = None
        self.variance = 0.0

    def score(self, norm: float) -> float | None:
        """z of a norm; none before there are statistics."""
        if self.mean is None:
            return None
        return (norm - self.mean) / (math.sqrt(self.variance) + EPS)

    def threshold(self) -> float:
        """The highest norm that is no spike."""
        if self.mean is None:
            return math.inf
        return self.mean + self.z_threshold * (math.sqrt(self.variance) + EPS)

    def cut(self, norm: float) -> float:
        """What is left of a norm: all of it unless it is a spike."""
        z = self.score(norm)
        if z is None or z <= self.z_threshold:
            return norm
        return self.mean + self.z_threshold**2 / z * math.sqrt(self.variance)

    def add(self, norm: float) -> None:
        """Take a norm, before it was cut, into the statistics."""
        if self.mean is None:
            self.first.append(norm)
            if len(self.first) >= self.warmup_steps:
                self.mean = math.fsum(self.first) / len(self.first)
                squares = ((value - self.mean) ** 2 for value in self.first)
                self.variance = math.fsum(squares) / len(self.first)
                self.first = []
            return
        left = self.cut(norm)
        self.mean = self.alpha * self.mean + (1 - self.alpha) * left
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (left - self.mean) ** 2


class ZClip(Callback):
    """Clip gradients whose norm is a spike among those of earlier steps (arXiv:2504.02507).

    NormStatistics has the rule. The norm above which it clips (train/clip_threshold), the z-score
    (train/grad_z) and the share of clipped steps (train/clipped_share) are logged; the statistics
    are saved and resumed. A norm that is NaN or infinite skips its step and leaves them alone.

    Args:
        z_threshold: standard deviations above the mean from which on a norm is a spike; empty
            switches ZClip off, max_norm too.
        alpha: share of the running mean and variance that stays at every step, below 1.
        warmup_steps: optimizer steps that the first mean and variance come from; no spike is
            clipped in them.
        max_norm: highest norm that any step may have, in the warm-up too; empty is no bound.
    """

    def __init__(
        self,
        z_threshold: float | None = 2.5,
        alpha: float = 0.97,
        warmup_steps: int = 25,
        max_norm: float | None = None,
    ):
        for name, value in {"z_threshold": z_threshold, "max_norm": max_norm}.items():
            if value is not None and not value > 0:
                raise UserError(f"{name} must be above 0, got {value}.")
        if not 0 <= alpha < 1:
            raise UserError(f"alpha must lie in 0 … 1 (1 excluded), got {alpha}.")
        check_at_least(2, warmup_steps=warmup_steps)
        self.on = z_threshold is not None
        self.max_norm = math.inf if max_norm is None else max_norm
        self.norms = NormStatistics(alpha, z_threshold or math.inf, warmup_steps)
        self.steps, self.clipped = 0, 0

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if stage == "fit" and self.on and trainer.gradient_clip_val:
            raise UserError(
                "trainer.gradient_clip_val must be empty beside ZClip, got "
                f"{trainer.gradient_clip_val}. Set zclip.max_norm in its place, or switch ZClip "
                "off with zclip.z_threshold=null."
            )

    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: PixelHDMModule, optimizer: Optimizer
    ) -> None:
        pl_module.step_skipped = False

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: PixelHDMModule, optimizer: Optimizer
    ) -> None:
        if not self.on:
            return
        if pl_module.step_skipped:
            pl_module.forget(OF_STEP)
            return
        norm = float(pl_module.gradient_norm(optimizer))
        if not math.isfinite(norm):
            pl_module.forget(OF_STEP)
            pl_module.skip_step(optimizer)
            return
        limits = {
            THRESHOLD: min(self.norms.threshold(), self.max_norm),
            SCORE: self.norms.score(norm),
        }
        left = min(self.norms.cut(norm), self.max_norm)
        if left < norm:
            torch._foreach_mul_(gradients(optimizer), left / (norm + EPS))
            self.clipped += 1
        self.norms.add(norm)
        self.steps += 1
        known = {key: value for key, value in limits.items() if value not in (None, math.inf)}
        pl_module.log_dict(known | {"train/clipped_share": self.clipped / self.steps})

    def state_dict(self) -> dict[str, Any]:
        norms = self.norms
        statistics = {"first": norms.first, "mean": norms.mean, "variance": norms.variance}
        return {"steps": self.steps, "clipped": self.clipped, **statistics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.clipped = state_dict["steps"], state_dict["clipped"]
        self.norms.first = list(state_dict["first"])
        self.norms.mean, self.norms.variance = state_dict["mean"], state_dict["variance"]
