"""Killed and interrupted runs go on as if nothing had happened."""

import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.e2e.conftest import (
    QUICK,
    QUICKSTART,
    checkpoint,
    differences,
    finish,
    start,
    watched,
)
from tests.e2e.life import Life, fit

LONG = [
    *QUICKSTART,
    "--data.batch_size=16",
    "--trainer.max_steps=180",
    "--checkpoint.every_n_steps=20",
    "--trainer.val_check_interval=50",
    "--sample_images.every_n_steps=50",
]  # more than one epoch of 102 steps
FEW = [*QUICKSTART, "--data.train.split=val"]  # 180 images

# It counts the epoch that a run resumed at an epoch's end begins and leaves at once, and in the
# epoch of a resumed run the batches of a validation that is not repeated.
COUNTS_OF_LIGHTNING = re.compile(
    r"fit_loop/(epoch_progress/\w+/(ready|started)|epoch_loop.val_loop.batch_progress/current)"
)


# Most runs here have processes of their own: type checks in this one would draw from Python's
# random generator.


def alive_at(step: int, folder: str, *flags: str) -> Life:
    """A run in `folder` that has just saved this step, and goes on."""
    life = Life("fit", *LONG, f"--trainer.default_root_dir={folder}", *flags)
    deadline = time.monotonic() + 120
    while not Path(f"{folder}/checkpoints/step_{step:08d}.ckpt").exists():
        assert not life.is_over(), life.printed()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return life


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The end of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    fit(*LONG, "--trainer.default_root_dir=run", folder=folder)
    return checkpoint(folder / "run", 180)


def test_killed_run_resumes_bit_identically(whole):
    """SIGKILL twice, once in each epoch; then weights, EMA, optimizer, RNG, data position and loops
    are equal, at the end of a process that Python has started anew.
    """
    for step, more in ((40, []), (120, ["--ckpt_path=last"])):
        life = alive_at(step, "killed", *more)
        life.send(signal.SIGKILL)
        life.end(-signal.SIGKILL)
    finish(start("fit", *LONG, "--trainer.default_root_dir=killed", "--ckpt_path=last"))
    assert differences(whole, checkpoint("killed", 180)) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_and_says_how_to_go_on(whole, signum):
    life = alive_at(20, "stopped")
    life.send(signum)
    output = life.end(128 + signum)
    assert "--ckpt_path last" in output
    assert "Traceback" not in output
    fit(*LONG, "--trainer.default_root_dir=stopped", "--ckpt_path=last")
    assert differences(whole, checkpoint("stopped", 180)) == []


def test_kill_while_a_checkpoint_is_written_leaves_no_torn_file():
    """The writing process dies half way; what lies in the folder under a checkpoint's name is
    whole.
    """
    torn = [*QUICKSTART, "--trainer.default_root_dir=torn"]
    fit(*torn, *watched("DieWhileSaving", "step=8"), code=-signal.SIGKILL)
    names = sorted(file.name for file in Path("torn/checkpoints").iterdir())
    assert "step_00000004.ckpt" in names
    assert "step_00000008.ckpt" not in names
    assert len(names) == 2  # the unfinished one is there under a temporary name
    fit(*torn, "--ckpt_path=last")
    fit(*QUICKSTART, "--trainer.default_root_dir=whole")
    assert differences(checkpoint("whole", 8), checkpoint("torn", 8)) == []
    assert all(file.suffix == ".ckpt" for file in Path("torn/checkpoints").iterdir())


def test_epoch_end_and_accumulation_resume_exactly():
    """A checkpoint on an epoch's last step, with two batches a step."""
    flags = [
        *FEW,
        "--trainer.max_steps=-1",
        "--trainer.max_epochs=3",
        "--checkpoint.every_n_steps=1",
    ]
    flags += [
        "--trainer.accumulate_grad_batches=2",
        "--data.batch_size=40",
        "--trainer.val_check_interval=2",
    ]
    fit(*flags, "--trainer.default_root_dir=whole")
    middle = Path(
        "whole/checkpoints/step_00000002.ckpt"
    ).resolve()  # 180 images: 5 batches, 3 steps an epoch
    fit(*flags, "--trainer.default_root_dir=middle", f"--ckpt_path={middle}")
    end = middle.with_name("step_00000003.ckpt")
    fit(*flags, "--trainer.default_root_dir=end", f"--ckpt_path={end}")
    for name in ("middle", "end"):
        different = differences(checkpoint("whole", 9), checkpoint(name, 9))
        assert [key for key in different if not COUNTS_OF_LIGHTNING.search(key)] == []


ACCUMULATED = [  # 180 images: 5 batches and 3 steps an epoch
    *FEW,
    "--data.batch_size=40",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.max_steps=-1",
    "--trainer.max_epochs=3",
    "--checkpoint.every_n_steps=1",
    "--sample_images.every_n_steps=0",
    "--trainer.val_check_interval=2",
]
SPOILT = watched("SpoilAt", "step=1")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> Path:
    """The folder of a whole run of three epochs whose second step was skipped."""
    folder = tmp_path_factory.mktemp("spoilt")
    fit(*ACCUMULATED, *SPOILT, "--trainer.default_root_dir=run", folder=folder)
    return folder / "run"


@pytest.mark.parametrize(
    ("stop", "saved"),
    [
        (watched("StopAt", "batch=4"), 3),
        (watched("StopAt", "batch=5", "in_validation=true"), 4),  # within a step
        (["--trainer.max_steps=2"], 2),  # the skipped one
    ],
)
def test_a_run_that_stops_early_goes_on_to_the_bit(spoilt, stop, saved):
    """From the end of the step within which it was asked to; no epoch is lost."""
    parts = [*ACCUMULATED, "--trainer.default_root_dir=parts"]
    watchers = [word.replace("callbacks=", "callbacks+=") for word in stop]
    fit(*parts, *SPOILT, *watchers)
    assert max(Path("parts/checkpoints").iterdir()).name == f"step_{saved:08d}.ckpt"
    fit(*parts, "--ckpt_path=last")
    for step in range(saved + 1, 10):
        different = differences(checkpoint(spoilt, step), checkpoint("parts", step))
        assert [key for key in different if not COUNTS_OF_LIGHTNING.search(key)] == []


def test_a_stop_before_min_steps_saves_nothing_more(run):
    flags = [*QUICKSTART, "--trainer.accumulate_grad_batches=2", "--trainer.min_steps=4"]
    flags += ["--trainer.min_epochs=0", "--checkpoint.every_n_steps=0", "--checkpoint.keep=0"]
    run("fit", *flags, *watched("StopAt", "batch=1"))
    names = [file.name for file in Path("runs/quickstart/checkpoints").iterdir()]
    assert names == ["step_00000004.ckpt"]


def test_a_resumed_runs_config_is_that_of_the_run(trained, run):
    """It starts a new run as it stands, with the seed that it is given."""
    shutil.move("runs/quickstart", "first")
    flags = ["--model.init_from=first/checkpoints/step_00000008.ckpt", "--model.weights=raw"]
    run("fit", *QUICK, *flags)
    before = Path("runs/quickstart/config.yaml").read_text()
    run("fit", "-c", "runs/quickstart/config.yaml", "--ckpt_path=last", "--trainer.max_steps=12")
    config = Path("runs/quickstart/config.yaml").read_text()
    assert config == before.replace("max_steps: 8", "max_steps: 12")
    with pytest.raises(SystemExit, match="does not fit"):
        run("fit", *QUICK, "--ckpt_path=last", "--model.network.hidden_dim=48")
    assert Path("runs/quickstart/config.yaml").read_text() == config
    run("fit", "-c", "runs/quickstart/config.yaml", "--trainer.default_root_dir=again",
        "--seed_everything=5")  # fmt: skip
    record = yaml.safe_load(Path("again/environment.yaml").read_text())[0]
    assert (record["seed_everything"], record["data_seed"], record["step"]) == (5, 5, 0)
    assert Path("again/checkpoints/step_00000012.ckpt").exists()


def test_smaller_batches_and_more_of_them_go_on_with_the_same_steps(run):
    """As advised where memory does not suffice; each image still comes once an epoch."""
    flags = [*QUICK, "--data.train.split=val", "--trainer.max_steps=10"]
    flags += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"]
    flags += ["--trainer.val_check_interval=50", "--checkpoint.every_n_steps=1"]
    run("fit", *flags, "--data.batch_size=42")
    flags += ["--data.batch_size=14", "--trainer.accumulate_grad_batches=3"]
    whole = checkpoint("runs/quickstart", 10)
    for step in (4, 5, 7):  # in an epoch of 5 steps, at its end, in the next
        file = f"--ckpt_path=runs/quickstart/checkpoints/step_{step:08d}.ckpt"
        run("fit", *flags, file, f"--trainer.default_root_dir=from{step}")
        thirds = checkpoint(f"from{step}", 10)
        for key, value in whole["state_dict"].items():
            torch.testing.assert_close(thirds["state_dict"][key], value, rtol=1e-4, atol=1e-5)
        assert thirds["PixelHDMDataModule"]["epoch"] == whole["PixelHDMDataModule"]["epoch"]
        assert thirds["epoch"] == whole["epoch"]


def test_settings_of_the_command_line_win_on_resume(trained, run):
    more = ["--trainer.max_steps=10", "--ckpt_path=last"]
    run("fit", *QUICK, *more, "--model.optimizer.lr=0.5", "--model.optimizer.betas=[0.8,0.9]")
    group = checkpoint("runs/quickstart", 10)["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == 0.5
    assert tuple(group["betas"]) == (0.8, 0.9)


def test_resuming_an_earlier_checkpoint_is_refused_beside_a_later_one(trained, run):
    earlier = "--ckpt_path=runs/quickstart/checkpoints/step_00000004.ckpt"
    with pytest.raises(SystemExit, match=r"last checkpoint, got .*step_00000004.*step_00000008"):
        run("fit", *QUICKSTART, earlier)
    run("fit", *QUICK, earlier, "--trainer.default_root_dir=branch")
    assert Path("branch/checkpoints/step_00000008.ckpt").exists()


def test_new_run_refuses_the_folder_of_an_old_one(trained, run):
    before = Path("runs/quickstart/config.yaml").stat().st_mtime_ns
    with pytest.raises(
        SystemExit, match=r"must not overwrite .* step_00000008.ckpt.*--ckpt_path last"
    ):
        run("fit", *QUICKSTART)
    assert Path("runs/quickstart/config.yaml").stat().st_mtime_ns == before


BY_EPOCHS = [  # five batches an epoch
    *QUICK,
    "--data.train.split=val",
    "--data.batch_size=40",
    "--trainer.max_steps=-1",
]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_epochs_stay_those_of_the_data_over_resumes_at_their_ends(accumulate):
    flags = ["--checkpoint.every_n_steps=1", f"--trainer.accumulate_grad_batches={accumulate}"]
    steps = -(-5 // accumulate)
    fit(*BY_EPOCHS, *flags, "--trainer.max_epochs=3", "--trainer.default_root_dir=whole")
    for epochs in (1, 2, 3):
        again = ["--ckpt_path=last"] if epochs > 1 else []
        fit(*BY_EPOCHS, *flags, f"--trainer.max_epochs={epochs}", *again)
    files = sorted(Path("runs/quickstart/checkpoints").iterdir())
    assert len(files) == 3 * steps
    whole, parts = (checkpoint(folder, 3 * steps) for folder in ("whole", "runs/quickstart"))
    assert differences(whole, parts) == []


def test_two_resumes_within_an_epoch_after_one_at_its_end():
    flags = ["--checkpoint.every_n_steps=1", "--trainer.max_epochs=3"]
    fit(*BY_EPOCHS, *flags, "--trainer.default_root_dir=whole")
    fit(*BY_EPOCHS, "--trainer.max_epochs=1")
    fit(*BY_EPOCHS, *flags, "--ckpt_path=last")
    for step in (7, 9):  # as if killed there
        at = f"--ckpt_path=runs/quickstart/checkpoints/step_{step:08d}.ckpt"
        fit(*BY_EPOCHS, *flags, at, f"--trainer.default_root_dir=from{step}")
        assert differences(checkpoint("whole", 15), checkpoint(f"from{step}", 15)) == []
