import pytest
import torch

from pixelhdm import snapshots
from pixelhdm.errors import UserError
from pixelhdm.snapshots import read_snapshot, snapshot_file, write_snapshot
from pixelhdm.training.power_ema import Profile

PROFILE = Profile(0.05, 4)


def test_a_snapshot_that_fails_half_way_leaves_the_one_before_it(tmp_path, monkeypatch):
    write_snapshot(tmp_path, PROFILE, {"a": torch.ones(3)})

    def fail_half_way(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(snapshots, "save_file", fail_half_way)
    with pytest.raises(UserError, match=r"must be writable, got: no space left\. Make room"):
        write_snapshot(tmp_path, PROFILE, {"a": torch.zeros(3)})
    file = snapshot_file(tmp_path, PROFILE)
    assert torch.equal(read_snapshot(file)["a"], torch.ones(3))
    assert list(file.parent.iterdir()) == [file]
