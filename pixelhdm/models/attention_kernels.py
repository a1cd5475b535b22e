"""Which kernel computes attention: flash-attn's or PyTorch's."""

from functools import lru_cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pixelhdm.errors import UserError, reason_of
from pixelhdm.models.precision import HALF, product_dtype

AttentionKernel = Literal["auto", "sdpa", "flash"]
CAPABILITY = (8, 0)  # of the device, which flash attention asks for
MAX_HEAD_DIM = 256
INSTALL = "pip install flash-attn --no-build-isolation, or leave attention at auto"


class Obstacle(NamedTuple):
    """Why flash-attn cannot compute a case.

    Attributes:
        reason: as a clause.
        remedy: as a sentence.
    """

    reason: str
    remedy: str


def takes_flash(
    kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int
) -> bool:
    """Whether flash-attn computes a case: with "auto" and "flash" where it can.

    Args:
        kernel: what is asked for.
        device: where the queries are; on "meta" nothing is computed, so nothing is refused.
        dtype: type of the matrix products.
        head_dim: channels of a head.

    Raises:
        UserError: "flash" is asked for and cannot be had.
    """
    if kernel == "sdpa" or device.type == "meta":
        return False
    obstacle = flash_obstacle(device, dtype, head_dim)
    if obstacle is not None and kernel == "flash":
        raise UserError(
            f"attention must be auto or sdpa where {obstacle.reason}, got flash. {obstacle.remedy}"
        )
    return obstacle is None


# What torch.compiler.assume_constant_result sets: torch.compile shall not look into the search for
# a package. The function itself imports torch._dynamo, which takes a second.
takes_flash._dynamo_marked_constant = True


@lru_cache
def flash_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> Obstacle | None:
    """Why flash-attn cannot compute attention of queries with these properties; None if it can."""
    if device.type != "cuda":
        return Obstacle(f"the device is {device.type}, not CUDA", "Train and draw on a GPU.")
    if dtype not in HALF:
        name = str(dtype).removeprefix("torch.")
        remedy = "Use --trainer.precision bf16-mixed."
        return Obstacle(f"matrices are multiplied in {name}, not in half precision", remedy)
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        remedy = "Take another number of heads."
        rule = f"a multiple of 8 up to {MAX_HEAD_DIM}"
        return Obstacle(f"a head has {head_dim} channels, not {rule}", remedy)
    found = flash_version()
    if isinstance(found, Obstacle):
        return found
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        own, least = (".".join(map(str, pair)) for pair in (capability, CAPABILITY))
        remedy = "Leave attention at auto."
        return Obstacle(f"the GPU has compute capability {own}, below {least}", remedy)
    return None


@lru_cache
def flash_version() -> str | Obstacle:
    """The version of the installed flash-attn, or why there is none; it is imported here, at the
    first need.

    Packages flash-attn and flash-attn-4 both install `flash_attn`; the functions are in the first.
    """
    try:
        from flash_attn import __version__, flash_attn_func, flash_attn_varlen_func  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "flash_attn":
            return Obstacle("flash-attn is not installed", f"Install it ({INSTALL}).")
        return broken(error)
    except ImportError as error:
        if error.name == "flash_attn" and find_spec("flash_attn.cute") is not None:
            reason = "only flash-attn-4 is installed, which has other functions"
            return Obstacle(reason, f"Install flash-attn 2 ({INSTALL}).")
        return broken(error)
    except (OSError, RuntimeError) as error:
        return broken(error)
    return __version__


def broken(error: Exception) -> Obstacle:
    """What to say of a flash-attn that cannot be imported."""
    reason = f"flash-attn cannot be loaded ({reason_of(error)})"
    return Obstacle(
        reason,
        "It was probably built for another PyTorch. Build it again (pip install flash-attn "
        "--no-build-isolation --no-deps --force-reinstall), or leave attention at auto.",
    )


def attend_flash(
    q: Float[Tensor, "B heads S d"], k: Float[Tensor, "B kv _ d"], v: Float[Tensor, "B kv _ d"]
) -> Float[Tensor, "B heads S d"]:
    """Attention by flash-attn, which takes fewer key heads as they are."""
    from flash_attn import flash_attn_func

    dtype = product_dtype(q.device, q.dtype)  # the kernel has no autocast rule
    heads = (rearrange(part, "b n s d -> b s n d").to(dtype) for part in (q, k, v))
    values = flash_attn_func(*heads, deterministic=torch.are_deterministic_algorithms_enabled())
    return rearrange(values, "b s n d -> b n s d")
