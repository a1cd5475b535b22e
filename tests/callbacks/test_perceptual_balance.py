"""PerceptualBalance in runs of a tiny network, two images a batch."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from pixelhdm.callbacks import perceptual_balance
from pixelhdm.callbacks.perceptual_balance import PerceptualBalance, gradient_norms
from pixelhdm.data.draws import Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule, ignore
from pixelhdm.training.losses.loss import LossTerm
from pixelhdm.training.losses.perceptual import DinoPerceptualLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Numbers, Sized, perturb, tiny_network
from tests.tiny_dino import PatchMeans

HIGHEST = 15.0


class Second(DinoPerceptualLoss):
    name = "second"


class Measured(PixelHDMModule):
    """Computes the ratio of every batch by itself, and notes it with the losses' weights."""

    def __init__(self, *terms: LossTerm, t_min: float = 0.0):
        terms = terms or (
            DinoPerceptualLoss(PatchMeans(), 0.5, t_min),
            Second(PatchMeans(), 0.25, t_min, teacher_size=8),
        )
        super().__init__(
            perturb(tiny_network()),
            lambda dim: ClassConditioner(dim, 10, 1),
            EulerSampler(1),
            Guidance(),
            loss=TripleLoss(VelocityLoss(2.0), extra=list(terms)),
            optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-3),
        )
        self.ratios, self.seen = [], []

    def training_step(self, batch, batch_idx):
        values, _ = self.losses(batch, self.network, self.conditioner)
        norms = []
        for loss in (2 * values["velocity"], 0.5 * values["p_dino"] + 0.25 * values["second"]):
            weight = self.network.last_layer.weight
            (gradient,) = torch.autograd.grad(loss.mean(), weight, retain_graph=True)
            norms.append(float(gradient.square().sum().sqrt()))
        self.ratios.append(norms[0] / (norms[1] + 1e-4))
        total = super().training_step(batch, batch_idx)
        weights = [self.loss.terms[name].weight for name in ("p_dino", "second")]
        self.seen.append(weights)
        expected = sum(
            weight * values[name].mean()
            for weight, name in zip((2, *weights), ("velocity", "p_dino", "second"), strict=True)
        )
        torch.testing.assert_close(total, expected)
        return total


class Logged(Callback):
    """Notes what is logged."""

    def __init__(self):
        self.factors = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.factors.append(trainer.callback_metrics.get("train/perceptual_factor"))


def run(folder: Path, balance: PerceptualBalance, max_steps: int, module=None, **settings):
    """A run; its module, what was logged and its trainer."""
    module, logged = module or Measured(), Logged()
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        default_root_dir=folder,
        callbacks=[balance, logged],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    data = PixelHDMDataModule(2, 2, Draws(0), Numbers(32), seed=0, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, logged.factors, trainer


def expected_factors(ratios: list[float], due: set[int], highest: float) -> list[float]:
    """The factor after each step."""
    factor, factors = 1.0, []
    for step, ratio in enumerate(ratios):
        if step in due:
            factor = 0.6 * factor + 0.4 * min(ratio, highest)
        factors.append(factor)
    return factors


def test_the_factor_follows_the_ratio_of_the_gradients(tmp_path):
    balance = PerceptualBalance(1, every_n_steps=2, momentum=0.6, max_ratio=HIGHEST)
    module, logged, _ = run(tmp_path, balance, 7)
    assert module.ratios[3] < HIGHEST < module.ratios[1]
    factors = expected_factors(module.ratios, {1, 3, 5}, HIGHEST)
    assert logged == pytest.approx(factors, rel=1e-4)
    assert balance.factor == pytest.approx(factors[-1], rel=1e-4)
    used = [[0.5 * factor, 0.25 * factor] for factor in (1.0, *factors[:-1])]  # a step later
    torch.testing.assert_close(torch.tensor(module.seen), torch.tensor(used), rtol=1e-4, atol=0)
    assert [module.loss.terms[name].weight for name in ("p_dino", "second")] == [0.5, 0.25]
    assert module.on_losses is ignore


def test_it_measures_the_first_batch_of_a_step_of_several(tmp_path):
    balance = PerceptualBalance(1, every_n_steps=2, momentum=0.6)
    module, logged, _ = run(tmp_path, balance, 3, accumulate_grad_batches=2)
    factors = expected_factors(module.ratios[::2], {1}, 100)
    assert logged[1::2] == pytest.approx(factors, rel=1e-4)
    assert [weights[0] for weights in module.seen] == pytest.approx(
        [0.5 * factor for factor in (1.0, *factors[:-1]) for _ in range(2)], rel=1e-4
    )


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path):
    settings = {"start_step": 1, "every_n_steps": 2}
    whole, part, rest = (PerceptualBalance(**settings) for _ in range(3))
    first, *_ = run(tmp_path, whole, 4)
    *_, trainer = run(tmp_path, part, 3)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    again, logged, _ = run(tmp_path, rest, 4, ckpt_path=tmp_path / "part.ckpt")
    assert part.factor > 1
    assert rest.state_dict() == whole.state_dict()
    assert logged[0] == pytest.approx(whole.momentum * part.factor + 0.2 * first.ratios[3])
    assert again.seen == first.seen[3:]
    assert all(map(torch.equal, first.parameters(), again.parameters()))


def test_by_default_it_is_off(tmp_path):
    plain, logged, _ = run(tmp_path, PerceptualBalance(), 2)
    assert logged == [None] * 2
    assert plain.seen == [[0.5, 0.25]] * 2
    later, *_ = run(tmp_path, PerceptualBalance(2), 2)
    assert all(map(torch.equal, plain.parameters(), later.parameters()))


def test_steps_without_an_image_that_counts_leave_the_factor_alone(tmp_path):
    balance = PerceptualBalance(0, every_n_steps=1)
    _, logged, _ = run(tmp_path, balance, 2, Measured(t_min=1.0))
    assert logged == [1.0, 1.0]


def test_a_loss_that_is_not_finite_leaves_the_factor_alone():
    balance, module = PerceptualBalance(0), Measured()
    balance.setup(Trainer(logger=False, accelerator="cpu"), module, "fit")
    balance.is_due = True
    norm = module.network.last_layer.weight.square().sum()
    means = {"velocity": norm, "p_dino": torch.nan * norm, "second": norm}
    module.on_losses(means)
    assert balance.factor == 1
    module.on_losses(means | {"p_dino": norm})
    assert balance.factor == pytest.approx(0.8 + 0.2 * 2 / 0.75, rel=1e-3)


def test_gradients_of_all_processes_are_averaged_before_their_norms(monkeypatch):
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    other = torch.tensor([[[1.0, 0.0]], [[-3.0, -4.0]]])
    monkeypatch.setattr(perceptual_balance, "are_several", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda sums: sums.add_(other))
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    norms = gradient_norms([weight.sum(), weight.square().sum() / 2], weight, 2.0**16)
    assert norms == pytest.approx([(1 + 0.5**2) ** 0.5, 0.0])


@pytest.mark.parametrize(
    ("module", "settings", "words"),
    [
        (lambda: Measured(DinoLess()), {}, "velocity and a perceptual loss.* got velocity, less"),
        (lambda: blind(Measured()), {}, "must tell its last layer to balance losses, got Sized"),
        (Measured, {"strategy": ModelParallelStrategy()}, "whole for perceptual_balance, got Mod"),
    ],
)
def test_what_cannot_be_balanced_is_refused(module, settings, words):
    trainer = Trainer(logger=False, accelerator="cpu", **settings)
    with pytest.raises(UserError, match=words):
        PerceptualBalance(0).setup(trainer, module(), "fit")


class DinoLess(VelocityLoss):
    name = "less"


def blind(module: Measured) -> Measured:
    """Without a network that tells its last layer."""
    module.network = Sized(8, 4)
    return module


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_step": -1}, "start_step must be at least 0, got -1"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"momentum": 1.5}, "momentum must lie in 0 … 1, got 1.5"),
        ({"max_ratio": 0.0}, "max_ratio must be above 0, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        PerceptualBalance(**settings)
