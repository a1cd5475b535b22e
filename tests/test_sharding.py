"""FSDP2 with every kind of network: two processes compute and keep what one does."""

from pathlib import Path

import pytest
import torch

from tests import sharding_run
from tests.e2e.life import Life
from tests.models.networks import TINY


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("shared")
    Life(folder, processes=2, folder=folder, script=Path(sharding_run.__file__)).end()
    return [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", [*(kind.__name__ for kind in TINY), "PixelHDM", "PixelHDM again"])
def test_gradients_averages_and_stored_weights_are_those_of_one_process(found, name):
    for own in (part[name] for part in found):
        assert own["gradients"] < 1e-5
        assert own["average"] < 1e-5
        assert own["empty"] == own["stored"] == own["keys"] == 0
        assert 0.45 < own["held"] < 0.55
    assert sum(part[name]["held"] for part in found) == pytest.approx(1)


def test_where_one_process_cannot_write_all_are_told_and_nothing_is_left(found):
    for own in (part["full"] for part in found):
        assert "full.ckpt must be writable, got: no space left. Earlier ones" in own["told"]
        assert own["left"] == 0
