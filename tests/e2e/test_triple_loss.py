"""Velocity, frequency and REPA with a DINOv3 in its real format, trained together."""

from pathlib import Path

import pytest
import torch

from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.triple import TripleLoss
from tests.e2e.conftest import QUICK, QUICKSTART, checkpoint, logged, with_repa
from tests.e2e.life import fit
from tests.tiny_dino import save_dinov3

TERMS = ("velocity", "frequency", "repa", "total")
BINS = [f"{i / 10:.1f}-{(i + 1) / 10:.1f}" for i in range(10)]


def test_every_term_falls_in_training_and_on_held_out_images():
    torch.manual_seed(0)
    fit(
        *QUICKSTART, with_repa(save_dinov3(Path("dinov3")), "mlp"), "--ema.decay=0.95",
        "--data.batch_size=32", "--trainer.max_steps=80", "--trainer.val_check_interval=20",
        "--trainer.limit_val_batches=1.0", "--model.optimizer.lr=0.01",
        "--checkpoint.every_n_steps=0", "--sample_images.every_n_steps=0",
    )  # fmt: skip
    held_out = (FlowMatching().even_time(torch.arange(180)) * 10).long().bincount() / 180
    for term in TERMS:
        values = logged("runs/quickstart", f"train/{term}")
        assert len(values) == 80
        assert sum(values[-8:]) < 0.6 * sum(values[:8]), term
        for stage in ("val", "val_raw"):
            means = logged("runs/quickstart", f"{stage}/{term}")
            assert len(means) == 4
            assert means[-1] < 0.85 * means[0], (stage, term)
            bins = [logged("runs/quickstart", f"{stage}_t/{term}/{name}")[-1] for name in BINS]
            assert sum(bins * held_out.numpy()) == pytest.approx(means[-1], rel=1e-4)
    assert logged("runs/quickstart", "val/total") != logged("runs/quickstart", "val_raw/total")


def test_mixed_precision_keeps_losses_weights_and_average_in_float32(run, monkeypatch):
    forward, returned = TripleLoss.forward, set()

    def spy(self: TripleLoss, prediction, sample):
        values = forward(self, prediction, sample)
        returned.update(value.dtype for value in values.values())
        return values

    monkeypatch.setattr(TripleLoss, "forward", spy)
    flags = [*QUICK, with_repa(save_dinov3(Path("dinov3"))), "--ema.sigma_rel=[0.1]"]
    flags += ["--ema.snapshot_every_n_steps=4", "--model.optimizer=MuonAdamW"]
    for precision in ("32-true", "bf16-mixed"):
        folder = f"--trainer.default_root_dir={precision}"
        run("fit", *flags, folder, f"--trainer.precision={precision}")
    assert returned == {torch.float32}
    exact, mixed = (logged(folder, "train/total") for folder in ("32-true", "bf16-mixed"))
    assert mixed == pytest.approx(exact, rel=0.005)
    assert mixed != exact
    stored = checkpoint("bf16-mixed", 8)
    assert sum(key.startswith(("ema.", "profiles.0_1.")) for key in stored["state_dict"]) > 100
    states = stored["optimizer_states"][0]["state"].values()
    tensors = [*stored["state_dict"].values(), *(v for state in states for v in state.values())]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in tensors)
