"""The way of the data through the real command line: shards, buckets, processes, kills, faults."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelhdm.data.prepare.prepare import prepare
from tests.data.reading.servers import S3_ENVIRONMENT, WebServer, s3_server
from tests.e2e.conftest import QUICK, ROOT, checkpoint, differences, finish, start, watched
from tests.e2e.watch import command_line

SIZES = {(17, 17): 14, (20, 13): 9, (13, 20): 13, (7, 7): 3}  # width, height: how many
KEPT, STEPS = 36, 11  # images and batches of an epoch: 4 + 3 + 4, of up to 4 images
END = 26  # two epochs and a bit
OVERLAY = """
trainer: {{max_steps: {end}, default_root_dir: run, limit_val_batches: 0}}
data:
  batch_size: 4
  sampler: {{class_path: BufferedShufflePlan, init_args: {{window: 12}}}}
  buckets: {{sizes: [[8, 8], [8, 12], [12, 8]]}}
  train:
    class_path: Shards
    init_args: {{path: {path}, flip_prob: 0.5, crop: random}}
  val:
    class_path: Shards
    init_args: {{path: {path}}}
model:
  optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.05, momentum: 0.9}}}}
checkpoint: {{every_n_steps: 1}}
"""


# Runs in processes of their own -------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def fork_server() -> Iterable[None]:
    """A process that has imported everything; each run is forked from it within a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        forkserver.set_forkserver_preload(["tests.e2e.watch"])
        forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()


class Life:
    """A run of the command line in one process or several, as torch.distributed.run starts them."""

    def __init__(self, *arguments: str, processes: int = 1, **environment: str):
        self.output = Path(f"output{len(list(Path().glob('output*')))}.txt").resolve()
        self.output.touch()
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        self.processes = []
        for rank in range(processes):
            own = {"MARK": self.mark, **environment}
            if processes > 1:
                own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                own |= {"TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
                own |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
                own |= {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
                own |= {"GROUP_RANK": "0"}
            call = (["fit", *arguments], str(Path.cwd()), str(self.output), own)
            self.processes.append(context.Process(target=command_line, args=call))
            self.processes[-1].start()

    def end(self, code: int = 0, within: float = 60) -> str:
        """Wait for it; what it has printed."""
        deadline = time.monotonic() + within
        try:
            for process in self.processes:
                process.join(max(deadline - time.monotonic(), 0))
            codes = [process.exitcode for process in self.processes]
            assert codes == [code] * len(codes), self.output.read_text()
        finally:
            for process in self.processes:
                process.kill()
        return self.output.read_text()

    def left_behind(self) -> list[str]:
        """Processes of this run that are still there."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue
        return found


def fit(*arguments: str, code: int = 0, processes: int = 1, **environment: str) -> str:
    """Train, and give what was printed."""
    return Life(*arguments, processes=processes, **environment).end(code)


def lines(name: str, folder: str | Path, rank: int = 0) -> list[Any]:
    """What the callback Record has written."""
    file = Path(folder) / f"{name}{rank}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def batches(folder: str | Path, rank: int = 0) -> list[dict[str, Any]]:
    return lines("batches", folder, rank)


def images(rows: Iterable[dict[str, Any]]) -> list[tuple]:
    """All images of batches, with all that a step sees of each."""
    names = ("index", "seed", "condition", "pixels")
    return [
        (tuple(row["size"]), *(row[name][slot] for name in names))
        for row in rows
        for slot, weight in enumerate(row["weight"])
        if weight
    ]


def assert_each_once(rows: Iterable[dict[str, Any]], times: int = 1) -> None:
    """Each image of the data set came as often as said, with another seed each time."""
    seen = images(rows)
    counts = Counter(index for _, index, *_ in seen)
    assert len(counts) == KEPT
    assert set(counts.values()) == {times}
    assert len({seed for _, _, seed, *_ in seen}) == KEPT * times


def of_epoch(rows: Iterable[dict[str, Any]], epoch: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["epoch"] == epoch]


# Data ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of images of several sizes, three of them too small for any bucket."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    sizes = [size for size, num in SIZES.items() for _ in range(num)]
    for number, (width, height) in enumerate(sizes):
        file = folder / f"images/{'abc'[number % 3]}/{number:02d}.{('jpg', 'png')[number % 2]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        file.with_suffix(".txt").write_text(f"picture {number}")
    prepare(
        str(folder / "images"), str(folder / "shards"), labels="folders", images_per_shard=10,
        min_side=4, num_processes=1,
    )  # fmt: skip
    return folder / "shards"


@pytest.fixture(scope="module")
def config(shards: Path) -> list[str]:
    """The flags of a quick run on them."""
    file = shards.parent / "config.yaml"
    file.write_text(OVERLAY.format(path=shards, end=END))
    return [*QUICK, "-c", str(file)]


RECORD = watched("Record")


def killed_at(step: int) -> list[str]:
    """The flags of a run that is recorded until a SIGKILL ends it."""
    return [*watched("KillAt", f"step={step}"), "--trainer.callbacks+=tests.e2e.watch.Record"]


@pytest.fixture(scope="module")
def whole(config: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, with what it has printed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(*config, *RECORD, "--checkpoint.keep=0")
    return folder


# Tests --------------------------------------------------------------------------------------------


def test_each_image_comes_once_an_epoch_and_the_table_says_so(whole):
    rows = batches(whole / "run")
    assert len(rows) == END
    for epoch in (0, 1):
        assert_each_once(of_epoch(rows, epoch))
        assert len(of_epoch(rows, epoch)) == STEPS
    assert [row["trainer_epoch"] for row in rows] == [row["epoch"] for row in rows]
    orders = [[index for _, index, *_ in images(of_epoch(rows, epoch))] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    output = next(whole.glob("output*")).read_text()
    assert "36 of 39 images, 11 batches an epoch, 8 padded slots (weight 0)" in output
    assert "dropped: 3 (7.7%) too small" in output
    assert [line.split()[:7] for line in output.splitlines() if " x " in line][1:4] == [
        ["8", "x", "12", "9", "25.0%", "3", "4"],
        ["12", "x", "8", "13", "36.1%", "4", "4"],
        ["8", "x", "8", "14", "38.9%", "4", "4"],
    ]
    assert not (whole / "run/bad_samples.jsonl").exists()


def test_processes_share_each_step(whole, config):
    """Two by the real launcher, four forked; then one process goes on where two were."""
    flags = [*config, *RECORD, "--trainer.strategy=ddp", "--checkpoint.keep=0"]
    two = [*flags, "--trainer.devices=2", "--data.batch_size=2", "--trainer.default_root_dir=2"]
    launched = start("fit", *two, processes=2)
    four = [*flags, "--trainer.devices=4", "--data.batch_size=1", "--trainer.default_root_dir=4"]
    fit(*four, processes=4)
    finish(launched)
    alone, last = batches(whole / "run"), checkpoint(whole / "run", END)["state_dict"]
    for world in (2, 4):
        ranks = [batches(str(world), rank) for rank in range(world)]
        for one, *parts in zip(alone, *ranks, strict=True):
            assert all(part["size"] == one["size"] for part in parts)
            assert images(parts) == images([one])
        for key, value in checkpoint(str(world), END)["state_dict"].items():
            torch.testing.assert_close(value, last[key], rtol=1e-4, atol=1e-5)
    fit(*config, *RECORD, "--ckpt_path=2/checkpoints/step_00000007.ckpt")
    assert batches("run") == alone[7:]
    for key, value in checkpoint("run", END)["state_dict"].items():
        torch.testing.assert_close(value, last[key], rtol=1e-4, atol=1e-5)


WORKERS = {
    "none": ["--data.num_workers=0"],
    "threads": ["--data.num_workers=3"],
    "processes": ["--data.num_workers=2", "--data.executor=process"],
}


def test_kills_leave_no_trace(whole, config):
    """SIGKILL within an epoch, at its end, and within the next; other workers in each life."""
    for step, workers, more in (
        (4, "none", []),
        (STEPS, "threads", ["--ckpt_path=last"]),
        (15, "processes", ["--ckpt_path=last"]),
    ):
        life = Life(*config, *killed_at(step), *WORKERS[workers], *more)
        life.end(-signal.SIGKILL)
    fit(*config, *RECORD, "--ckpt_path=last")
    assert differences(checkpoint(whole / "run", END), checkpoint("run", END)) == []
    assert batches("run") == batches(whole / "run")
    deadline = time.monotonic() + 10
    while left := life.left_behind():
        assert time.monotonic() < deadline, f"orphans: {left}"
        time.sleep(0.05)
