"""All of the training system at once: what a run with everything on keeps, says and survives."""

import math
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixelhdm.models.encoders.dino import DINOv3
from pixelhdm.snapshots import read_snapshot, snapshots_of
from tests.e2e.conftest import (
    QUICKSTART,
    checkpoint,
    differences,
    logged,
    watched,
    with_repa,
)
from tests.e2e.life import Life
from tests.tiny_dino import DIM, save_dinov3

STOP, END = 12, 24
EVERYTHING = [
    *QUICKSTART,
    f"--trainer.max_steps={END}",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=16",
    "--trainer.limit_val_batches=4",
    "--model.optimizer={class_path: MuonAdamW, init_args: {lr: 0.01, weight_decay: 0.01}}",
    "--model.schedule={class_path: CosineSchedule, init_args: {warmup_steps: 6}}",
    f"--repa_early_stop.step={STOP}",
    "--zclip={z_threshold: 0.3, alpha: 0.5, warmup_steps: 4}",
    "--ema={sigma_rel: [0.05, 0.1], snapshot_every_n_steps: 4}",
    "--checkpoint.every_n_steps=5",
    "--sample_images.every_n_steps=12",
]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4"]
LAST = "--ckpt_path=last"


def fit(folder: Path, *flags: str, processes: int = 1, killed: bool = False) -> str:
    """Train in processes of its own, into <folder>/run, with the teacher beside it."""
    teacher = DINOv3(str(folder.parent / "dinov3"), DIM)
    command = ["fit", *EVERYTHING, "--trainer.default_root_dir=run", with_repa(teacher), *flags]
    folder.mkdir(exist_ok=True)
    code = -signal.SIGKILL if killed else 0
    return Life(*command, processes=processes, folder=folder).end(code)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> SimpleNamespace:
    """A run with everything on, and one that was killed before and after the REPA stop and lost its
    teacher's files before it went on.
    """
    folder = tmp_path_factory.mktemp("one")
    save_dinov3(folder / "dinov3")
    whole, killed = folder / "whole", folder / "killed"
    said = fit(whole)
    fit(killed, *watched("KillAt", "step=8"), killed=True)
    fit(killed, *watched("KillAt", "step=17"), LAST, killed=True)
    shutil.rmtree(folder / "dinov3")
    resumed = fit(killed, LAST)
    return SimpleNamespace(whole=whole / "run", killed=killed / "run", said=said, resumed=resumed)


def test_killed_before_and_after_the_repa_stop_a_run_ends_the_same_to_the_bit(runs):
    whole = checkpoint(runs.whole, END)
    assert differences(whole, checkpoint(runs.killed, END)) == []
    zclip = whole["callbacks"]["ZClip"]
    assert zclip["steps"] == END
    assert 0 < zclip["clipped"] < END
    assert whole["callbacks"]["EMA"] == {"averaged": END}
    assert whole["callbacks"]["RepaEarlyStop"] == {"samples": END * 16}
    for ours, theirs in zip(snapshots_of(runs.whole), snapshots_of(runs.killed), strict=True):
        assert ours.name == theirs.name
        assert differences(read_snapshot(ours), read_snapshot(theirs)) == []


def test_the_stop_is_said_once_and_the_term_is_gone(runs):
    assert runs.said.count(f"REPA is over: step {STOP}, {STOP * 16} images.") == 1
    assert runs.resumed.count("REPA is over") == 1
    assert len(logged(runs.whole, "train/repa")) == STOP
    assert len(logged(runs.whole, "train/total")) == END
    assert len(logged(runs.whole, "val/repa")) == 1
    assert len(logged(runs.whole, "val/total")) == 3


def test_two_processes_go_on_to_the_bit_from_before_and_after_the_stop(tmp_path):
    """One life goes on from a checkpoint before the stop, another, killed after it, without the
    teacher's files; in both, all parameters have gradients, the same in both processes.
    """
    save_dinov3(tmp_path / "dinov3")
    early, late = tmp_path / "early", tmp_path / "late"
    fit(late, *TWO, *watched("KillAt", "step=17"), processes=2, killed=True)
    before = f"--ckpt_path={late}/run/checkpoints/step_00000005.ckpt"
    fit(early, *TWO, *watched("Witness"), before, processes=2)
    shutil.rmtree(tmp_path / "dinov3")
    fit(late, *TWO, *watched("Witness"), LAST, processes=2)
    for step in (10, 15, END):
        assert differences(checkpoint(early / "run", step), checkpoint(late / "run", step)) == []
    for folder in (early, late):
        ranks = [torch.load(folder / f"run/rank{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert differences(*ranks) == []
        assert differences(ranks[0], checkpoint(folder / "run", END)["state_dict"]) == []


def test_rates_follow_warm_up_and_cosine_through_both_kills(runs):
    expected = []
    for step in range(END):
        cosine = (1 + math.cos(math.pi * max(0, step - 5) / (END - 5))) / 2
        expected.append(0.01 * min(1, (step + 1) / 6) * cosine)
    assert logged(runs.whole, "train/lr") == pytest.approx(expected)
    again = expected[:8] + expected[5:17] + expected[15:]
    assert logged(runs.killed, "train/lr") == pytest.approx(again)


def test_curves_and_pictures_of_a_killed_run_are_those_of_a_whole_one(runs):
    whole, killed = (
        EventAccumulator(str(folder / "tensorboard"), {"images": 0, "tensors": 0}).Reload()
        for folder in (runs.whole, runs.killed)
    )
    names = whole.Tags()["scalars"]
    assert killed.Tags()["scalars"] == names
    assert {"train/velocity", "train/grad_z", "val_t/total/0.1-0.2", "throughput/mfu"} <= {*names}
    for name in names:
        curves = [[(e.step, e.value) for e in events.Scalars(name)] for events in (whole, killed)]
        if name.startswith(("train/", "val")):
            assert curves[0] == curves[1], name
    for name in ("samples", "samples_raw"):
        pictures = [
            [(e.step, e.encoded_image_string) for e in events.Images(name)]
            for events in (whole, killed)
        ]
        assert [step for step, _ in pictures[0]] == [STOP - 1, END - 1]
        assert pictures[0] == pictures[1]
    (text,) = whole.Tensors("config/text_summary")
    assert b"MuonAdamW" in text.tensor_proto.string_val[0]
    assert len(killed.Tensors("environment/text_summary")) == 3


def test_every_start_is_recorded(runs):
    entries = yaml.safe_load((runs.killed / "environment.yaml").read_text())
    assert [entry["step"] for entry in entries] == [0, 5, 15]
    assert [Path(str(entry["resumed_from"])).stem for entry in entries] == [
        "None", "step_00000005", "step_00000015"
    ]  # fmt: skip
    assert all("main.py fit" in entry["command"] for entry in entries)


def test_validate_after_the_stop_needs_no_teacher(runs, run):
    flags = [*EVERYTHING, with_repa(DINOv3(f"{runs.killed}/gone", DIM))]
    flags += [f"--ckpt_path={runs.killed}/checkpoints/step_{END:08d}.ckpt"]
    output = run("validate", *flags)
    assert "val/velocity" in output
    assert "val/repa" not in output
    with pytest.raises(SystemExit, match=r"teacher .*does not exist.*repa_early_stop\.step=0"):
        run("validate", *flags, f"--repa_early_stop.step={END + 1}")
