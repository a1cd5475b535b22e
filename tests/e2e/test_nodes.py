"""Runs of several processes, however they are started, and what becomes of them when one dies."""

import signal
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import QUICK, QUICKSTART, checkpoint, differences, logged, watched
from tests.e2e.life import Life, fit

END = 12
FLAGS = [
    *QUICKSTART,
    f"--trainer.max_steps={END}",
    "--trainer.val_check_interval=4",
    "--sample_images.every_n_steps=0",
    "--checkpoint.every_n_steps=3",
    "--trainer.strategy=ddp",
    "--data.batch_size=4",
]
TWO = [*FLAGS, "--trainer.devices=2"]
NODES = [*FLAGS, "--trainer.num_nodes=2"]
HOST = socket.gethostname()


def in_folder(folder: str | Path) -> str:
    """The flag for a run's folder."""
    return f"--trainer.default_root_dir={folder}"


def over(life: Life, within: float = 60) -> tuple[list[int], str]:
    """Exit codes and output of a run that ends by itself, and leaves nothing behind."""
    deadline = time.monotonic() + within
    while not life.is_over():
        assert time.monotonic() < deadline, life.printed()
        time.sleep(0.01)
    deadline = time.monotonic() + 5
    while life.left_behind():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return list(life.codes.values()), life.printed()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    fit(*TWO, in_folder("run"), folder=folder, processes=2)
    return folder / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    fit(*FLAGS, "--data.batch_size=8", in_folder("run"), folder=folder)
    return folder / "run"


WORKERS = ["--data.num_workers=1", "--data.executor=process", "--trainer.limit_val_batches=0"]


@pytest.mark.parametrize(
    ("lost", "rank", "flags"),
    [("step=7", 0, []), ("step=7", 1, WORKERS), ("step=8", 1, [])],
    ids=["first", "with workers", "in validation"],
)
def test_one_killed_process_ends_the_run_with_a_sentence_and_it_resumes(whole, lost, rank, flags):
    settings = [lost, f"rank={rank}", f"in_validation={str(lost == 'step=8').lower()}"]
    life = Life("fit", *TWO, *flags, *watched("LoseAt", *settings), processes=2)
    codes, said = over(life)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    told = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert told[0].startswith(
        f"error: process {rank} of 2, on host {HOST}, was lost: it was killed"
    )
    assert told[0].endswith("Go on with: the same command with --ckpt_path last")
    # But for Python's thread that hands files to loaders, which the end may catch at work.
    assert "start.py" not in said
    assert said.count("Traceback") == said.count("resource_sharer.py")
    assert not Path(f"runs/quickstart/checkpoints/step_{END:08d}.ckpt").exists()
    fit(*TWO, "--ckpt_path=last", processes=2)
    ours, theirs = (checkpoint(run, END) for run in ("runs/quickstart", whole))
    for part in ("state_dict", "optimizer_states", "PixelHDMDataModule"):
        assert differences(theirs[part], ours[part]) == []


def test_others_of_a_process_that_fails_alone_tell_with_what():
    life = Life("fit", *TWO, *watched("LoseAt", "step=1", "rank=1", "fails=true"), processes=2)
    codes, said = over(life)
    assert codes == [1, 1]
    sentence = f"error: process 1 of 2, on host {HOST}, has failed: RuntimeError: lost on purpose. "
    assert said.count(sentence) == 1
    assert "Nothing is saved yet: run the same command again." in said
    assert said.count("Traceback") == 1  # its own
    assert "Connection closed by peer" not in said


def nodes(*flags: object, started: dict[str, str] | None = None, **environment: str) -> list[Life]:
    """A run on two nodes of this machine, started on each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"} | environment
    lives = []
    for node in "01":
        own = dict.fromkeys(started or {"NODE_RANK": ""}, node)
        own |= {name: value for name, value in (started or {}).items() if value}
        own |= {"MASTER_ADDR": "127.0.0.1"} if started is None else {}
        lives.append(Life("fit", *NODES, *flags, **common, **own))
    return lives


def test_two_nodes_train_as_one_process(alone):
    """Each node's command starts the second process of its own."""
    two = nodes("--trainer.devices=2", "--data.batch_size=2")
    for life in two:
        assert over(life, within=120)[0] == [0], life.printed()
    for name in ("train/total", "val/total"):
        ours = logged("runs/quickstart", name)
        assert len(ours) == (END if name == "train/total" else END // 4)
        assert ours == pytest.approx(logged(alone, name), rel=1e-4)


SLURM = {
    "SLURM_PROCID": "",
    "SLURM_NODEID": "",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "localhost",
}  # an empty one is the node's number


def test_a_job_of_slurm_saves_when_it_is_to_go_and_goes_on_when_it_is_queued_again(
    whole, tmp_path, monkeypatch
):
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    flags = ["--trainer.devices=1", "--ckpt_path=auto", f"--trainer.max_steps={END}"]
    first = nodes(*flags, *watched("LateAt", "step=5", "seconds=60"), started=SLURM)
    deadline = time.monotonic() + 60
    while not Path("runs/quickstart/late1").exists():
        assert time.monotonic() < deadline, first[0].printed()
        time.sleep(0.01)
    for life in first:
        life.send(signal.SIGUSR1)
    for life in first:
        assert over(life)[0] == [128 + signal.SIGUSR1], life.printed()
    assert "Job 4711 is queued again and goes on from here." in first[0].printed()
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert Path("runs/quickstart/checkpoints/step_00000006.ckpt").exists()
    for life in nodes(*flags, started=SLURM):
        assert over(life)[0] == [0], life.printed()
    assert differences(checkpoint(whole, END), checkpoint("runs/quickstart", END)) == []


def test_a_signal_to_all_processes_saves_and_raises_no_alarm(whole):
    life = Life("fit", *TWO, *watched("LateAt", "step=5", "seconds=60"), processes=2)
    deadline = time.monotonic() + 60
    while not Path("runs/quickstart/late1").exists():
        assert time.monotonic() < deadline, life.printed()
        time.sleep(0.01)
    life.send(signal.SIGTERM)
    codes, said = over(life)
    assert codes == [128 + signal.SIGTERM] * 2
    assert "error:" not in said
    last = said.splitlines()[-1]
    assert last == "Stopped and saved. Go on with:    the same command with --ckpt_path last"
    fit(*TWO, "--ckpt_path=last", processes=2)
    assert differences(checkpoint(whole, END), checkpoint("runs/quickstart", END)) == []


def test_nodes_that_do_not_come_are_told_of():
    strategy = ["--trainer.strategy=DDPStrategy", "--trainer.strategy.timeout=0:00:06"]
    flags = [*NODES, *strategy, "--trainer.devices=1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    codes, said = over(Life("fit", *flags, **environment))
    assert codes == [1]
    assert f"Waiting for all 2 processes at 127.0.0.1:{port} …" in said
    assert "error: all 2 processes of the run must meet at 127.0.0.1" in said
    assert "Traceback" not in said


def test_auto_starts_anew_then_goes_on_and_is_for_fit_alone(run):
    for steps in (4, 6):
        run("fit", *QUICK, "--ckpt_path=auto", f"--trainer.max_steps={steps}")
    names = sorted(file.name for file in Path("runs/quickstart/checkpoints").iterdir())
    assert names == ["step_00000004.ckpt", "step_00000006.ckpt"]
    assert checkpoint("runs/quickstart", 6)["global_step"] == 6
    with pytest.raises(SystemExit, match="a file or last to predict, got auto"):
        run("predict", *QUICK, "--ckpt_path=auto")
