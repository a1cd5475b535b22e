"""What is known of a published network from the names and shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from pixelhdm.converting.moves import Move
from pixelhdm.errors import UserError
from pixelhdm.models.positions import sincos_positions

CONDITIONERS = "pixelhdm.models.conditioners"
MLP_RATIO = 4.0


@dataclass
class Plan:
    """How a published network becomes ours.

    Args:
        network: class path and arguments of the network, as a config has them.
        conditioner: those of the conditioner.
        moves: where its tensors go.
        fixed: tensors that our network computes, with the values that they must have.
        side: side of the images in pixels that it was trained at; None where the weights do not
            tell.
    """

    network: dict[str, Any]
    conditioner: dict[str, Any]
    moves: list[Move]
    fixed: dict[str, Tensor] = field(default_factory=dict)
    side: int | None = None


def class_conditioner(num_rows: int) -> dict[str, Any]:
    """The conditioner with a class table of so many rows, of which the last is the empty class."""
    return {
        "class_path": f"{CONDITIONERS}.class_conditioner.ClassConditioner",
        "init_args": {"num_classes": num_rows - 1, "num_tokens": 0},
    }


def shape_of(state: Mapping[str, Tensor], name: str, num_axes: int) -> tuple[int, ...]:
    """The shape of a tensor that tells a network's size.

    Raises:
        UserError: it is not there or has other axes.
    """
    if name not in state:
        raise UserError(
            f"ckpt must hold {name}, which tells the network's size, got a file without it. Is it "
            "a part of one? Download it again."
        )
    shape = tuple(state[name].shape)
    if len(shape) != num_axes or 0 in shape:
        raise UserError(f"{name} in ckpt must have {num_axes} axes, got the shape {shape}.")
    return shape


def depth_of(state: Mapping[str, Tensor], group: str) -> int:
    """How many blocks of a group there are, by the highest number."""
    numbers = [re.match(rf"{group}\.(\d+)\.", name) for name in state]
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def heads_of(state: Mapping[str, Tensor], name: str, dim: int) -> int:
    """Number of heads that share a width, from the norm of one.

    Raises:
        UserError: they do not fill it.
    """
    (head_dim,) = shape_of(state, name, 1)
    if dim % head_dim:
        raise UserError(f"{name} in ckpt must divide the width {dim}, got {head_dim} numbers.")
    return dim // head_dim


def patch_size_of(numbers: int) -> int:
    """The side of a patch with so many numbers."""
    return math.isqrt(numbers // 3)


def positions_of(state: Mapping[str, Tensor], dim: int) -> tuple[dict[str, Tensor], int]:
    """The fixed positions of a square grid, and its side in patches."""
    side = math.isqrt(shape_of(state, "pos_embed", 3)[1])
    places = sincos_positions(side, side, dim, torch.device("cpu"))
    return {"pos_embed": rearrange(places, "h w d -> 1 (h w) d")}, side
