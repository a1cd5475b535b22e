"""Multi-axis rotary position embedding (mRoPE): one rotation per axis, side by side in a head.

Rotary embedding: arXiv:2104.09864, eq. 34; several axes: Lumina-Image 2.0, arXiv:2503.21758.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from pixelhdm.errors import UserError

Rotation = tuple[Float[Tensor, "... S hd"], Float[Tensor, "... S hd"]]


def image_positions(height: int, width: int, offset: Tensor) -> Int[Tensor, "B L 3"]:
    """Positions (offset, row, column) of a `height` x `width` grid, one offset per sample."""
    rows = torch.arange(height, device=offset.device)
    columns = torch.arange(width, device=offset.device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    grid = repeat(grid, "h w two -> b (h w) two", b=len(offset))
    return torch.cat([repeat(offset, "b -> b l 1", l=height * width), grid], dim=-1)


def token_positions(length: int, device: torch.device) -> Int[Tensor, "1 T 3"]:
    """Positions (n, 0, 0) of `length` context tokens."""
    n = rearrange(torch.arange(length, device=device), "t -> 1 t 1")
    return torch.nn.functional.pad(n, (0, 2))


def rotation(positions: Int[Tensor, "B S axes"], dims: tuple[int, ...], theta: float) -> Rotation:
    """Cosine and sine of position * theta^(-2j / dim) for each axis, twice: for each of a pair.

    The first sine of a pair is negative, as in (x, y) -> (x cos - y sin, y cos + x sin).

    Always float32: an angle of a few hundred radians has no correct digit left in bfloat16.

    Returns:
        Two tensors B S head_dim, with head_dim = sum(dims); a head axis is added when they are
        applied.
    """
    angles = []
    for axis, dim in enumerate(dims):
        power = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
        angles.append(positions[..., axis, None].float() * theta**-power)
    angle = torch.cat(angles, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return repeat(cos, "b s d -> b s (d pair)", pair=2), rearrange(
        [-sin, sin], "pair b s d -> b s (d pair)"
    )


def rotate(x: Float[Tensor, "B heads S d"], by: Rotation) -> Float[Tensor, "B heads S d"]:
    """Rotate the channel pairs (0, 1), (2, 3), … of `x` by the angles of `rotation`."""
    cos, sin = (rearrange(part, "b s d -> b 1 s d") for part in by)
    swapped = rearrange(x, "b n s (d pair) -> b n s d pair", pair=2).roll(1, dims=-1)
    return torch.addcmul(x * cos, rearrange(swapped, "b n s d pair -> b n s (d pair)"), sin).to(
        x.dtype
    )


def check_rope_dims(dims: tuple[int, ...], head_dim: int) -> None:
    """Raise unless the axes' shares of a head are even and fill it."""
    if sum(dims) != head_dim or any(dim % 2 or dim < 0 for dim in dims):
        raise UserError(
            f"rope_dims must be even numbers with the sum head_dim={head_dim}, got {list(dims)}. "
            f"Give about a quarter to the context axis and share the rest between row and column."
        )
