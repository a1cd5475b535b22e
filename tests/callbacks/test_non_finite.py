"""SkipNonFinite in a real run on a few images, where chosen steps have a loss that is no number."""

import json
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer

from pixelhdm.callbacks.ema import EMA
from pixelhdm.callbacks.non_finite import FILE, SkipNonFinite
from pixelhdm.data.draws import ClassDraws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Numbers, perturb, tiny_network


class BadAt(VelocityLoss):
    """The velocity loss, times `value` in the batches numbered in `bad`."""

    def __init__(self, bad: set[int], value: float):
        super().__init__()
        self.bad, self.value, self.batch = bad, value, -1

    def forward(self, *arguments):
        self.batch += 1
        losses = super().forward(*arguments)
        return {k: v * (self.value if self.batch in self.bad else 1) for k, v in losses.items()}


def run(folder, bad: set[int], max_in_a_row: int = 5, value: float = float("nan"), **flags):
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
        loss=BadAt(bad, value),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    )
    data = PixelHDMDataModule(2, 4, ClassDraws(0), Numbers(22), seed=0, num_threads=0)
    skip = SkipNonFinite(max_in_a_row)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=folder,
        callbacks=[Watch(0.5), skip],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **flags,
    )
    error = None
    try:
        trainer.fit(module, data)
    except UserError as raised:
        error = raised
    records = folder / FILE
    lines = records.read_text().splitlines() if records.exists() else []
    return seen, skip, [json.loads(line) for line in lines], error


def changed(before: dict, after: dict, prefix: str) -> bool:
    keys = [key for key in before if key.startswith("ema.") == (prefix == "ema")]
    return any(not torch.equal(before[key], after[key]) for key in keys)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_steps_leave_the_weights_alone_and_are_recorded(tmp_path, value):
    seen, skip, records, error = run(tmp_path, {2, 4}, value=value)
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
    assert (again.skipped, again.in_a_row) == (4, 0)


def test_wrong_limit():
    with pytest.raises(UserError, match="max_in_a_row must be at least 1, got 0"):
        SkipNonFinite(0)
