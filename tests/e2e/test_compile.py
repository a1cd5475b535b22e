"""Training and drawing with compiled blocks."""

from pathlib import Path

import pytest

from tests.e2e import compiled_run
from tests.e2e.conftest import QUICK, checkpoint, logged
from tests.e2e.life import Life

SCRIPT = Path(compiled_run.__file__)
RUN = "--trainer.default_root_dir=compiled"


def test_compiled_training_is_eager_training(run_folder: Path) -> None:
    sizes = "--data.buckets={sizes: [[8, 8], [8, 12]]}"  # all digits go to the first
    Life("fit", *QUICK, sizes, "--trainer.default_root_dir=eager").end()
    printed = Life("fit", *QUICK, sizes, "--model.compile=true", RUN, script=SCRIPT).end()
    assert "Compiling for 8x12, batch 8, 1 context token (1 of 2) … " in printed
    assert "Compiling for 8x8, batch 8, 1 context token (2 of 2) … " in printed
    assert printed.count("Compiling") == 2
    expected = logged("eager", "train/total")
    assert logged("compiled", "train/total") == pytest.approx(expected, rel=1e-4)
    state = checkpoint("compiled", 8)["state_dict"]
    assert state.keys() == checkpoint("eager", 8)["state_dict"].keys()
    config = "compiled/config.yaml"
    printed = Life("predict", "-c", config, "--ckpt_path=last", script=SCRIPT).end()
    assert printed.count("Compiling for 8x8, batch 8, 1 context token, without gradients … ") == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_compile_what_they_share(strategy: str, run_folder: Path) -> None:
    both = [*QUICK, "--data.batch_size=4", "--trainer.devices=2", "--trainer.max_steps=4"]
    both.append(f"--trainer.strategy={strategy}")
    Life("fit", *both, "--trainer.default_root_dir=eager", processes=2).end()
    compiled = Life("fit", *both, RUN, "--model.compile=true", processes=2, script=SCRIPT)
    assert compiled.end().count("Compiling") == 1
    expected = logged("eager", "train/total")
    assert logged("compiled", "train/total") == pytest.approx(expected, rel=1e-4)
