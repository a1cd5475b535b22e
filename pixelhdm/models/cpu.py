"""When a layer may replace PyTorch's operators by its own, and a heap that keeps its pages."""

import ctypes
import sys

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library


def is_eager() -> bool:
    """Whether operators run as written: no compiler and no function transform looks at them."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def is_eager_float32_cpu(x: Tensor) -> bool:
    """Whether `x` is float32 on a CPU, computed eagerly and without autocast."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and is_eager()
        and not torch.is_autocast_enabled("cpu")
    )


def keep_heap() -> bool:
    """Let the C library keep freed memory for the rest of the process, instead of returning it.

    By default every gradient of some megabytes is new memory in every step, and the system zeroes
    it page by page: a fifth of the time of a training step of the default network on one core.
    Afterwards freed memory is used again, and the process never shrinks below its peak.

    Returns:
        False where the C library is not GNU's, and nothing was changed.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
