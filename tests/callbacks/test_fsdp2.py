"""ZClip, SkipNonFinite and EMA in two processes, by FSDP2 and by DDP: the run is that of one."""

import json
from pathlib import Path

import pytest
import torch

from pixelhdm.callbacks.non_finite import FILE
from pixelhdm.snapshots import read_snapshot, snapshots_of
from tests.callbacks import fsdp2_run
from tests.e2e.life import Life

pytestmark = pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder with what two processes found, in fsdp2/ and ddp/, and one process, in one/."""
    folder = tmp_path_factory.mktemp("runs")
    two = Life(folder, processes=2, folder=folder, script=Path(fsdp2_run.__file__))
    found = fsdp2_run.train(folder / "one")
    two.end()
    torch.save(found, folder / "one" / "found.pt")
    return folder


def find(folder: Path, name: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """What every process of a run has seen, and its tensors."""
    found = torch.load(folder / name / "found.pt", weights_only=True)
    return found["seen"], found["tensors"]


def test_every_process_clips_by_the_global_norm_and_skips_what_one_of_them_must(folder, strategy):
    (alone,), _ = find(folder, "one")
    bad = (fsdp2_run.BAD_LOSS, fsdp2_run.BAD_GRADIENT)
    assert alone["skipped"] == [step in bad for step in range(fsdp2_run.STEPS)]
    assert 0 < alone["zclip"]["clipped"] < alone["zclip"]["steps"]
    for seen in find(folder, strategy)[0]:
        assert seen["skipped"] == alone["skipped"]
        assert seen["norms"] == pytest.approx(alone["norms"], rel=1e-5, nan_ok=True)
        assert seen["zclip"] == pytest.approx(alone["zclip"], rel=1e-5)
        assert seen["logged"] == pytest.approx(alone["logged"], rel=1e-4)


def test_skipped_steps_are_recorded_with_the_loss_and_samples_of_all_processes(folder, strategy):
    alone, shared = (
        [json.loads(line) for line in (folder / name / FILE).read_text().splitlines()]
        for name in ("one", strategy)
    )
    assert [record.pop("loss") for record in alone + shared] == ["nan"] * 4
    norms, expected = (
        [float(record.pop("grad_norm")) for record in records] for records in (shared, alone)
    )
    assert norms == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert shared == alone


def test_weights_average_and_profiles_are_those_of_one_process(folder, strategy):
    _, alone = find(folder, "one")
    seen, shared = find(folder, strategy)
    assert shared.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(shared[key], value, rtol=0, atol=1e-5)
    parts = 2 if strategy == "ddp" else 1  # of FSDP2 each process holds its own
    assert sum(part["held"] for part in seen) == parts * sum(map(torch.numel, alone.values()))


def test_snapshots_are_those_of_one_process(folder, strategy):
    alone, shared = snapshots_of(folder / "one"), snapshots_of(folder / strategy)
    assert [profile.step for profile in alone.values()] == [3, 3, 7, 7, 8, 8]  # 6 was skipped
    assert list(shared.values()) == list(alone.values())
    for ours, theirs in zip(shared, alone, strict=True):
        tensors, expected = read_snapshot(ours), read_snapshot(theirs)
        assert tensors.keys() == expected.keys()
        for key, value in expected.items():
            assert value.dtype == torch.float16
            torch.testing.assert_close(tensors[key], value, rtol=2**-10, atol=1e-5)
