"""ZClip: its rule on bare norms, then in runs whose gradients are chosen."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision

from pixelhdm.callbacks.checkpoint import RunCheckpoint
from pixelhdm.callbacks.non_finite import SkipNonFinite
from pixelhdm.callbacks.zclip import NormStatistics, ZClip
from pixelhdm.data.draws import Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Numbers, tiny_network

FIRST = [1.0, 1.2, 0.8, 1.1, 0.9]
MEAN, STD = 1.0, math.sqrt(0.02)


def warm(scale: float = 1.0) -> NormStatistics:
    norms = NormStatistics(0.97, 2.5, len(FIRST))
    for norm in FIRST:
        norms.add(scale * norm)
    return norms


def test_warm_up_takes_mean_and_population_variance():
    norms = NormStatistics(0.97, 2.5, len(FIRST))
    for norm in FIRST:
        assert norms.mean is None
        assert norms.score(norm) is None
        assert norms.cut(1e9) == 1e9
        norms.add(norm)
    assert norms.mean == pytest.approx(MEAN, rel=1e-12)
    assert norms.variance == pytest.approx(STD**2, rel=1e-12)
    assert norms.threshold() == pytest.approx(MEAN + 2.5 * STD, rel=1e-5)


def test_spike_is_cut_the_more_the_higher_it_is():
    """To m + Z s just above the threshold, at a score of 2 Z to m + Z s / 2, then down to m."""
    norms = warm()
    below, above = norms.threshold() * (1 - 1e-9), norms.threshold() * (1 + 1e-9)
    assert norms.cut(0.0) == 0.0
    assert norms.cut(below) == below
    assert norms.cut(above) == pytest.approx(MEAN + 2.5 * STD, rel=1e-5)
    assert norms.cut(MEAN + 5 * STD) == pytest.approx(MEAN + 1.25 * STD, rel=1e-5)
    left = [norms.cut(MEAN + z * STD) for z in (2.6, 3.0, 5.0, 10.0, 1e3, 1e9)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(MEAN, rel=1e-6)


@pytest.mark.parametrize(("norm", "left"), [(0.5, 0.5), (50.0, MEAN + 2.5**2 / 346.48 * STD)])
def test_statistics_follow_what_is_left_of_the_norm_with_the_new_mean(norm, left):
    norms = warm()
    norms.add(norm)
    mean = 0.97 * MEAN + 0.03 * left
    assert norms.mean == pytest.approx(mean, rel=1e-6)
    assert norms.variance == pytest.approx(0.97 * STD**2 + 0.03 * (left - mean) ** 2, rel=1e-5)


@given(st.lists(st.floats(0, 1e6), min_size=20, max_size=40), st.floats(1.0, 4.0))
def test_no_more_is_left_of_a_norm_than_the_threshold(values, z_threshold):
    norms = NormStatistics(0.9, z_threshold, 5)
    for value in values:
        left = norms.cut(value)
        assert left <= min(value, norms.threshold())
        norms.add(value)
    assert 0 <= norms.mean <= max(values)


# In a run -----------------------------------------------------------------------------------------


class Chosen(PixelHDMModule):
    """A module whose gradient has norm sizes[n] in batch n, spread evenly over all weights; for a
    negative size the loss is NaN and the gradient is not.
    """

    def __init__(self, sizes: list[float], optimizer: type, **settings: object):
        super().__init__(
            tiny_network(),
            lambda dim: ClassConditioner(dim, 10, 1),
            EulerSampler(1),
            Guidance(),
            loss=TripleLoss(velocity=VelocityLoss()),
            optimizer=lambda groups: optimizer(groups, lr=1e-4, **settings),
        )
        self.sizes = sizes

    def training_step(self, batch, batch_idx):
        weights = torch.cat([weight.flatten() for weight in self.parameters()])
        size = self.sizes[self.trainer.fit_loop.total_batch_idx]
        gradient = torch.full_like(weights, size / math.sqrt(len(weights)))
        loss = torch.nn.functional.linear(weights[None], gradient[None]).float().sum()
        return loss + math.nan if size < 0 else loss


class Watch(Callback):
    """Notes the norm that every step steps with, and what it logs."""

    def __init__(self):
        self.norms, self.logged, self.skipped = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        left = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(left)))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.skipped.append(pl_module.step_skipped)
        logged = trainer._logger_connector.metrics["log"]  # trainer.logged_metrics forgets nothing
        self.logged.append({key: float(value) for key, value in logged.items()})


def run(folder, sizes, *callbacks, ckpt_path=None, adam=None, **flags):
    """A run of one image a batch; the trained module, what was seen and the trainer."""
    optimizer, settings = (torch.optim.SGD, {}) if adam is None else (torch.optim.AdamW, adam)
    module, watch = Chosen(sizes, optimizer, **settings), Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=folder,
        callbacks=[*callbacks, watch],
        enable_checkpointing=any(isinstance(part, RunCheckpoint) for part in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **flags,
    )
    data = PixelHDMDataModule(2, 1, Draws(0), Numbers(len(sizes)), seed=0, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, watch, trainer


def equal(one: PixelHDMModule, two: PixelHDMModule) -> bool:
    return all(map(torch.equal, one.parameters(), two.parameters()))


def new_zclip(**settings: object) -> ZClip:
    return ZClip(warmup_steps=len(FIRST), **settings)


SIZES = [*FIRST, 1.04, 40.0, 1.06]


def test_a_spikes_gradient_is_scaled_and_all_else_is_left_alone(tmp_path):
    _, watch, _ = run(tmp_path, SIZES, new_zclip())
    norms = warm()
    norms.add(1.04)
    expected = [*SIZES[:6], norms.cut(40.0), 1.06]
    assert watch.norms == pytest.approx(expected, rel=1e-5)
    assert watch.logged[6]["train/grad_z"] == pytest.approx(norms.score(40.0), rel=1e-4)
    assert watch.logged[6]["train/clip_threshold"] == pytest.approx(norms.threshold(), rel=1e-4)
    assert not {"train/grad_z", "train/clip_threshold"} & set(watch.logged[4])
    shares = [seen["train/clipped_share"] for seen in watch.logged]
    assert shares == pytest.approx([0] * 6 + [1 / 7, 1 / 8])


def test_hard_bound_holds_at_every_step_and_stays_out_of_the_statistics(tmp_path):
    free, bound = new_zclip(), new_zclip(max_norm=1.05)
    run(tmp_path, SIZES, free)
    _, watch, _ = run(tmp_path, SIZES, bound)
    assert max(watch.norms) <= 1.05
    assert watch.norms[1:3] == pytest.approx([1.05, 0.8], rel=1e-5)
    assert watch.logged[0]["train/clip_threshold"] == pytest.approx(1.05)
    assert vars(bound.norms) == vars(free.norms)
    assert (bound.clipped, free.clipped) == (4, 1)


@pytest.mark.parametrize(
    ("bad", "alone"),
    [(math.nan, True), (math.inf, True), (math.nan, False), (math.inf, False), (-1.0, False)],
)
def test_skipped_steps_leave_no_trace(tmp_path, bad, alone):
    """Skipped by ZClip alone or by SkipNonFinite before it, which sees the loss too."""
    clean, zclip = new_zclip(), new_zclip()
    expected, *_ = run(tmp_path, SIZES, clean)
    sizes = [bad, *SIZES[:3], bad, *SIZES[3:], bad]
    module, watch, _ = run(tmp_path, sizes, *([] if alone else [SkipNonFinite()]), zclip)
    assert watch.skipped == [size is bad for size in sizes]
    of_step = {"train/grad_z", "train/clip_threshold"}  # no step has those of another
    logged = [bool(of_step & seen.keys()) for seen in watch.logged]
    warm = [sizes.index(FIRST[-1]) < number for number in range(len(sizes))]
    assert logged == [
        is_warm and not skipped for is_warm, skipped in zip(warm, watch.skipped, strict=True)
    ]
    assert equal(module, expected)
    assert zclip.state_dict() == clean.state_dict()


def test_an_accumulated_step_has_one_norm(tmp_path):
    zclip = ZClip(warmup_steps=2)
    run(tmp_path, [1.0, 3.0, 2.0, 4.0], zclip, accumulate_grad_batches=2)
    assert zclip.steps == 2
    assert zclip.norms.mean == pytest.approx(2.5)


def test_a_resumed_run_goes_on_bit_by_bit(tmp_path):
    """From within the warm-up, and from after it."""
    whole = new_zclip()
    expected, *_ = run(tmp_path, SIZES, RunCheckpoint(every_n_steps=3, keep=0), whole)
    for step in (3, 6):
        zclip = new_zclip()
        file = tmp_path / "checkpoints" / f"step_{step:08d}.ckpt"
        module, watch, _ = run(tmp_path / "resumed", SIZES, zclip, ckpt_path=file)
        assert len(watch.norms) == len(SIZES) - step
        assert equal(module, expected)
        assert zclip.state_dict() == whole.state_dict()


@pytest.mark.parametrize("fused", [True, False])
def test_overflows_of_a_float16_run_leave_no_trace(tmp_path, fused):
    """Three overflows bring the scale to that of a run without any."""

    def half(sizes: list[float], scale: float, *callbacks: Callback):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
        return run(tmp_path, sizes, *callbacks, adam={"fused": fused}, plugins=plugins)

    clean, zclip, skip = new_zclip(), new_zclip(), SkipNonFinite(max_in_a_row=1)
    expected, *_ = half(SIZES, 2.0**10, SkipNonFinite(), clean)
    module, watch, trainer = half([1e4] * 3 + SIZES, 2.0**13, skip, zclip)
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**10
    assert watch.skipped == [True] * 3 + [False] * len(SIZES)
    assert (skip.overflows, skip.skipped) == (3, 0)
    assert equal(module, expected)
    assert zclip.state_dict() == clean.state_dict()
    assert zclip.norms.mean == pytest.approx(1.0, rel=0.05)  # of unscaled gradients


def test_only_the_gradients_that_the_optimizer_uses_count():
    module, zclip = Chosen([], torch.optim.SGD), ZClip(max_norm=1.0)
    own, foreign = list(module.network.parameters()), list(module.conditioner.parameters())
    for weight in own + foreign:
        weight.grad = torch.full_like(weight, 2.0)
    zclip.on_before_optimizer_step(Trainer(logger=False), module, torch.optim.SGD(own, lr=1.0))
    left = torch.nn.utils.get_total_norm([weight.grad for weight in own])
    assert left == pytest.approx(1.0, rel=1e-5)
    assert all((weight.grad == 2.0).all() for weight in foreign)


def test_off_and_beside_the_trainers_own_clipping(tmp_path):
    off = ZClip(z_threshold=None, max_norm=0.1)
    _, watch, _ = run(tmp_path, SIZES, off, gradient_clip_val=100.0)
    assert watch.norms == pytest.approx(SIZES, rel=1e-5)
    assert off.state_dict() == ZClip().state_dict()
    with pytest.raises(UserError, match=r"gradient_clip_val must be empty beside ZClip, got 2\.0"):
        run(tmp_path, SIZES, ZClip(), gradient_clip_val=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"z_threshold": 0.0}, "z_threshold must be above 0, got 0.0"),
        ({"max_norm": -1.0}, "max_norm must be above 0, got -1.0"),
        ({"alpha": 1.0}, "alpha must lie in 0 … 1"),
        ({"warmup_steps": 1}, "warmup_steps must be at least 2, got 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        ZClip(**settings)
