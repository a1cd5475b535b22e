"""BadSamples in a real run on a few images, of which chosen ones cannot be read."""

import json

import pytest
import torch
from lightning.pytorch import Trainer

from pixelhdm.callbacks.bad_samples import FILE, BadSamples
from pixelhdm.callbacks.checkpoint import RunCheckpoint
from pixelhdm.data.draws import Draws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Numbers, perturb, tiny_network

NUM, BATCH = 22, 4


def run(folder, bad=(), val_bad=(), callback=None, ckpt_path=None, **flags) -> tuple[list, dict]:
    """Entries of the file and final weights of an epoch or more."""
    module = PixelHDMModule(
        perturb(tiny_network()),
        lambda dim: ClassConditioner(dim, 10, 1),
        EulerSampler(1),
        Guidance(),
        loss=TripleLoss(velocity=VelocityLoss()),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    )
    data = PixelHDMDataModule(
        2, BATCH, Draws(0), Numbers(NUM, bad), Numbers(10, val_bad), seed=0, num_workers=0
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=[callback or BadSamples(max_bad_fraction=1.0), RunCheckpoint(3, keep=0)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **({"max_epochs": 2, "num_sanity_val_steps": 0} | flags),
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    file = folder / FILE
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines], module.state_dict()


def test_each_bad_sample_is_named_once_an_epoch(tmp_path):
    entries, state = run(tmp_path, bad=(3, 9), val_bad=(1,))
    reason = {"reason": "decode", "detail": "it is bad"}
    train = [entry for entry in entries if entry["split"] == "train"]
    expected = [
        {"split": "train", "epoch": e, "index": i, **reason} for e in (0, 1) for i in (3, 9)
    ]
    assert sorted(train, key=lambda entry: (entry["epoch"], entry["index"])) == expected
    assert [e for e in entries if e["split"] == "val"] == [
        {"split": "val", "epoch": 0, "index": 1, **reason}  # the same in every validation
    ]
    assert all(value.isfinite().all() for value in state.values())


def test_without_bad_samples_there_is_no_file(tmp_path):
    assert run(tmp_path, max_epochs=1)[0] == []
    assert not (tmp_path / FILE).exists()


def test_a_batch_of_bad_samples_alone_changes_nothing_but_moments(tmp_path):
    _, state = run(tmp_path, bad=tuple(range(NUM)), max_epochs=1)
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("split", ["train", "val"])
def test_too_many_end_the_run(tmp_path, split):
    bad = {"bad" if split == "train" else "val_bad": (1, 2, 3)}
    words = (
        rf"at most 10.00% of an epoch's images may be bad, got 3 of \d+ in data.{split}\. .*names"
    )
    with pytest.raises(UserError, match=words):
        run(tmp_path, callback=BadSamples(0.1), **bad)
    assert len((tmp_path / FILE).read_text().splitlines()) >= 3


def test_the_share_is_one_of_an_epoch(tmp_path):
    """Two of 22 in each of three epochs never exceed a tenth."""
    entries, _ = run(tmp_path, bad=(1, 2), callback=BadSamples(0.1), max_epochs=3)
    assert len(entries) == 6


def test_too_many_in_a_row_end_the_run(tmp_path):
    callback = BadSamples(1.0, max_in_a_row=9, check_every_n_batches=3)
    words = "no more than 9 images in a row may be bad, got 12.* raise bad_samples.max_in_a_row"
    with pytest.raises(UserError, match=words):
        run(tmp_path, bad=tuple(range(NUM)), callback=callback)


def test_bad_samples_among_good_ones_are_not_in_a_row(tmp_path):
    callback = BadSamples(1.0, max_in_a_row=1, check_every_n_batches=3)
    run(tmp_path, bad=(1, 2, 3, 4, 5), callback=callback, max_epochs=1, num_sanity_val_steps=0)


def test_a_resumed_run_goes_on_counting_and_names_samples_once(tmp_path):
    whole, _ = run(tmp_path / "whole", bad=(1, 2, 3), max_epochs=1)
    callback = BadSamples(0.1)
    run(tmp_path / "parts", bad=(1, 2, 3), max_steps=3)
    last = str(tmp_path / "parts/checkpoints/step_00000003.ckpt")
    with pytest.raises(UserError, match="got 3 of 22"):  # over both parts
        run(tmp_path / "parts", bad=(1, 2, 3), callback=callback, ckpt_path=last, max_epochs=1)
    lines = (tmp_path / "parts" / FILE).read_text().splitlines()
    key = str
    assert sorted(map(json.loads, lines), key=key) == sorted(whole, key=key)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_bad_fraction": -0.1}, "max_bad_fraction must lie in 0 … 1, got -0.1"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction must lie in 0 … 1, got 1.5"),
        ({"max_in_a_row": 0}, "max_in_a_row must be at least 1, got 0"),
        ({"check_every_n_batches": 0}, "check_every_n_batches must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        BadSamples(**arguments)
