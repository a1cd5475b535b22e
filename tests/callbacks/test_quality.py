import re

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from pixelhdm.callbacks import quality_distance
from pixelhdm.callbacks.checkpoint import RunCheckpoint
from pixelhdm.callbacks.ema import EMA
from pixelhdm.callbacks.quality import Quality
from pixelhdm.callbacks.quality_distance import RealFeatures
from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.evaluation.distances import frechet_distance
from pixelhdm.evaluation.moments import Moments
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from pixelhdm.reporting.curves import read_curves
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.e2e.conftest import QUICK, differences, logged
from tests.e2e.life import fit
from tests.stubs import ColourFeatures, Numbers, perturb, randn, tiny_network

NUM, SIDE = 13, 4  # drawn images; pixels


class Losses(Callback):
    """Notes the loss of every batch."""

    def __init__(self):
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.seen.append(float(outputs["loss"]))


def run(folder, quality, steps=4, ckpt_path=None, accumulate=1, **sources):
    """A run of a few steps, with its module, trainer and losses."""
    module = PixelHDMModule(
        perturb(tiny_network()),
        lambda dim: perturb(ClassConditioner(dim, 10, 1)),
        EulerSampler(3),
        Guidance(2.0),
        loss=TripleLoss(velocity=VelocityLoss()),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    )
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        log_every_n_steps=3,
        logger=CSVLogger(folder, name="logs"),
        default_root_dir=folder,
        callbacks=[EMA(0.9), quality, RunCheckpoint(2, 0), losses],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sources = sources or {"train": Numbers(40), "val": Numbers(50, bad=(7, 8))}
    data = PixelHDMDataModule(SIDE, 4, Draws(0), **sources, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer, losses.seen


def on(**changes):
    """The callback, every two steps."""
    settings = {"num_images": NUM, "extractor": ColourFeatures(), "num_real": 30, "num_steps": 2}
    return Quality(2, **(settings | changes))


@pytest.mark.parametrize("rows", [2048, 3])
def test_kid_is_that_of_all_pairs(monkeypatch, rows):
    monkeypatch.setattr(quality_distance, "ROWS", rows)
    a, b = randn(11, 6), randn(11, 6, seed=5) + 0.3

    def mean(x, y, own):
        pairs = [(p, q) for i, p in enumerate(x) for j, q in enumerate(y) if not own or i != j]
        return np.mean([(np.dot(p, q) / 6 + 1) ** 3 for p, q in pairs])

    x, y = a[:4].double().numpy(), b.double().numpy()
    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert RealFeatures(b, "kid").distance(a[:4]) == pytest.approx(expected, rel=1e-9)


def test_training_is_the_same_to_the_bit(tmp_path):
    (*_, without), (*_, trainer, losses) = (
        run(tmp_path / "off", Quality(extractor=ColourFeatures())),
        run(tmp_path / "on", on()),
    )
    assert losses == without
    files = [tmp_path / name / "checkpoints/step_00000004.ckpt" for name in ("off", "on")]
    assert differences(*(torch.load(file, weights_only=True) for file in files)) == []
    assert not any("quality" in name for name in read_curves(tmp_path / "off", [0]))
    assert "quality/KID" in trainer.callback_metrics


@pytest.mark.parametrize("metric", ["kid", "fd"])
def test_score_is_that_of_the_averages_images_and_real_ones(tmp_path, metric):
    module, trainer, _ = run(tmp_path, on(metric=metric, seed=3))
    extractor, data = ColourFeatures(), trainer.datamodule
    classes = data.to_test().items
    items = [classes[n % 10]._replace(seed=3 + n, num_steps=2) for n in range(NUM)]
    drawn = [module.draw_batch(batch, "ema") for batch in DrawLoader(items, 100)]
    drawn = extractor(torch.cat(drawn)).pool
    chosen = np.random.default_rng(3).permutation(50)[: NUM + 30]
    good = [number for number in chosen if number not in (7, 8)]
    real = [data.sources["val"].load(number, 0, SIDE, SIDE).image for number in good]
    real = extractor(torch.from_numpy(np.stack(real))).pool

    def distance(a, b):
        if metric == "fd":
            return frechet_distance(Moments.of(a), Moments.of(b))
        return RealFeatures(b, "kid").distance(a)

    curves, name = read_curves(tmp_path, [0]), f"quality/{metric.upper()}"
    assert curves[name].steps.tolist() == [2, 4]
    assert curves[name].values[1] == pytest.approx(distance(drawn, real[NUM:]), rel=1e-6)
    floor = distance(real[:NUM], real[NUM:])
    assert curves[f"{name}_floor"].values == pytest.approx([floor] * 2, rel=1e-6)


def test_resumed_run_goes_on_with_the_same_scores(tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    run(whole, on(), 6)
    run(half, on(), 3)
    run(half, on(), 6, ckpt_path=half / "checkpoints/step_00000003.ckpt")
    curves = [read_curves(folder, starts) for folder, starts in ((whole, [0]), (half, [0, 3]))]
    (steps, values), (again, others) = (own["quality/KID"] for own in curves)
    assert steps.tolist() == again.tolist() == [2, 4, 6]
    assert values.tolist() == others.tolist()
    assert len(set(values.tolist())) == 3


def test_once_a_step_of_several_batches_and_of_training_images_without_others(tmp_path):
    run(tmp_path, on(num_real=4), 4, accumulate=2, train=Numbers(24))
    curves = read_curves(tmp_path, [0])
    assert curves["quality/KID"].steps.tolist() == [2, 4]
    assert "quality/KID_floor" not in curves  # 24 are fewer than twice 13


def test_costs_and_what_scores_are_read_by_are_told(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(tmp_path, on())
    start, cost = (line for line in caplog.messages if line.startswith("quality/KID"))
    assert "13 images against 28 of data.val by Colours, resize none" in start
    assert re.search(r"as many real images have -?[\d.e-]+\. Looking", start)
    assert re.search(r"quality/KID [-\d.e]+ at step 2\. It took [\d.]+ s, [\d.]+% of", cost)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 1}, "num_images must be at least 2, got 1"),
        ({"num_real": 1}, "num_real must be at least 2, got 1"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        on(**settings)


def test_unreadable_real_images(tmp_path):
    bad = Numbers(20, bad=tuple(range(20)))
    with pytest.raises(UserError, match="readable real images must be at least 2, got 0"):
        run(tmp_path, on(), train=Numbers(24), val=bad)


def test_sharded_weights_are_refused(tmp_path):
    trainer = Trainer(accelerator="cpu", strategy=ModelParallelStrategy(), logger=False)
    module = PixelHDMModule(
        tiny_network(), lambda dim: ClassConditioner(dim, 10, 1), EulerSampler(3), Guidance()
    )
    with pytest.raises(UserError, match="keep the weights whole for quality"):
        on().setup(trainer, module, "fit")
    Quality().setup(trainer, module, "fit")


def test_two_processes_score_like_one(tmp_path):
    quality = (
        "{every_n_steps: 2, num_images: 15, num_real: 30, metric: fd, num_steps: 1, extractor: "
    )
    flags = [*QUICK, "--trainer.max_steps=2", f"--quality={quality}tests.stubs.ColourFeatures}}"]
    shared = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4"]
    fit(*flags, "--trainer.default_root_dir=one", folder=tmp_path)
    fit(*flags, *shared, "--trainer.default_root_dir=two", folder=tmp_path, processes=2)
    for name in ("quality/FD", "quality/FD_floor"):
        one, two = (logged(tmp_path / folder, name) for folder in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4)
