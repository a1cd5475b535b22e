"""The command plan through the real command line, without data, weights and network."""

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

CONFIG = ("-c", ROOT / "configs_c2i/base.yaml", "-c", ROOT / "configs_c2i/imagenet_256.yaml")
TINY = (*CONFIG, "-c", ROOT / "tests/offline.yaml", "--model.loss.repa=null")
ON_GPU = ("--trainer.accelerator=auto", "--trainer.precision=bf16-mixed")


@pytest.fixture(autouse=True)
def no_data(run_folder: Path) -> None:
    """The plan needs none."""
    shutil.rmtree("data")


def failing(run, *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        run("plan", *arguments)
    return str(end.value)


def test_a_gpu_s_plan_says_memory_speed_and_what_fits(run):
    text = run("plan", *TINY, *ON_GPU, "--gpu", "rtx 4090", "--json", "plan.json")
    assert "RTX 4090: fits with" in text
    assert "8 steps take" in text
    found = json.loads(Path("plan.json").read_text())["RTX 4090"]
    assert found["total_gib"] == pytest.approx(sum(found["gib"].values()))
    assert found["free_gib"] == pytest.approx(24 - found["total_gib"])
    most = found["largest_batch"]
    assert most["all"]["images"] > most["none"]["images"] > 8
    assert found["images_per_second"] == pytest.approx(8 / found["step_seconds"])
    assert not list(Path.cwd().glob("runs/*/checkpoints"))


def test_what_does_not_fit_gets_flags_that_do(run):
    batch = ("--data.batch_size=4194304", "--gpu=T4")
    text = run("plan", *TINY, *ON_GPU, *batch, "--trainer.max_steps=5")
    flags = text.split("too much. With ")[1].split(" it takes")[0].split()
    fitting = run("plan", *TINY, *ON_GPU, "--gpu=T4", *flags)
    assert "T4: fits" in fitting


def test_mistakes_end_with_one_sentence(run):
    assert "gpu must be this or one of T4" in failing(run, *TINY, "--gpu=voodoo")
    assert "num_gpus must be at least 1" in failing(run, *TINY, "--num_gpus=0")
    assert "Did you mean gpu" in failing(run, *TINY, "--gpus=t4")
