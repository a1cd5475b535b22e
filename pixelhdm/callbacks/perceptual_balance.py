"""How strong the perceptual losses are late in a training."""

import math
from typing import Any

import torch
import torch.distributed
from jaxtyping import Float
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.module import PixelHDMModule, ignore
from pixelhdm.processes import are_several
from pixelhdm.training.losses.loss import LossTerm
from pixelhdm.training.losses.perceptual import PerceptualLoss

EPS = 1e-4


class PerceptualBalance(Callback):
    """Weigh all perceptual losses by how their gradient compares with the velocity loss's.

    From start_step on, every every_n_steps: r = min(|dL_v/dW| / (|dL_p/dW| + 1e-4), max_ratio) and
    factor ← momentum factor + (1 - momentum) r, with the weight W of the network's last layer, the
    weighted velocity loss L_v and the weighted sum L_p of the PerceptualLoss terms, without the
    factor (PixelGen, which does so after 80 epochs; VQGAN's rule, arXiv:2012.09841, eq. 7). From
    the next step on the factor, at first 1, multiplies these terms' weights. It is measured on the
    first batch of a step, of all processes together, logged as train/perceptual_factor, saved and
    resumed. A batch that has no finite gradients, or none of L_p, leaves it alone.

    Args:
        start_step: optimizer step of the first measurement, PixelGen's is 400,000; empty switches
            it off.
        every_n_steps: optimizer steps between measurements.
        momentum: share of the factor that a measurement leaves, 0 … 1.
        max_ratio: the highest ratio r of the two gradients.
    """

    def __init__(
        self,
        start_step: int | None = None,
        every_n_steps: int = 50,
        momentum: float = 0.8,
        max_ratio: float = 100.0,
    ):
        check_at_least(1, every_n_steps=every_n_steps)
        if start_step is not None:
            check_at_least(0, start_step=start_step)
        if not 0 <= momentum <= 1:
            raise UserError(f"momentum must lie in 0 … 1, got {momentum}.")
        if not 0 < max_ratio < math.inf:
            raise UserError(f"max_ratio must be above 0, got {max_ratio}.")
        self.start_step, self.every_n_steps = start_step, every_n_steps
        self.momentum, self.max_ratio = momentum, max_ratio
        self.factor, self.seen_step, self.is_due = 1.0, -1, False
        self.last_layer: nn.Linear | None = None
        self.scaler: GradScaler | None = None
        self.terms: dict[str, LossTerm] = {}
        self.weights: dict[str, float] = {}  # of the perceptual terms, without the factor

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        """Note the terms and their own weights.

        Raises:
            UserError: there is nothing to balance, the network does not tell its last layer, or no
                process has a whole gradient.
        """
        if self.start_step is None or pl_module.loss is None:
            return
        self.terms = dict(pl_module.loss.terms.items())
        perceptual = [key for key, term in self.terms.items() if isinstance(term, PerceptualLoss)]
        self.weights = {key: self.terms[key].weight for key in perceptual}
        if stage != "fit":
            return
        if not perceptual or "velocity" not in self.terms:
            raise UserError(
                "perceptual_balance must have a velocity and a perceptual loss to balance, got "
                f"{', '.join(self.terms)}. Leave perceptual_balance.start_step empty, or add what "
                "is missing: model.loss.velocity, or LpipsLoss to model.loss.extra."
            )
        if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
            raise UserError(
                "trainer.strategy must keep the weights whole for perceptual_balance, got "
                f"{type(trainer.strategy).__name__}. Use ddp, or leave "
                "perceptual_balance.start_step empty."
            )
        self.last_layer = pl_module.network.last_layer
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        pl_module.on_losses = self.measure

    def teardown(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        """Give the terms their own weights back."""
        for key, weight in self.weights.items():
            self.terms[key].weight = weight
        self.terms, self.weights = {}, {}
        pl_module.on_losses = ignore

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: PixelHDMModule, batch: Any, batch_idx: int
    ) -> None:
        step, self.is_due = trainer.global_step, False
        if self.start_step is None or step == self.seen_step:
            return
        self.seen_step = step
        self.apply()
        since = step - self.start_step
        self.is_due = since >= 0 and since % self.every_n_steps == 0

    def apply(self) -> None:
        """Let the factor multiply the terms' weights."""
        for key, weight in self.weights.items():
            self.terms[key].weight = self.factor * weight

    def measure(self, means: dict[str, Tensor]) -> None:
        """Take the gradients of a batch into the factor where that is due."""
        weights = {key: weight for key, weight in self.weights.items() if key in means}
        if not self.is_due or not weights:
            return
        velocity = self.terms["velocity"].weight * means["velocity"]
        perceptual = sum(weight * means[key] for key, weight in weights.items())
        norms = gradient_norms([velocity, perceptual], self.last_layer.weight, self.loss_scale())
        if all(map(math.isfinite, norms)) and norms[1] > 0:
            ratio = min(norms[0] / (norms[1] + EPS), self.max_ratio)
            self.factor = self.momentum * self.factor + (1 - self.momentum) * ratio

    def loss_scale(self) -> float:
        """By what losses are multiplied so that float16 holds their gradients; 1 in others."""
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: PixelHDMModule, optimizer: Optimizer
    ) -> None:
        if self.start_step is not None:
            pl_module.log("train/perceptual_factor", self.factor)

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "seen_step": self.seen_step}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.factor, self.seen_step = state_dict["factor"], state_dict["seen_step"]
        self.apply()


def gradient_norms(
    losses: list[Float[Tensor, ""]], weight: nn.Parameter, scale: float
) -> list[float]:
    """Norm of each loss's gradient by a weight; the gradients are means over all processes, and
    computed of losses times `scale`.
    """
    scaled = [torch.autograd.grad(scale * loss, weight, retain_graph=True)[0] for loss in losses]
    gradients = torch.stack([gradient.float() / scale for gradient in scaled])
    if are_several():
        torch.distributed.all_reduce(gradients)
        gradients /= torch.distributed.get_world_size()
    return gradients.flatten(1).norm(dim=1).tolist()
