"""Multi-axis rotary position embedding (mRoPE): one rotation per axis, side by side in a head.

Rotary embedding: arXiv:2104.09864, eq. 34; several axes: Lumina-Image 2.0, arXiv:2503.21758.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pixelhdm.errors import UserError

THETA = 10_000.0
Rotation = tuple[Float[Tensor, "... _ hd"], Float[Tensor, "... _ hd"]]


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


def grid_rotation(
    height: int,
    width: int,
    head_dim: int,
    device: torch.device,
    ends: tuple[float, float] | None = None,
    num_context: int = 0,
) -> Rotation:
    """Rotation of a grid's patches, after `num_context` tokens that do not turn; base 10,000.

    Args:
        height: rows.
        width: columns.
        head_dim: channels per head, a multiple of 4: a half for each axis.
        device: where to compute.
        ends: position of the last row and column, with even steps from 0 on: then the pairs of
            column and row take turns in a head (PixelDiT, DeCo: 16 at every size). Empty: steps of
            1, and the rows' pairs before the columns' (JiT).
        num_context: tokens before the grid.
    """
    if ends is None:
        axes = [torch.arange(num, device=device) for num in (height, width)]
    else:
        axes = [
            torch.linspace(0, end, num, device=device)
            for end, num in zip(ends, (height, width), strict=True)
        ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    positions = torch.nn.functional.pad(
        rearrange(grid, "h w two -> 1 (h w) two"), (0, 0, num_context, 0)
    )
    dims = (head_dim // 2, head_dim // 2)
    if ends is None:
        return rotation(positions, dims, THETA)
    return rotation(positions.flip(-1), dims, THETA, interleaved=True)


def line_rotation(length: int, head_dim: int, device: torch.device) -> Rotation:
    """Rotation of tokens 0, 1, … of a text over all pairs of a head; base 10,000."""
    positions = rearrange(torch.arange(length, device=device), "t -> 1 t 1")
    return rotation(positions, (head_dim,), THETA)


def rotation(
    positions: Shaped[Tensor, "B S axes"],
    dims: tuple[int, ...],
    theta: float,
    interleaved: bool = False,
) -> Rotation:
    """Cosine and sine of position * theta^(-2j / dim) for each axis, twice: for each of a pair.

    The axes' pairs lie side by side in a head or, where `interleaved` and equally many, in turn.

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
    if interleaved:
        angle = rearrange(angles, "parts b s d -> b s (d parts)")
    else:
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
