"""The real command line, in this process or in its own."""

import csv
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pixelhdm import cli
from pixelhdm.callbacks import throughput
from pixelhdm.models.encoders.dino import DINOv3
from tests.e2e.life import ROOT, fit

QUICKSTART = [
    "-c",
    str(ROOT / "configs_c2i/quickstart.yaml"),
    "-c",
    str(ROOT / "tests/offline.yaml"),
    "--trainer.limit_val_batches=2",  # of 23, which take longer than all training
]
QUICK = [
    *QUICKSTART,
    "--trainer.limit_val_batches=0",
    "--sample_images.every_n_steps=0",
]  # training alone

measured_once = functools.cache(throughput.quick_peak)


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in its own folder, where the digits lie as a run has left them, to be
    written only once, and runs/ appears.
    """
    shutil.copytree(quickstart / "data", tmp_path / "data", copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run the command line here and return what it printed; a SystemExit passes through."""
    monkeypatch.setattr(throughput, "quick_peak", measured_once)

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        cli.main()
        return "".join(capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run, with runs/ and data/."""
    folder = tmp_path_factory.mktemp("quickstart")
    fit(*QUICKSTART, folder=folder)
    return folder


@pytest.fixture
def trained(run_folder: Path, quickstart: Path) -> None:
    """runs/quickstart is there as `fit` leaves it."""
    shutil.copytree(quickstart / "runs", "runs")


def start(
    *arguments: object, processes: int = 1, folder: str | Path | None = None
) -> subprocess.Popen:
    """Start the command line as a person does, where that itself is to be tested: a Life is there
    sooner.
    """
    launcher = (
        []
        if processes == 1
        else ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, *launcher, str(ROOT / "main.py"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for it and return its output."""
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a launcher's processes too
        raise
    assert process.returncode == code, output
    return output


def with_repa(teacher: DINOv3, projector: str = "conv") -> str:
    """The flag that adds REPA with a saved teacher; "conv" is the smaller projector."""
    files = f"{{class_path: DINOv3, init_args: {{source: {teacher.source}, dim: {teacher.dim}}}}}"
    settings = f"{{projector: {projector}, teacher: {files}}}"
    return f"--model.loss.init_args.repa={{class_path: RepaLoss, init_args: {settings}}}"


def watched(name: str, *settings: str) -> list[str]:
    """The flags that add a callback of watch.py."""
    path = "--trainer.callbacks"
    return [f"{path}=tests.e2e.watch.{name}", *(f"{path}.{setting}" for setting in settings)]


def logged(folder: str | Path, name: str) -> list[float]:
    """The values of a number in a run's metrics.csv, those of a resumed run after the first's."""
    files = sorted(Path(folder).glob("logs/version_*/metrics.csv"))
    rows = [row for file in files for row in csv.DictReader(file.open(encoding="utf-8"))]
    return [float(row[name]) for row in rows if row.get(name)]


def checkpoint(folder: str | Path, step: int) -> dict:
    """A checkpoint's content."""
    return torch.load(Path(folder) / f"checkpoints/step_{step:08d}.ckpt", weights_only=True)


def differences(a: object, b: object, path: str = "") -> list[str]:
    """Where two checkpoints differ, to the bit."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [f"{path}/{key}" for key in a.keys() ^ b.keys()]
        return keys + [
            d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{path}/{key}")
        ]
    if isinstance(a, list | tuple) and len(a) == len(b):
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{path}/{i}")
        ]
    return [] if a == b else [path]
