"""PixelGen's text-to-image network: sizes from shapes, and where each tensor goes (files of
arXiv:2602.02493, Zehong-Ma/PixelGen).
"""

from collections.abc import Mapping

from torch import Tensor

from pixelhdm.converting.embeddings import text_moves, time_moves
from pixelhdm.converting.jit import FEATURES, norm_moves
from pixelhdm.converting.moves import Move, half, layer, patch_columns, patch_rows, under, weight
from pixelhdm.converting.plan import (
    CONDITIONERS,
    Plan,
    depth_of,
    heads_of,
    patch_size_of,
    positions_of,
    shape_of,
)

State = Mapping[str, Tensor]


def text_plan(state: State) -> Plan:
    """The plan of PixelGen's text-to-image network."""
    bottleneck, numbers = shape_of(state, "x_embedder.proj1.weight", 2)
    dim, text_width = shape_of(state, "y_embedder.proj.weight", 2)
    length, patch = shape_of(state, "y_pos_embedding", 3)[1], patch_size_of(numbers)
    heads = heads_of(state, "blocks.0.attn.q_norm.weight", dim)
    depth, text_depth = (depth_of(state, name) for name in ("blocks", "text_refine_blocks"))
    moves = weight(
        "x_embedder.proj1",
        "network.patch_embedding.0",
        bottleneck,
        numbers,
        change=patch_columns(patch),
    )
    moves += layer("x_embedder.proj2", "network.patch_embedding.1", dim, bottleneck)
    moves += time_moves(dim) + text_moves(dim, text_width, length)
    first = weight("attn.qkv_x", "attention.qkv", 3 * dim, dim)
    first += weight("attn.kv_y", "attention.kv_context", 2 * dim, dim)
    refining = weight("attn.qkv", "attention.qkv", 3 * dim, dim)
    rest = plain_moves(dim, dim // heads)
    for i in range(depth):
        moves += under(f"blocks.{i}", f"network.blocks.{i}", first + rest)
    for i in range(text_depth):
        moves += under(f"text_refine_blocks.{i}", f"network.text_blocks.{i}", refining + rest)
    moves += layer("final_layer.linear", "network.final", numbers, dim, change=patch_rows(patch))
    fixed, side = positions_of(state, dim)
    settings = {
        "hidden_dim": dim,
        "patch_size": patch,
        "depth": depth,
        "text_depth": text_depth,
        "num_heads": heads,
        "bottleneck_dim": bottleneck,
        "feature_block": min(FEATURES, depth),
    }
    return Plan(
        {"class_path": "pixelhdm.models.text_jit.TextJiT", "init_args": settings},
        {
            "class_path": f"{CONDITIONERS}.positioned_text_conditioner.PositionedTextConditioner",
            "init_args": {
                "source": "Qwen/Qwen3-1.7B",
                "width": text_width,
                "max_length": length,
                "attends_padding": True,
            },
        },
        moves,
        fixed,
        side * patch,
    )


def plain_moves(dim: int, head_dim: int) -> list[Move]:
    """Those of a text-to-image block, but its queries, keys and values."""
    moves = norm_moves(dim, head_dim) + layer("attn.proj", "attention.out", dim, dim)
    moves += weight("mlp.w12", "mlp.gate", 8 * dim, dim, change=half(0))
    moves += weight("mlp.w12", "mlp.up", 8 * dim, dim, change=half(1))
    moves += weight("mlp.w3", "mlp.out", dim, 4 * dim)
    return moves + layer("adaLN_modulation.0", "modulation", 6 * dim, dim)
