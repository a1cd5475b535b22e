"""What computes attention, chosen on the command line."""

from tests.e2e.conftest import QUICK
from tests.e2e.life import Life, fit

TOLD = "Attention: PyTorch's SDPA"
FLAGS = (*QUICK, "--trainer.max_steps=1")


def test_the_kernel_is_told_once_and_flash_attn_asked_for_on_a_cpu_is_refused():
    two = Life("fit", *FLAGS, "--trainer.devices=2", processes=2)
    refused = fit(*FLAGS, "--trainer.default_root_dir=flash", "--model.attention=flash", code=1)
    assert (
        "attention must be auto or sdpa where the device is cpu, not CUDA, got flash. Train and "
        "draw on a GPU." in refused
    )
    assert "Traceback" not in refused
    assert two.end().count(f"{TOLD} (the device is cpu, not CUDA), with a mask for padded") == 1
