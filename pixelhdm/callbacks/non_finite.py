"""What happens when the loss is no longer a number."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.files import append_once
from pixelhdm.module import PixelHDMModule
from pixelhdm.processes import gather_objects

FILE = "non_finite.jsonl"
LEAST_SCALE = 1.0  # what overflows without a scaled loss overflows by itself


class SkipNonFinite(Callback):
    """Skip every optimizer step whose loss or gradient is NaN or infinite.

    Too many in a row end the run. Weights, optimizer state and average stay as they were. Each
    skip is counted (train/skipped_steps) and written with its sample indices to
    <run folder>/non_finite.jsonl. All processes skip together.

    With 16-mixed, gradients that overflow because the loss scale is high are no fault: such a step
    is skipped and the scale halved, and only their number is logged (train/overflows).

    Args:
        max_in_a_row: number of skipped steps in a row that ends the run.
    """

    def __init__(self, max_in_a_row: int = 20):
        check_at_least(1, max_in_a_row=max_in_a_row)
        self.max_in_a_row = max_in_a_row
        self.skipped, self.in_a_row, self.overflows = 0, 0, 0
        self.kept_scale: float | None = None
        self.samples: list[tuple[Tensor, Tensor]] = []
        self.loss: Tensor | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.samples.append((batch["index"], batch["weight"]))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: PixelHDMModule, optimizer: Optimizer
    ) -> None:
        scaler = loss_scaler(trainer)
        scale = 1.0 if scaler is None else scaler.get_scale()
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves that to the step of a fused optimizer
        loss, norm = self.loss / scale, pl_module.gradient_norm(optimizer)
        finite = torch.stack([loss, norm.to(loss)]).isfinite()
        bad_loss, bad_norm = trainer.strategy.reduce((~finite).float(), reduce_op="max").tolist()
        pl_module.step_skipped = bool(bad_loss or bad_norm)
        if pl_module.step_skipped:
            pl_module.skip_step(optimizer)
        if bad_norm and not bad_loss and scale > LEAST_SCALE:
            self.overflows += 1
        elif pl_module.step_skipped:
            self.kept_scale = None if scaler is None else scale
            self.record(trainer, float(trainer.strategy.reduce(loss)), float(norm))
        else:
            self.in_a_row = 0
        self.samples, self.loss = [], None
        pl_module.log_dict({"train/grad_norm": norm, "train/skipped_steps": float(self.skipped)})
        if scaler is not None:
            pl_module.log("train/overflows", float(self.overflows))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.kept_scale is not None:  # the scaler halved it, yet a lower one mends no fault
            loss_scaler(trainer).update(self.kept_scale)
            self.kept_scale = None

    def record(self, trainer: Trainer, loss: float, norm: float) -> None:
        """Count and write down a faulty step; stop the run at the limit."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        indices = sorted(set(self.sample_indices().tolist()))
        if trainer.is_global_zero:
            record = {
                "step": trainer.global_step,
                "loss": str(loss),
                "grad_norm": str(norm),
                "samples": indices,
            }
            append_once(Path(trainer.default_root_dir) / FILE, [json.dumps(record)])
            rank_zero_info(
                f"Step {trainer.global_step} skipped: loss {loss}, gradient norm {norm}; samples "
                f"in {FILE}."
            )
        if self.in_a_row >= self.max_in_a_row:
            raise UserError(
                "loss and gradient must be finite, got NaN or infinity in "
                f"{self.in_a_row} steps in a row "
                f"(loss {loss}, gradient norm {norm}, step {trainer.global_step}). Checkpoints in "
                f"{trainer.default_root_dir} are intact: resume the last one, or if that fails at "
                "once the one before it, with a lower learning rate, and look at the samples in "
                f"{FILE}."
            )

    def sample_indices(self) -> Tensor:
        """Indices of the samples since the last step, padding left out, of all processes."""
        own = torch.cat([index.cpu()[weight.cpu() > 0] for index, weight in self.samples])
        return torch.cat(gather_objects(own))

    def state_dict(self) -> dict[str, int]:
        return {
            "skipped": self.skipped,
            "overflows": self.overflows,
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped, self.overflows = state_dict["skipped"], state_dict["overflows"]
        self.in_a_row = state_dict["in_a_row"]


def loss_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """What scales the loss of a 16-mixed run; none with any other precision."""
    return getattr(trainer.precision_plugin, "scaler", None)
