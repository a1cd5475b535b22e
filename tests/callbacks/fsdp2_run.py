"""A short run with the callbacks that touch gradients and weights. As a script it is one process of
two that share the run, by FSDP2 and then by DDP; its argument is the folder for what they find.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from pixelhdm.callbacks.ema import EMA
from pixelhdm.callbacks.non_finite import SkipNonFinite
from pixelhdm.callbacks.zclip import ZClip
from pixelhdm.checkpoint_files import full
from pixelhdm.data.draws import Draws
from pixelhdm.data.samplers import RandomPlan
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from pixelhdm.processes import gather_objects
from pixelhdm.sharding import FSDP2
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Numbers, perturb, tiny_network

STEPS, GLOBAL_BATCH = 8, 8
BAD_LOSS, BAD_GRADIENT = 3, 5  # steps
ORDER = RandomPlan().order(None, STEPS * GLOBAL_BATCH, seed=0, epoch=0)
PLAN = ORDER.reshape(STEPS, GLOBAL_BATCH)


class Spoiled(PixelHDMModule):
    """The module; in two steps an image of the last process makes its loss NaN, and the gradient is
    finite in the first of them.
    """

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if (batch["index"] == PLAN[BAD_LOSS, -1]).any():
            return loss + torch.nan
        return loss * torch.nan if (batch["index"] == PLAN[BAD_GRADIENT, -1]).any() else loss


class Watch(Callback):
    """Notes the norm of every step and whether it was skipped."""

    def __init__(self):
        self.norms: list[float] = []
        self.skipped: list[bool] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        self.norms.append(float(pl_module.norm))
        self.skipped.append(pl_module.step_skipped)


def train(folder: Path, strategy: Strategy | str = "auto", processes: int = 1) -> dict[str, Any]:
    """What every process has seen of the run, and the whole tensors at its end."""
    module = Spoiled(
        perturb(tiny_network()),
        lambda dim: perturb(ClassConditioner(dim, 10, 1)),
        EulerSampler(1),
        Guidance(),
        loss=TripleLoss(velocity=VelocityLoss()),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, eps=1e-6),
    )
    watch, skip, zclip = Watch(), SkipNonFinite(), ZClip(z_threshold=0.1, warmup_steps=2)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        max_epochs=1,
        val_check_interval=STEPS // 2,
        logger=False,
        default_root_dir=folder,
        callbacks=[EMA(0.9, [0.05, 0.1], 3), skip, zclip, watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    sources = {"train": Numbers(PLAN.size), "val": Numbers(GLOBAL_BATCH)}
    share = GLOBAL_BATCH // processes
    trainer.fit(module, PixelHDMDataModule(2, share, Draws(0), **sources, num_workers=0))
    state = module.state_dict()
    held = (value.to_local() if isinstance(value, DTensor) else value for value in state.values())
    seen = {
        "norms": watch.norms,
        "skipped": watch.skipped,
        "zclip": {"steps": zclip.steps, "clipped": zclip.clipped}
        | {"mean": zclip.norms.mean, "variance": zclip.norms.variance},
        "logged": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "held": sum(value.numel() for value in held),
    }
    tensors = {key: full(value) for key, value in state.items()}
    return {"seen": gather_objects(seen), "tensors": tensors}


if __name__ == "__main__":
    for name, strategy in {"fsdp2": FSDP2(), "ddp": DDPStrategy()}.items():
        folder = Path(sys.argv[1]) / name
        found = train(folder, strategy, 2)
        if torch.distributed.get_rank() == 0:
            torch.save(found, folder / "found.pt")
    torch.distributed.barrier()
    os._exit(0)  # with sharded tensors the interpreter's end sometimes aborts
