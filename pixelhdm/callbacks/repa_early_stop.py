"""When the representation loss ends."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from pixelhdm.errors import check_at_least
from pixelhdm.training.losses.repa import RepaLoss


class RepaEarlyStop(Callback):
    """End every RepaLoss after some training and free its teacher.

    Alignment speeds up the beginning and holds the end back (arXiv:2505.16792). The projector's
    parameters stay, with zero gradients. A run resumed after the end does not load the teacher;
    one resumed with a later end goes on with it.

    Args:
        step: optimizer step that ends it; 0 never starts it; empty sets no step.
        samples: number of images, of all processes together, that ends it; empty sets none.
    """

    def __init__(self, step: int | None = 250_000, samples: int | None = None):
        given = {"step": step, "samples": samples}
        check_at_least(0, **{name: value for name, value in given.items() if value is not None})
        self.step, self.samples = step, samples
        self.seen_step, self.seen_samples = 0, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.stop_if_due(pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Decide before anything is computed: in fit, sanity check and validate alike."""
        self.seen_step = checkpoint["global_step"]
        self.seen_samples = checkpoint["callbacks"].get(self.state_key, self.state_dict())[
            "samples"
        ]
        self.stop_if_due(pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        self.seen_samples += len(batch["seed"]) * trainer.world_size
        if trainer.global_step != self.seen_step:
            self.seen_step = trainer.global_step
            self.stop_if_due(pl_module)

    def stop_if_due(self, pl_module: LightningModule) -> None:
        """Stop the terms, once, if one of the limits is reached."""
        limits = ((self.step, self.seen_step), (self.samples, self.seen_samples))
        due = any(limit is not None and seen >= limit for limit, seen in limits)
        if not due or pl_module.loss is None:
            return
        terms = pl_module.loss.terms.values()
        running = [term for term in terms if isinstance(term, RepaLoss) and term.active]
        for term in running:
            term.stop()
        if running:
            rank_zero_info(f"REPA is over: step {self.seen_step}, {self.seen_samples} images.")

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.seen_samples}
