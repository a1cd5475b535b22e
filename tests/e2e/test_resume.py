"""Killed and interrupted runs go on as if nothing had happened."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import QUICKSTART, ROOT, checkpoint, differences, finish, start

LONG = [*QUICKSTART, "--trainer.max_steps=260", "--checkpoint.every_n_steps=20"]  # more than one epoch of 203 steps


def wait_for(path: Path, process) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def whole_run(run) -> dict:
    run("fit", *LONG, "--trainer.default_root_dir=whole")
    return checkpoint("whole", 260)


def test_killed_run_resumes_bit_identically(run):
    """SIGKILL twice, once in each epoch; then weights, EMA, optimizer, RNG, data position and loops are equal."""
    for step, extra in ((40, []), (220, ["--ckpt_path=last"])):
        process = start("fit", *LONG, "--trainer.default_root_dir=killed", *extra)
        wait_for(Path(f"killed/checkpoints/step_{step:08d}.ckpt"), process)
        process.send_signal(signal.SIGKILL)
        finish(process, -signal.SIGKILL)
    run("fit", *LONG, "--trainer.default_root_dir=killed", "--ckpt_path=last")
    assert differences(whole_run(run), checkpoint("killed", 260)) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_and_says_how_to_go_on(run, signum):
    process = start("fit", *LONG, "--trainer.default_root_dir=stopped")
    wait_for(Path("stopped/checkpoints/step_00000020.ckpt"), process)
    process.send_signal(signum)
    output = finish(process, 128 + signum)
    assert "--ckpt_path last" in output
    assert "Traceback" not in output
    run("fit", *LONG, "--trainer.default_root_dir=stopped", "--ckpt_path=last")
    assert differences(whole_run(run), checkpoint("stopped", 260)) == []


def test_kill_while_a_checkpoint_is_written_leaves_no_torn_file(run, monkeypatch):
    """The writing process dies half way; what lies in the folder under a checkpoint's name is whole."""
    code = (
        "import os, sys, torch\n"
        "from pixelhdm import checkpoints, cli\n"
        "whole = torch.save\n"
        "def die_half_way(content, path):\n"
        "    whole(content, path)\n"
        "    if content['global_step'] == 8:\n"
        "        os.truncate(path, os.path.getsize(path) // 2)\n"
        "        os.kill(os.getpid(), 9)\n"
        "checkpoints.torch.save = die_half_way\n"
        f"sys.argv = ['main.py', 'fit', *{QUICKSTART!r}, '--trainer.default_root_dir=torn']\n"
        "cli.main()\n"
    )
    Path("dies.py").write_text(code)
    done = subprocess.run([sys.executable, "dies.py"], env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = sorted(file.name for file in Path("torn/checkpoints").iterdir())
    assert "step_00000004.ckpt" in names
    assert "step_00000008.ckpt" not in names
    assert len(names) == 2  # the unfinished one is there under a temporary name
    run("fit", *QUICKSTART, "--trainer.default_root_dir=torn", "--ckpt_path=last")
    run("fit", *QUICKSTART, "--trainer.default_root_dir=whole")
    assert differences(checkpoint("whole", 8), checkpoint("torn", 8)) == []
    assert all(file.suffix == ".ckpt" for file in Path("torn/checkpoints").iterdir())


def test_epoch_end_and_accumulation_resume_exactly(run):
    """A checkpoint on an epoch's last step, with two batches a step."""
    flags = [*QUICKSTART, "--trainer.max_steps=-1", "--trainer.accumulate_grad_batches=2", "--data.batch_size=404"]
    run("fit", *flags, "--trainer.max_epochs=3", "--checkpoint.every_n_steps=1", "--trainer.default_root_dir=whole")
    run("fit", *flags, "--trainer.max_epochs=3", "--trainer.default_root_dir=parts", f"--ckpt_path={step_two()}")
    end = max(Path("whole/checkpoints").iterdir()).name
    assert differences(*(torch.load(f"{name}/checkpoints/{end}", weights_only=True) for name in ("whole", "parts"))) == []


def step_two() -> Path:
    return Path("whole/checkpoints/step_00000002.ckpt").resolve()


def test_changed_batch_size_is_refused_on_resume(run):
    run("fit", *QUICKSTART)
    with pytest.raises(SystemExit, match=r"images per step .* got 4 where the checkpoint has 8"):
        run("fit", *QUICKSTART, "--data.batch_size=4", "--trainer.max_steps=10", "--ckpt_path=last")


def test_new_run_refuses_the_folder_of_an_old_one(run):
    run("fit", *QUICKSTART)
    before = Path("runs/quickstart/config.yaml").stat().st_mtime_ns
    with pytest.raises(SystemExit, match=r"must not overwrite .* step_00000008.ckpt.*--ckpt_path last"):
        run("fit", *QUICKSTART)
    assert Path("runs/quickstart/config.yaml").stat().st_mtime_ns == before
