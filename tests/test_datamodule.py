from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from pixelhdm.data.draws import ClassDraws
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from tests.stubs import Numbers


def data(
    num: int = 22, batch_size: int = 4, seed: int = 7, world: int = 1, accumulate: int = 1
) -> PixelHDMDataModule:
    module = PixelHDMDataModule(
        2, batch_size, ClassDraws(1), Numbers(num), seed=seed, num_threads=0
    )
    module.trainer = SimpleNamespace(
        global_rank=0, world_size=world, accumulate_grad_batches=accumulate
    )
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num": 23}, "keep its data, got numbers-23 where the checkpoint has numbers-22"),
        ({"seed": 8}, "keep its seed, got 8 where the checkpoint has 7"),
        ({"batch_size": 2}, "images per optimizer step, got 2 where .* has 4"),
    ],
)
def test_other_data_are_refused(changes, words):
    first, other = data(), data(**changes)
    first.train_dataloader()
    other.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match=words):
        other.train_dataloader()


@pytest.mark.parametrize("name", ["batch_size", "image_size", "num_threads", "seed"])
def test_wrong_arguments(name):
    arguments = {"image_size": 2, "batch_size": 4, "num_threads": 0, "seed": 0} | {name: -1}
    with pytest.raises(UserError, match="-1"):
        PixelHDMDataModule(draw=ClassDraws(1), **arguments)
