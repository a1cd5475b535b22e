"""SkipNonFinite in a real run on a few images, where chosen steps have a loss that is no number."""

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision

from pixelhdm.callbacks.checkpoint import RunCheckpoint
from pixelhdm.callbacks.ema import EMA
from pixelhdm.callbacks.non_finite import FILE, SkipNonFinite
from pixelhdm.data.draws import Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.files import append_once
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Numbers, perturb, tiny_network


def nan(loss):
    return loss * float("nan")


def infinite(loss):
    return loss * float("inf")


def torn(loss):
    """A finite loss whose gradient is NaN."""
    return loss + (0 * loss).sqrt()


class BadAt(VelocityLoss):
    """The velocity loss, spoilt in the batches numbered in `bad`."""

    def __init__(self, bad: set[int], spoil: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.bad, self.spoil, self.batch = bad, spoil, -1

    def forward(self, *arguments):
        self.batch += 1
        loss = super().forward(*arguments)
        return self.spoil(loss) if self.batch in self.bad else loss


def run(folder, bad: set[int], max_in_a_row: int = 5, spoil=nan, ckpt_path=None, **flags):
    """Six batches of four images; the weights after every batch."""
    seen = []

    class Watch(EMA):
        def on_train_batch_end(self, trainer, pl_module, *arguments):
            super().on_train_batch_end(trainer, pl_module, *arguments)
            seen.append({key: part.clone() for key, part in pl_module.state_dict().items()})

    module = PixelHDMModule(
        perturb(tiny_network()),
        lambda dim: ClassConditioner(dim, 10, 1),
        EulerSampler(1),
        Guidance(),
        loss=TripleLoss(velocity=BadAt(bad, spoil)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    )
    data = PixelHDMDataModule(2, 4, Draws(0), Numbers(22), seed=0, num_workers=0)
    skip = SkipNonFinite(max_in_a_row)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=folder,
        callbacks=[Watch(0.5), skip, RunCheckpoint(every_n_steps=4, keep=0)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **flags,
    )
    error = None
    try:
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    except UserError as raised:
        error = raised
    records = folder / FILE
    lines = records.read_text().splitlines() if records.exists() else []
    return seen, skip, [json.loads(line) for line in lines], error


def changed(before: dict, after: dict, prefix: str) -> bool:
    keys = [key for key in before if key.startswith("ema.") == (prefix == "ema")]
    return any(not torch.equal(before[key], after[key]) for key in keys)


@pytest.mark.parametrize("spoil", [nan, infinite, torn])
def test_bad_steps_leave_the_weights_alone_and_are_recorded(tmp_path, spoil):
    seen, skip, records, error = run(tmp_path, {2, 4}, spoil=spoil)
    assert error is None
    moved = [changed(a, b, "raw") for a, b in pairwise(seen)]
    assert moved == [True, False, True, False, True]
    assert all(torch.isfinite(value).all() for value in seen[-1].values())
    assert (skip.skipped, skip.in_a_row) == (2, 0)
    assert [record["step"] for record in records] == [2, 4]
    assert [len(record["samples"]) for record in records] == [4, 4]


def test_bad_steps_leave_the_average_alone(tmp_path):
    seen, *_ = run(tmp_path, {2, 4})
    moved = [changed(a, b, "ema") for a, b in pairwise(seen)]
    assert moved == [True, False, True, False, True]


def test_recorded_samples_are_those_of_the_step_without_padding(tmp_path):
    _, _, records, _ = run(tmp_path, set(range(6)), max_in_a_row=10)
    samples = [number for record in records for number in record["samples"]]
    assert sorted(samples) == list(range(22))


def test_one_bad_batch_spoils_the_whole_accumulated_step(tmp_path):
    seen, skip, records, _ = run(tmp_path, {2}, accumulate_grad_batches=2)
    moved = [changed(a, b, "raw") for a, b in pairwise(seen)]
    assert moved == [True, False, False, False, True]
    assert [len(record["samples"]) for record in records] == [8]
    assert skip.skipped == 1


def test_too_many_in_a_row_end_the_run(tmp_path):
    seen, skip, records, error = run(tmp_path, {0, 2, 3, 4, 5}, max_in_a_row=3)
    assert "got NaN or infinity in 3 steps in a row" in str(error)
    assert len(records) == 4
    assert len(seen) == 4
    again = SkipNonFinite(3)
    again.load_state_dict(skip.state_dict())
    assert (again.skipped, again.in_a_row) == (4, 3)


def test_wrong_limit():
    with pytest.raises(UserError, match="max_in_a_row must be at least 1, got 0"):
        SkipNonFinite(0)


# float16 ------------------------------------------------------------------------------------------


def float16(init_scale: float, **settings: float) -> MixedPrecision:
    """What --trainer.precision 16-mixed is; Lightning refuses that flag on a CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale, **settings))


def test_overflows_are_no_faults_and_a_resumed_run_keeps_the_scale(tmp_path):
    """Scales 2^40 and 2^26 overflow, 2^12 does not."""
    half = float16(2.0**40, backoff_factor=2.0**-14)
    seen, skip, records, error = run(tmp_path, set(), 1, plugins=[half])
    assert (error, records) == (None, [])
    assert half.scaler.get_scale() == 2.0**12
    assert (skip.overflows, skip.skipped) == (2, 0)
    for part in ("raw", "ema"):
        assert [changed(a, b, part) for a, b in pairwise(seen)] == [False, True, True, True, True]
    assert all(torch.isfinite(value).all() for value in seen[-1].values())
    again, file = float16(2.0**40), tmp_path / "checkpoints" / "step_00000004.ckpt"
    resumed, skip, *_ = run(tmp_path / "resumed", set(), 1, ckpt_path=file, plugins=[again])
    assert again.scaler.get_scale() == 2.0**12
    assert (len(resumed), skip.overflows) == (2, 2)
    assert all(map(torch.equal, resumed[-1].values(), seen[-1].values()))


def test_loss_that_is_no_number_is_a_fault_in_float16_too_and_keeps_the_scale(tmp_path):
    half = float16(2.0**10)
    seen, skip, records, _ = run(tmp_path, {2, 4}, plugins=[half])
    assert [changed(a, b, "raw") for a, b in pairwise(seen)] == [True, False, True, False, True]
    assert [record["step"] for record in records] == [2, 4]
    assert (skip.overflows, skip.skipped) == (0, 2)
    assert half.scaler.get_scale() == 2.0**10


def test_gradients_that_are_no_numbers_at_any_scale_end_the_run(tmp_path):
    half = float16(4.0)
    _, skip, records, error = run(tmp_path, set(range(6)), 3, torn, plugins=[half])
    assert "got NaN or infinity in 3 steps in a row" in str(error)
    assert (skip.overflows, skip.skipped) == (2, 3)
    assert [record["step"] for record in records] == [2, 3, 4]


def test_recorded_loss_is_not_scaled(tmp_path):
    _, _, (plain,), _ = run(tmp_path / "plain", {0}, spoil=torn)
    _, _, (half,), _ = run(tmp_path / "half", {0}, spoil=torn, plugins=[float16(0.25)])
    assert float(half["loss"]) == pytest.approx(float(plain["loss"]), rel=0.01)


def detached(loss):
    """A loss that is no number, with a gradient that is one."""
    return loss + float("nan") * torch.ones_like(loss)


@pytest.mark.parametrize("bad", [2, 3])
def test_a_bad_loss_in_any_batch_of_a_step_skips_it(tmp_path, bad):
    _, skip, records, _ = run(tmp_path, {bad}, spoil=detached, accumulate_grad_batches=2)
    assert skip.skipped == 1
    assert [(record["step"], len(record["samples"])) for record in records] == [(1, 8)]


def test_a_resumed_run_records_its_steps_once(tmp_path):
    run(tmp_path, {1, 4, 5})
    file, last = tmp_path / FILE, tmp_path / "checkpoints/step_00000004.ckpt"
    _, _, records, _ = run(tmp_path, {0, 1}, ckpt_path=last)  # its batches are the 4th and 5th
    assert [record["step"] for record in records] == [1, 4, 5]
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:2]) + '\n{"step": 5, "lo')  # torn by a kill
    append_once(file, [lines[2], lines[0], lines[2]])
    assert file.read_text().splitlines() == [*lines[:2], '{"step": 5, "lo', lines[2]]
