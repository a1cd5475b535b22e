"""Where each published tensor goes, and how it is rearranged on the way."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from pixelhdm.errors import UserError, counted

Change = Callable[[Tensor], Tensor]
POSITION_TOLERANCE = 1e-4


def same(value: Tensor) -> Tensor:
    """The value itself."""
    return value


class Move(NamedTuple):
    """The way of one tensor.

    Attributes:
        theirs: the published name.
        ours: the name in a checkpoint of PixelHDM.
        shape: the published shape.
        change: makes our tensor of the published one.
    """

    theirs: str
    ours: str
    shape: tuple[int, ...]
    change: Change = same


def weight(theirs: str, ours: str, *shape: int, change: Change = same) -> list[Move]:
    """The weight of a layer."""
    return [Move(f"{theirs}.weight", f"{ours}.weight", shape, change)]


def layer(theirs: str, ours: str, *shape: int, change: Change = same) -> list[Move]:
    """Weight and bias of a layer; `change` works on the rows of both."""
    bias = Move(f"{theirs}.bias", f"{ours}.bias", shape[:1], change)
    return [*weight(theirs, ours, *shape, change=change), bias]


def under(theirs: str, ours: str, moves: Iterable[Move]) -> list[Move]:
    """The same moves of a part of a network."""
    return [
        move._replace(theirs=f"{theirs}.{move.theirs}", ours=f"{ours}.{move.ours}")
        for move in moves
    ]


def patch_columns(patch_size: int) -> Change:
    """Turns columns (channel, row, column) of a patch into (row, column, channel)."""
    pattern = "d (c p q) -> d (p q c)"
    return partial(rearrange, pattern=pattern, c=3, p=patch_size, q=patch_size)


def patch_rows(patch_size: int) -> Change:
    """Turns rows (channel, row, column) of a patch into (row, column, channel)."""
    pattern = "(c p q) ... -> (p q c) ..."
    return partial(rearrange, pattern=pattern, c=3, p=patch_size, q=patch_size)


def scale_first(pixel_dim: int) -> Change:
    """Turns rows (pixel, shift scale gate shift scale gate, channel) into those with each scale
    before its shift.
    """

    def change(value: Tensor) -> Tensor:
        rows = rearrange(value, "(p six d) ... -> p six d ...", six=6, d=pixel_dim)
        return rearrange(rows[:, [1, 0, 2, 4, 3, 5]], "p six d ... -> (p six d) ...")

    return change


def half(number: int) -> Change:
    """Takes the first (0) or second (1) half of the rows."""
    return lambda value: value.chunk(2)[number]


def check_state(
    moves: list[Move], fixed: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str
) -> None:
    """Raise a UserError unless the state has the moves' tensors in their shapes, the fixed ones
    with their values, and no other.
    """
    shapes = {move.theirs: move.shape for move in moves}
    shapes |= {name: tuple(value.shape) for name, value in fixed.items()}
    missing = [name for name in shapes if name not in state]
    extra = [name for name in state if name not in shapes]
    other = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    told = [
        counted(names, kind)
        for kind, names in (("missing", missing), ("unknown", extra), ("of other shapes", other))
        if names
    ]
    if told:
        raise UserError(
            f"ckpt must hold exactly the tensors of {what}, got {'; '.join(told)}. Download the "
            "file again, or take the one that its authors published."
        )
    for name in shapes:
        if not state[name].is_floating_point() or state[name].layout != torch.strided:
            raise UserError(
                f"{name} of {what} must hold real numbers, got {state[name].dtype} in the layout "
                f"{state[name].layout}. Take the file that its authors published."
            )
    for name, value in fixed.items():
        tolerance = max(POSITION_TOLERANCE, torch.finfo(state[name].dtype).eps)
        if not torch.allclose(state[name].float(), value, rtol=0, atol=tolerance):
            raise UserError(
                f"{name} of {what} must hold the fixed sines and cosines of the patches' places, "
                "got other numbers. Weights with positions of their own cannot be converted."
            )


def converted(moves: list[Move], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, float32, of published ones that were checked."""
    return {move.ours: owned(move.change(state[move.theirs])) for move in moves}


def owned(value: Tensor) -> Tensor:
    """A float32 tensor that lies alone in its memory, so that a file holds it alone."""
    value = value.float().contiguous()
    is_part = value.untyped_storage().nbytes() != value.numel() * value.element_size()
    return value.clone() if is_part else value
