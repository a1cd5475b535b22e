from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from pixelhdm.callbacks.ema import EMA
from pixelhdm.checkpoints import profile_name
from pixelhdm.errors import UserError
from pixelhdm.module import PixelHDMModule
from pixelhdm.snapshots import read_snapshot, snapshots_of, write_snapshot
from pixelhdm.training.power_ema import Profile, exponent
from tests.callbacks.test_ema import new_module

SIGMAS = [0.05, 0.1]


class Clock(Trainer):
    """The part of a trainer that the callback reads."""

    global_step = 0
    default_root_dir = ""
    is_global_zero = True
    fast_dev_run = False

    def __init__(self, folder: Path, step: int):
        self.default_root_dir, self.global_step = str(folder), step


class Run:
    """A run that sets the weights itself, goes on from another one, and notes what it set."""

    def __init__(self, folder: Path, every_n_steps: int = 100, before: "Run | None" = None):
        torch.manual_seed(0 if before is None else 1)
        step = 0 if before is None else before.trainer.global_step
        self.ema, self.module = EMA(0.9, SIGMAS, every_n_steps), new_module()
        self.trainer = Clock(folder, step)
        self.ema.setup(self.trainer, self.module, "fit")
        self.weights: dict[int, float] = {}
        if before is not None:
            self.weights = dict(before.weights)
            self.module.load_state_dict(before.module.state_dict())
            self.ema.load_state_dict(before.ema.state_dict())
        self.ema.on_train_start(self.trainer, self.module)

    def steps(self, *weights: float | None) -> None:
        """Optimizer steps of two batches that set all weights; None is a skipped one."""
        for weight in weights:
            self.ema.on_train_batch_end(self.trainer, self.module, None, None, 0)
            self.trainer.global_step += 1
            self.module.step_skipped = weight is None
            if weight is not None:
                self.weights[self.trainer.global_step] = weight
                with torch.no_grad():
                    for part in (self.module.network, self.module.conditioner):
                        for parameter in part.parameters():
                            parameter.fill_(weight)
            self.ema.on_train_batch_end(self.trainer, self.module, None, None, 1)

    def end(self) -> None:
        self.ema.on_train_end(self.trainer, self.module)

    def closed_form(self, sigma_rel: float) -> float:
        """sum_n weight_n (t_n^(g + 1) - t_(n - 1)^(g + 1)) / t^(g + 1), t_n the steps that were
        not skipped.
        """
        power, last = exponent(sigma_rel) + 1, max(self.weights)
        starts = [0, *self.weights]
        return sum(
            weight * ((step / last) ** power - (start / last) ** power)
            for start, (step, weight) in zip(starts, self.weights.items(), strict=False)
        )


def profile(module: PixelHDMModule, sigma_rel: float) -> dict[str, torch.Tensor]:
    return module.profiles[profile_name(sigma_rel)].state_dict()


@pytest.mark.parametrize("weights", [[1.0, -2.0, 0.5, 3.0, 0.25], [None, 1.0, 2.0, None, -3.0]])
def test_profiles_are_their_closed_form(tmp_path, weights):
    run = Run(tmp_path)
    run.steps(*weights, *weights)
    for sigma in SIGMAS:
        expected = run.closed_form(sigma)
        for value in profile(run.module, sigma).values():
            torch.testing.assert_close(value, torch.full_like(value, expected), rtol=2e-6, atol=0)


def test_a_skipped_step_changes_no_average(tmp_path):
    run = Run(tmp_path)
    run.steps(1.0, 2.0)
    before = {key: value.clone() for key, value in run.module.state_dict().items()}
    run.steps(None)
    assert all(torch.equal(value, before[key]) for key, value in run.module.state_dict().items())


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_profiles_survive_resume_to_the_bit(tmp_path, stop):
    """Also right after a skipped step, the third one."""
    weights = [1.0, -2.0, None, 3.0, 0.25, 4.0]
    whole, first = Run(tmp_path), Run(tmp_path)
    whole.steps(*weights)
    first.steps(*weights[:stop])
    resumed = Run(tmp_path, before=first)
    resumed.steps(*weights[stop:])
    state = resumed.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.module.state_dict().items())


def test_profiles_are_float32_beside_bfloat16_weights_and_not_trained(tmp_path):
    run = Run(tmp_path)
    run.module.network.bfloat16()
    run.steps(1.0, 2.0, 3.0)
    values = list(run.module.profiles.parameters())
    assert len(values) == 2 * len(list(run.module.ema.parameters()))
    assert {value.dtype for value in values} == {torch.float32}
    assert not any(value.requires_grad for value in values)
    torch.testing.assert_close(
        values[0], torch.full_like(values[0], run.closed_form(0.05)), rtol=2e-6, atol=0
    )


def test_without_sigma_rel_nothing_is_added(tmp_path):
    ema, module, trainer = EMA(0.9), new_module(), Clock(tmp_path, 0)
    ema.setup(trainer, module, "fit")
    ema.on_train_start(trainer, module)
    trainer.global_step = 1
    ema.on_train_batch_end(trainer, module, None, None, 0)
    ema.on_train_end(trainer, module)
    assert {key.split(".")[0] for key in module.state_dict()} == {"network", "conditioner", "ema"}
    assert ema.state_dict() == {}
    assert list(tmp_path.iterdir()) == []


def steps_stored(folder: Path) -> list[int]:
    found = list(snapshots_of(folder).values())
    assert [p.sigma_rel for p in found] == SIGMAS * (len(found) // 2)
    return [p.step for p in found[::2]]


def test_snapshots_hold_the_profiles_when_due_and_at_the_end(tmp_path):
    run = Run(tmp_path, every_n_steps=2)
    run.steps(1.0, 2.0)
    now = {sigma: {k: v.clone() for k, v in profile(run.module, sigma).items()} for sigma in SIGMAS}
    run.steps(3.0, None, 5.0)  # the one due at 4 is skipped
    run.end()
    assert steps_stored(tmp_path) == [2, 5]
    for path, stored in list(snapshots_of(tmp_path).items())[:2]:
        state = read_snapshot(path)
        assert state.keys() == now[stored.sigma_rel].keys()
        assert all(
            torch.equal(state[key], value.half()) for key, value in now[stored.sigma_rel].items()
        )
    names = sorted(file.name for file in (tmp_path / "ema_snapshots").iterdir())
    assert names[0] == "sigma0.05_step00000002.safetensors"
    assert len(names) == 4


def test_the_last_snapshot_bears_the_last_step_that_was_averaged(tmp_path):
    run = Run(tmp_path, every_n_steps=2)
    run.steps(1.0, 2.0, 3.0, None)
    run.end()
    assert steps_stored(tmp_path) == [2, 3]


def test_an_end_on_a_due_step_writes_once(tmp_path):
    run = Run(tmp_path, every_n_steps=2)
    run.steps(1.0, 2.0)
    for file in snapshots_of(tmp_path):
        file.unlink()
    run.end()
    assert steps_stored(tmp_path) == []


def test_a_resumed_run_leaves_no_snapshot_of_a_longer_course(tmp_path):
    run = Run(tmp_path, every_n_steps=2)
    run.steps(1.0, 2.0, 3.0)
    saved = Run(tmp_path / "other", before=run)  # as a checkpoint of step 3 would be
    run.steps(4.0, 5.0)
    run.end()
    assert steps_stored(tmp_path) == [2, 4, 5]
    leftover = tmp_path / "ema_snapshots/.sigma0.05_step00000006.safetensors.12.part"
    leftover.touch()
    resumed = Run(tmp_path, every_n_steps=2, before=saved)
    assert steps_stored(tmp_path) == [2]
    assert not leftover.exists()
    resumed.steps(9.0)
    assert steps_stored(tmp_path) == [2, 4]


def test_a_trial_run_of_lightning_touches_no_file(tmp_path, monkeypatch):
    write_snapshot(tmp_path, Profile(0.05, 7), {"a": torch.ones(1)})
    monkeypatch.setattr(Clock, "fast_dev_run", True)
    run = Run(tmp_path, every_n_steps=1)
    run.steps(1.0)
    run.end()
    assert [p.step for p in snapshots_of(tmp_path).values()] == [7]


@pytest.mark.parametrize(
    ("sigma_rel", "every", "words"),
    [
        ([0.05, 0.1], 0, r"must be given together, got \[0\.05, 0\.1\] and 0\. Snapshots"),
        (None, 100, "must be given together, got none and 100"),
        ([], 100, "must be given together, got none and 100"),
        ([0.05, 0.05], 100, "must differ from each other"),
        ([0.05, 0.4], 100, r"sigma_rel must be above 0 and at most 0\.2887.*got 0\.4"),
        ([0.05], -1, "snapshot_every_n_steps must be at least 0, got -1"),
    ],
)
def test_wrong_settings(sigma_rel, every, words):
    with pytest.raises(UserError, match=words):
        EMA(0.9, sigma_rel, every)
