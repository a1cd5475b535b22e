"""JiT's network and PixelGen's: sizes from shapes, and where each tensor goes (official files of
arXiv:2511.13720, LTH14/JiT, and arXiv:2602.02493, Zehong-Ma/PixelGen).
"""

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor

from pixelhdm.converting.embeddings import embedding_moves, time_moves
from pixelhdm.converting.moves import Move, half, layer, under, weight
from pixelhdm.converting.plan import (
    MLP_RATIO,
    Plan,
    class_conditioner,
    depth_of,
    heads_of,
    positions_of,
    shape_of,
)
from pixelhdm.errors import UserError
from pixelhdm.models.layers import swiglu_dim

State = Mapping[str, Tensor]
STARTS = {12: 4, 24: 8, 28: 8, 32: 10, 40: 10}  # first block with the class's tokens, by depth
FEATURES = 8  # block that REPA looked at
TABLE = "y_embedder.embedding_table"


def class_plan(state: State, in_context_start: int | None, dropout: float) -> Plan:
    """The plan of a JiT, which is PixelGen's class-conditional network too.

    Args:
        state: its tensors.
        in_context_start: first block with the class's tokens; empty takes the published one.
        dropout: what training drops.
    """
    (_, length, dim), depth = shape_of(state, "in_context_posemb", 3), depth_of(state, "blocks")
    inner, _, patch, _ = shape_of(state, "x_embedder.proj1.weight", 4)
    num_rows = shape_of(state, f"{TABLE}.weight", 2)[0]
    heads = heads_of(state, "blocks.0.attn.q_norm.weight", dim)
    has_bottleneck = "x_embedder.proj2.weight" in state
    moves = embedding_moves(dim, patch, inner if has_bottleneck else None) + time_moves(dim)
    position = Move(
        "in_context_posemb",
        "network.in_context_position",
        (1, length, dim),
        lambda value: rearrange(value, "1 t d -> t d"),
    )
    moves += [position, *weight(TABLE, "conditioner.pooled", num_rows, dim)]
    for i in range(depth):
        moves += under(f"blocks.{i}", f"network.blocks.{i}", block_moves(dim, dim // heads))
    moves += under("final_layer", "network.final", final_moves(dim, patch))
    fixed, side = positions_of(state, dim)
    settings = {
        "hidden_dim": dim,
        "patch_size": patch,
        "depth": depth,
        "num_heads": heads,
        "bottleneck_dim": inner if has_bottleneck else None,
        "in_context_len": length,
        "in_context_start": start_of(depth, in_context_start),
        "dropout": dropout,
        "feature_block": min(FEATURES, depth),
    }
    return Plan(
        {"class_path": "pixelhdm.models.jit.JiT", "init_args": settings},
        class_conditioner(num_rows),
        moves,
        fixed,
        side * patch,
    )


def start_of(depth: int, given: int | None) -> int:
    """The first block with the class's tokens, which the weights do not tell."""
    if given is None and depth not in STARTS:
        raise UserError(
            f"in_context_start must be given for a JiT of {depth} blocks, which is none of the "
            f"published ones ({', '.join(map(str, STARTS))}), got none. Set --in_context_start to "
            "the number of the first block, from 0, that sees the class's tokens."
        )
    return STARTS[depth] if given is None else given


def block_moves(dim: int, head_dim: int) -> list[Move]:
    """Those of a JiT block, whose SwiGLU has its first two layers in one."""
    inner = swiglu_dim(dim, MLP_RATIO)
    moves = norm_moves(dim, head_dim) + layer("attn.qkv", "attention.qkv", 3 * dim, dim)
    moves += layer("attn.proj", "attention.out", dim, dim)
    moves += layer("mlp.w12", "mlp.gate", 2 * inner, dim, change=half(0))
    moves += layer("mlp.w12", "mlp.up", 2 * inner, dim, change=half(1))
    moves += layer("mlp.w3", "mlp.out", dim, inner)
    return moves + layer("adaLN_modulation.1", "modulation", 6 * dim, dim)


def final_moves(dim: int, patch: int) -> list[Move]:
    """Those of the last layer, whose patches are ours."""
    moves = weight("norm_final", "norm", dim) + layer("linear", "linear", 3 * patch**2, dim)
    return moves + layer("adaLN_modulation.1", "modulation", 2 * dim, dim)


def norm_moves(dim: int, head_dim: int) -> list[Move]:
    """Those of a block's norms."""
    moves = weight("norm1", "norm1", dim) + weight("norm2", "norm2", dim)
    moves += weight("attn.q_norm", "attention.q_norm", head_dim)
    return moves + weight("attn.k_norm", "attention.k_norm", head_dim)
