from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pixelhdm.data.buckets import Buckets
from pixelhdm.data.draws import Draws
from pixelhdm.data.samplers import Plan
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from tests.stubs import Numbers, Sized


def data(
    num: int = 22,
    batch_size: int = 4,
    seed: int = 7,
    world: int = 1,
    accumulate: int = 1,
    limit: int | float = 1.0,
) -> PixelHDMDataModule:
    module = PixelHDMDataModule(2, batch_size, Draws(1), Numbers(num), seed=seed, num_workers=0)
    module.trainer = SimpleNamespace(
        global_rank=0,
        world_size=world,
        accumulate_grad_batches=accumulate,
        limit_train_batches=limit,
        overfit_batches=0,
        fast_dev_run=False,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        lightning_module=SimpleNamespace(network=Sized(8, 1)),
    )
    if accumulate > 0:
        module.setup("fit")
    return module


@pytest.mark.parametrize("done", [0, 1, 5, 6])
def test_state_is_the_position_in_the_data(done):
    first = data()
    batches = iter(first.train_dataloader())
    for _ in range(done):
        next(batches)
    again = data()
    again.load_state_dict(first.state_dict())
    rest = iter(again.train_dataloader())
    for batch in islice(batches, 8):  # into the next epoch
        assert torch.equal(batch["seed"], next(rest)["seed"])


def test_two_processes_may_go_on_where_one_was():
    first = data(batch_size=4)
    next(iter(first.train_dataloader()))
    again = data(batch_size=2, world=2)
    again.load_state_dict(first.state_dict())
    assert again.train_dataloader().step == 1


@pytest.mark.parametrize("taken", [2, 4, 6])  # the last is the epoch's end, with 2 images of 4
def test_more_and_smaller_batches_may_go_on_with_the_same_steps(taken):
    first = data(batch_size=4, accumulate=2)
    batches = iter(first.train_dataloader())
    for _ in range(taken):
        next(batches)
    again = data(batch_size=2, accumulate=4)
    again.load_state_dict(first.state_dict())
    rest = iter(again.train_dataloader())
    for _ in range(3):
        whole = next(batches)
        halves = [next(rest) for _ in range(2 if whole["weight"].sum() > 2 else 1)]
        seeds = torch.cat([half["seed"] for half in halves])
        assert torch.equal(whole["seed"][: len(seeds)], seeds)


@pytest.mark.parametrize(("limit", "batches"), [(1.0, 6), (0.5, 3), (4, 4), (9, 6), (0, 1)])
def test_a_trainers_epoch_is_the_part_that_it_takes(limit, batches):
    assert data(limit=limit).train_dataloader().trainer_epoch == batches


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_several_batches_a_step_the_trainers_epoch_must_stay(accumulate):
    first, other = data(accumulate=accumulate, limit=3), data(accumulate=accumulate)
    first.train_dataloader()
    other.load_state_dict(first.state_dict())
    if accumulate == 1:
        other.train_dataloader()
        return
    with pytest.raises(UserError, match=r"its limit_train_batches, got all where .* has 3"):
        other.train_dataloader()


def test_a_run_that_changed_its_part_may_not_share_steps_out_in_another_way():
    """Its trainer's epochs no longer end where those of the data do."""
    state = None
    for limit in (3, 1.0, 1.0):
        run = data(limit=limit)
        run.load_state_dict(state or {})
        run.train_dataloader()
        state = run.state_dict()
    other = data(batch_size=2, accumulate=2)
    other.load_state_dict(state)
    with pytest.raises(UserError, match=r"limit_train_batches, got all where .* has several"):
        other.train_dataloader()
    other.trainer.fast_dev_run = True  # it saves nothing
    other.load_state_dict(state)
    other.train_dataloader()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ((3, 6), "limit_train_batches, got 6 where .* has 3"),
        ((None, 6), "limit_train_batches, got 6 where .* has all"),
        ((3, None), "limit_train_batches, got all where .* has 3"),
        ((3, 3), r"images per batch, got \[2\] where .* has \[4\]"),
    ],
)
def test_who_takes_a_part_of_an_epoch_may_not_share_steps_out_in_another_way(limits, words):
    first, other = (
        data(batch_size=size, accumulate=accumulate, limit=1.0 if limit is None else limit)
        for size, accumulate, limit in ((4, 1, limits[0]), (2, 2, limits[1]))
    )
    first.train_dataloader()
    other.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match=words):
        other.train_dataloader()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num": 23}, "keep its data, got numbers-23 where the checkpoint has numbers-22"),
        ({"seed": 8}, "keep its seed, got 8 where the checkpoint has 7"),
    ],
)
def test_other_data_are_refused(changes, words):
    first, other = data(), data(**changes)
    first.train_dataloader()
    other.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match=words):
        other.train_dataloader()


@pytest.mark.parametrize("name", ["batch_size", "image_size", "num_workers", "seed"])
def test_wrong_arguments(name):
    arguments = {"image_size": 2, "batch_size": 4, "num_workers": 0, "seed": 0} | {name: -1}
    with pytest.raises(UserError, match="-1"):
        PixelHDMDataModule(draw=Draws(1), **arguments)


@pytest.mark.parametrize("accumulate", [0, -1])
def test_wrong_accumulation(accumulate):
    module = data(accumulate=accumulate)
    with pytest.raises(
        UserError, match=f"accumulate_grad_batches must be at least 1, got {accumulate}"
    ):
        module.setup("fit")


def test_held_out_images_have_the_same_noise_in_every_run():
    seeds = []
    for seed in (1, 2):
        module = data(seed=seed)
        module.sources["val"] = Numbers(8)
        module.setup("fit")
        seeds.append([batch["seed"] for batch in module.val_dataloader()])
    for one, other in zip(*seeds, strict=True):
        assert torch.equal(one, other)


def test_other_decoders_are_told_of(caplog):
    first, again = data(), data()
    first.train_dataloader()
    state = first.state_dict()
    again.load_state_dict(state | {"decoders": "torchvision 0.1 and Pillow 2"})
    again.train_dataloader()
    assert "the checkpoint's were by torchvision 0.1 and Pillow 2: pixels may" in caplog.text


def test_shapes_are_all_that_training_can_meet():
    module = PixelHDMDataModule(
        2, 4, Draws(1), buckets=Buckets(sizes=[(2, 4), (2, 2)]), batch_tokens=16
    )
    module.trainer = data().trainer
    assert module.shapes == [(2, 2, 4), (4, 2, 2)]
    module.batch_tokens = 7
    with pytest.raises(UserError, match="largest bucket, which has 8 patches, got 7"):
        module.batch_sizes()


def test_a_samplers_settings_are_its_identity():
    class Backwards(Plan):
        def __init__(self, start: int):
            self.start = start

        def order(self, shard, num: int, seed: int, epoch: int):
            return np.arange(num)[::-1].copy()

    found = []
    for start in (1, 1, 2):
        module = data()
        module.sampler = Backwards(start)
        found.append(module.identity()["sampler"])
    assert found == ["Backwards(start=1)", "Backwards(start=1)", "Backwards(start=2)"]


def test_processes_must_see_the_same_data(monkeypatch):
    module = data()
    monkeypatch.setattr("pixelhdm.datamodule.gather_objects", lambda own: [own, "numbers-7"])
    with pytest.raises(UserError, match="same for all processes, got numbers-22 and numbers-7"):
        module.setup("fit")
