"""Which kernels compute a network's attention, in one line."""

import torch
from torch import nn

from pixelhdm.models.attention import Attention
from pixelhdm.models.attention_kernels import Obstacle, flash_obstacle, flash_version, takes_flash
from pixelhdm.models.packing import has_kernel


def attention_report(network: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """The kernels that a network's attention takes, for people; None where it has no attention.

    Args:
        network: its layers tell which kernel they ask for.
        device: where it will run.
        dtype: type of the matrix products.

    Raises:
        UserError: flash-attn is asked for and cannot be had.
    """
    layers = [part for part in network.modules() if isinstance(part, Attention)]
    if not layers:
        return None
    cases = {(layer.kernel, layer.head_dim) for layer in layers}
    if all(takes_flash(kernel, device, dtype, head_dim) for kernel, head_dim in cases):
        return f"Attention: flash-attn {flash_version()}, also for padded batches."
    packs = all(has_kernel(device, dtype, head_dim, kernel) for kernel, head_dim in cases)
    padded = "its varlen_attn" if packs else "a mask"
    obstacles = [
        flash_obstacle(device, dtype, head_dim) for kernel, head_dim in cases if kernel != "sdpa"
    ]
    found = next((part for part in obstacles if isinstance(part, Obstacle)), None)
    why = "" if found is None else f" ({found.reason})"
    return f"Attention: PyTorch's SDPA{why}, with {padded} for padded batches."
