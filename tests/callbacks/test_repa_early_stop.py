"""RepaEarlyStop in real runs of a one-layer network, 2 images a batch."""

import logging
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pixelhdm.callbacks.repa_early_stop import RepaEarlyStop
from pixelhdm.errors import UserError
from pixelhdm.models.layers import patchify
from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.repa import RepaLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Sized, randn
from tests.tiny_dino import PatchMeans

BATCHES = [
    {"image": randn(2, 4, 8, 3, seed=i).clamp(-1, 1), "seed": torch.arange(2)} for i in range(8)
]


def loader(num: int) -> DataLoader:
    """The first batches."""
    return DataLoader(BATCHES[:num], batch_size=None)


class Module(LightningModule):
    """Trains one layer and remembers in which batches the term was active."""

    def __init__(self, with_repa: bool = True):
        super().__init__()
        self.network = Sized(8, 4)
        self.layer, self.teacher = nn.Linear(48, 8), PatchMeans()
        repa = RepaLoss(self.teacher, projector="conv") if with_repa else None
        self.loss = TripleLoss(velocity=VelocityLoss(), repa=repa)
        self.loss.connect(self.network)
        self.active: list[bool] = []

    def total(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["image"]
        sample = FlowMatching().sample(x, torch.zeros_like(x), torch.full((len(x),), 0.5))
        features = self.layer(patchify(sample.z_t, 4))
        output = sample.z_t * features.mean()
        return self.loss(Prediction(output, features), sample)["total"].mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if "repa" in self.loss.terms:
            self.active.append(self.loss.terms["repa"].active)
        return self.total(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.total(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def trainer_with(stop: RepaEarlyStop, folder: Path, **settings: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=[stop],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def fit(
    folder: Path,
    stop: RepaEarlyStop,
    max_steps: int,
    ckpt_path: str | None = None,
    save: str | None = None,
    **settings: object,
) -> Module:
    module, trainer = Module(), trainer_with(stop, folder, max_steps=max_steps, **settings)
    trainer.fit(module, loader(8), loader(1), ckpt_path=ckpt_path, weights_only=False)
    if save:
        trainer.save_checkpoint(folder / save)
    return module


def test_it_ends_at_the_step_and_says_so_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        module = fit(tmp_path, RepaEarlyStop(step=3), 6)
    assert module.active == [True] * 3 + [False] * 3
    assert (module.teacher.network, module.teacher.num_reads) == (None, 1)
    said = [text for text in caplog.messages if "REPA" in text]
    assert said == ["REPA is over: step 3, 6 images."]


@pytest.mark.parametrize(
    ("stop", "batches"),
    [
        (RepaEarlyStop(step=2), 4),
        (RepaEarlyStop(step=None, samples=6), 4),  # reached in the middle of a step
        (RepaEarlyStop(step=3, samples=8), 4),  # whichever comes first
        (RepaEarlyStop(step=1, samples=8), 2),
        (RepaEarlyStop(step=None), 8),
        (RepaEarlyStop(), 8),
        (RepaEarlyStop(step=0), 0),
        (RepaEarlyStop(samples=0), 0),
    ],
    ids=lambda value: value if isinstance(value, int) else f"{value.step} {value.samples}",
)
def test_it_ends_between_optimizer_steps_of_several_batches(tmp_path, stop, batches):
    module = fit(tmp_path, stop, 4, accumulate_grad_batches=2)
    assert module.active == [True] * batches + [False] * (8 - batches)
    assert module.teacher.num_reads == (batches > 0)


def test_it_ends_every_repa_loss_whatever_its_place(tmp_path):
    class Second(RepaLoss):
        name = "repa2"

    module = Module()
    second = Second(PatchMeans(), projector="conv")
    module.loss = TripleLoss(VelocityLoss(), repa=module.loss.terms["repa"], extra=[second])
    second.connect(module.network)
    trainer_with(RepaEarlyStop(step=2), tmp_path, max_steps=3).fit(module, loader(8))
    assert not any(module.loss.terms[name].active for name in ("repa", "repa2"))
    assert second.teacher.network is None


def test_a_run_resumed_after_the_end_never_reads_the_teacher(tmp_path):
    fit(tmp_path, RepaEarlyStop(step=2), 3, save="whole.ckpt")
    stop = RepaEarlyStop(step=2)
    module = fit(tmp_path, stop, 6, str(tmp_path / "whole.ckpt"), val_check_interval=1)
    assert module.active == [False] * 3
    assert module.teacher.num_reads == 0


def test_validate_after_the_end_never_reads_the_teacher(tmp_path):
    fit(tmp_path, RepaEarlyStop(step=2), 3, save="whole.ckpt")
    for stop, num_reads in ((RepaEarlyStop(step=2), 0), (RepaEarlyStop(step=4), 1)):
        module = Module()
        trainer_with(stop, tmp_path).validate(
            module, loader(8), ckpt_path=tmp_path / "whole.ckpt", weights_only=False, verbose=False
        )
        assert module.teacher.num_reads == num_reads


def test_a_run_resumed_with_a_later_end_goes_on(tmp_path):
    fit(tmp_path, RepaEarlyStop(step=2), 3, save="whole.ckpt")
    module = fit(tmp_path, RepaEarlyStop(step=5), 7, str(tmp_path / "whole.ckpt"))
    assert module.active == [True, True, False, False]


def test_images_are_counted_on_after_resuming(tmp_path):
    fit(tmp_path, RepaEarlyStop(None, samples=10), 3, save="whole.ckpt")
    module = fit(tmp_path, RepaEarlyStop(None, samples=10), 7, str(tmp_path / "whole.ckpt"))
    assert module.active == [True, True, False, False]


def test_the_projector_is_trained_saved_and_resumed(tmp_path):
    torch.manual_seed(0)
    start = Module().loss.state_dict()
    torch.manual_seed(0)
    trained = fit(tmp_path, RepaEarlyStop(step=2), 3, save="whole.ckpt").loss.state_dict()
    resumed = fit(tmp_path, RepaEarlyStop(step=2), 3, str(tmp_path / "whole.ckpt"))
    assert list(trained) == [f"terms.repa.projector.1.{part}" for part in ("weight", "bias")]
    for key, value in resumed.loss.state_dict().items():
        assert torch.equal(value, trained[key])
        assert not torch.equal(value, start[key])


def test_images_of_all_processes_count():
    stop, module = RepaEarlyStop(None, samples=8), Module()
    trainer = Mock(spec=Trainer, world_size=2, global_step=0)
    for step, seen in ((1, 4), (2, 8)):
        assert module.loss.terms["repa"].active
        trainer.global_step = step
        stop.on_train_batch_end(trainer, module, None, BATCHES[0], step)
        assert stop.state_dict() == {"samples": seen}
    assert not module.loss.terms["repa"].active


def test_without_repa_or_without_a_loss_it_does_nothing(tmp_path):
    module = Module(with_repa=False)
    trainer = trainer_with(RepaEarlyStop(step=1), tmp_path, max_steps=2)
    trainer.fit(module, loader(8), loader(1))
    assert trainer.global_step == 2
    module.loss = None
    RepaEarlyStop(step=0).setup(trainer, module, "predict")


@pytest.mark.parametrize("name", ["step", "samples"])
def test_negative_limits_are_refused(name):
    with pytest.raises(UserError, match=f"{name} must be at least 0, got -1"):
        RepaEarlyStop(**{name: -1})
