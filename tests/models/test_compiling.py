"""What torch.compile makes of networks, and the kernel beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.models.compiling import compile_blocks
from pixelhdm.models.pixel_kernel import choose_pixel_kernel
from tests.e2e.life import ROOT, Life
from tests.models import compiled_networks, interpreted_kernel


def test_compiled_networks_equal_eager_ones_and_report_what_is_new(tmp_path: Path) -> None:
    script, cache = Path(compiled_networks.__file__), str(tmp_path / "cache")
    printed = Life(script=script, folder=tmp_path, TORCHINDUCTOR_CACHE_DIR=cache).end()
    lines = [line.rsplit(" … ", 1)[0] for line in printed.splitlines() if "Compiling" in line]
    assert lines[-5:] == [
        "Compiling for 16x16, batch 2, 32 context tokens, masked (1 of 2)",
        "Compiling for 16x16, batch 2, 20 context tokens (1 of 2)",
        "Compiling for 8x16, batch 3, 32 context tokens, masked (2 of 2)",
        "Compiling for 8x16, batch 3, 20 context tokens (2 of 2)",
        "Compiling for 16x16, batch 4, 4 context tokens, masked, without gradients",
    ]


def test_the_triton_kernel_is_its_formula() -> None:
    pytest.importorskip("triton")
    # Not a Life: Triton reads the variable when it is imported.
    own = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, interpreted_kernel.__file__], env=own, check=True)


def test_without_a_gpu_the_plain_form_computes() -> None:
    network = compiled_networks.pixelhdm()
    assert choose_pixel_kernel(network, "plain")
    assert choose_pixel_kernel(network, "triton") == torch.cuda.is_available()


def test_without_a_compiler_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match=r"must have a C\+\+ compiler on a CPU, got none. Install"):
        compile_blocks(compiled_networks.pixelhdm())
