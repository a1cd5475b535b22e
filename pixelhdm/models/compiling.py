"""torch.compile, block by block: one graph for images and texts of any size."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from pixelhdm.errors import UserError
from pixelhdm.models.compile_report import REPORT
from pixelhdm.models.network import Network

RECOMPILE_LIMIT = 1024  # of graphs; beyond its own, 8, torch would go on eagerly


def compile_blocks(
    network: Network, mode: str | None = None, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Let torch.compile make each block of a network faster, from its next call on.

    Blocks of one class share their graphs, and the names of the weights stay as they are. Whatever
    is compiled from now on is reported. Sharded blocks must be sharded before.

    Args:
        network: its all_blocks are compiled; what is between them is small and stays eager.
        mode: of torch.compile: reduce-overhead, max-autotune; empty for its default.
        backend: of torch.compile.

    Raises:
        UserError: this machine has no compiler for the device.
    """
    if backend == "inductor":
        check_compilers(next(network.parameters()).device)
    import torch._dynamo.config as settings  # takes a second, which --help should not

    settings.recompile_limit = max(settings.recompile_limit, RECOMPILE_LIMIT)
    settings.accumulated_recompile_limit = max(
        settings.accumulated_recompile_limit, RECOMPILE_LIMIT
    )
    # It would cut graphs under DDP, to whom the gradients already come block by block.
    settings.optimize_ddp = False
    REPORT.watch(network)
    # einops notes every type of array that it meets, and graphs do not outlive a new note.
    for one in (np.zeros((1, 1)), torch.zeros(1, 1), nn.Parameter(torch.zeros(1, 1))):
        rearrange(one, "a b -> b a")
    for block in network.all_blocks:
        # Left alone, torch compiles for the first sizes, and for any once others come.
        block.compile(mode=mode, backend=backend, dynamic=False)


def check_compilers(device: torch.device) -> None:
    """Raise unless torch.compile has what it needs for a device."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                "torch.compile must have Triton on a GPU, got none. Install it (pip install "
                "triton, on Windows triton-windows), or leave compile out."
            )
        if not any(map(shutil.which, ("cc", "gcc", "clang"))):
            raise UserError(
                "torch.compile must have a C compiler on a GPU, got none. Install one (apt-get "
                "install gcc), or leave compile out."
            )
    elif device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError) as error:
            raise UserError(
                "torch.compile must have a C++ compiler on a CPU, got none. Install one (apt-get "
                "install g++) or name it in the variable CXX, or leave compile out."
            ) from error
