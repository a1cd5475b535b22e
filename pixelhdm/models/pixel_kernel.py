"""Which kernel computes the modulated norms of pixels."""

from importlib.util import find_spec
from typing import Literal

import torch

from pixelhdm.errors import check_one_of
from pixelhdm.models.blocks import PixelBlock
from pixelhdm.models.network import Network

PixelKernel = Literal["plain", "triton"]


def choose_pixel_kernel(network: Network, kernel: PixelKernel) -> bool:
    """Let all PixelBlocks inside use a kernel; whether this machine has it.

    Without Triton or a GPU, and for tensors on the CPU, "triton" computes the plain form.
    """
    check_one_of(PixelKernel, pixel_kernel=kernel)
    chosen = None
    if kernel == "triton" and find_spec("triton") and torch.cuda.is_available():
        from pixelhdm.models.triton_norm import modulated_rms_norm  # imports Triton, for seconds

        chosen = modulated_rms_norm
    for part in network.modules():
        if isinstance(part, PixelBlock):
            part.kernel = chosen
    return kernel == "plain" or chosen is not None
