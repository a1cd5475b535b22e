from pathlib import Path

import pytest
import torch

from pixelhdm.checkpoints import AtomicCheckpointIO, choose_weights, read_checkpoint, step_of
from pixelhdm.errors import UserError
from pixelhdm.reconstruct import reconstruct_ema
from pixelhdm.snapshots import write_snapshot
from pixelhdm.sweeping.averages import Averaged, averages_of
from pixelhdm.training.power_ema import Profile
from tests.stubs import randn

STEP = 40


def write_run(folder: Path, has_ema: bool = True) -> Path:
    """A run with one parameter, its average and its snapshots; its checkpoint."""
    raw = {"network.a": randn(3, 2)}
    state = raw | {"profiles.0_05.network.a": randn(3, 2, seed=5)}
    state |= {"ema.network.a": randn(3, 2, seed=6)} if has_ema else {}
    for step in range(10, STEP + 1, 10):
        for sigma in (0.05, 0.1):
            write_snapshot(folder, Profile(sigma, step), {"network.a": randn(3, 2).half() * step})
    parts = {"loops": {}, "callbacks": {}, "optimizer_states": [{}], "training": {}}
    parts |= {"global_step": STEP, "pytorch-lightning_version": "2.6.0"}
    file = folder / f"checkpoints/step_{STEP:08d}.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, **parts}, file)
    return file


def weights(found: Averaged) -> torch.Tensor:
    """What is drawn with."""
    state = read_checkpoint(found.file)["state_dict"]
    return choose_weights(state, found.weights, found.file)["network.a"]


def test_each_average_is_the_one_it_says(tmp_path):
    file = write_run(tmp_path / "run")
    found = averages_of(["run", "raw", "0.05", "0.08"], file, tmp_path / "sweep", True)
    assert torch.equal(weights(found["run"]), randn(3, 2, seed=6))
    assert torch.equal(weights(found["raw"]), randn(3, 2))
    assert torch.equal(weights(found["0.05"]), randn(3, 2, seed=5))  # kept, not from snapshots
    reconstruct_ema(str(tmp_path / "run"), 0.08, out=str(tmp_path / "own.ckpt"))
    expected = weights(Averaged(tmp_path / "own.ckpt", "ema"))
    assert torch.equal(weights(found["0.08"]), expected)
    assert {step_of(own.file) for own in found.values()} == {STEP}


def test_an_average_is_made_once_for_each_checkpoint(tmp_path):
    file = write_run(tmp_path / "run")
    (first,) = averages_of(["0.05"], file, tmp_path, True).values()
    stamp = first.file.stat().st_mtime_ns
    assert averages_of(["0.05"], file, tmp_path, True)["0.05"] == first
    assert first.file.stat().st_mtime_ns == stamp
    AtomicCheckpointIO().save_checkpoint(
        read_checkpoint(file) | {"state_dict": {"profiles.0_05.network.a": randn(3, 2)}}, file
    )
    assert averages_of(["0.05"], file, tmp_path, True)["0.05"].file != first.file


def test_averages_that_cannot_be_made(tmp_path):
    file = write_run(tmp_path / "run", has_ema=False)
    with pytest.raises(UserError, match=r"hold an EMA average, got none\. Use --sweep\.emas"):
        averages_of(["run"], file, tmp_path, True)
    with pytest.raises(UserError, match="sigma_rel must be within reach of the run's snapshots"):
        averages_of(["0.001"], file, tmp_path, True)
    for snapshot in (tmp_path / "run/ema_snapshots").glob("*step00000040*"):
        snapshot.unlink()
    words = r"got 0\.08 for step_00000040\.ckpt, where .* has those of steps 10 … 30\. Train with"
    with pytest.raises(UserError, match=words):
        averages_of(["0.08"], file, tmp_path, True)
    for snapshot in (tmp_path / "run/ema_snapshots").iterdir():
        snapshot.unlink()
    with pytest.raises(UserError, match=r"where .* has none"):
        averages_of(["0.08"], file, tmp_path, True)
