"""PixelDiT's networks: sizes from shapes, and where each tensor goes (spec of the official files:
arXiv:2511.20645's repository, NVlabs/PixelDiT).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pixelhdm.converting.embeddings import text_moves, time_moves
from pixelhdm.converting.moves import Change, Move, layer, patch_columns, same, under, weight
from pixelhdm.converting.pixeldit_blocks import Sizes, block_moves, dual_moves, pixel_moves
from pixelhdm.converting.plan import (
    CONDITIONERS,
    Plan,
    class_conditioner,
    depth_of,
    heads_of,
    patch_size_of,
    shape_of,
)

State = Mapping[str, Tensor]
C2I_FEATURES, T2I_FEATURES = 8, 6  # block that REPA looked at


def sizes_of(state: State, q_norm: str) -> Sizes:
    """The sizes; `q_norm` is the name of the first block's norm of queries."""
    dim, numbers = shape_of(state, "s_embedder.proj.weight", 2)
    pixel, _ = shape_of(state, "pixel_embedder.proj.weight", 2)
    attention, flat = shape_of(state, "pixel_blocks.0.compress_to_attn.weight", 2)
    return Sizes(
        dim,
        patch_size_of(numbers),
        depth_of(state, "patch_blocks"),
        heads_of(state, f"patch_blocks.0.{q_norm}.weight", dim),
        pixel,
        depth_of(state, "pixel_blocks"),
        attention,
        heads_of(state, "pixel_blocks.0.attn.q_norm.weight", attention),
        shape_of(state, "pixel_blocks.0.adaLN_modulation.0.weight", 2)[0] == 4 * flat,
    )


def class_plan(state: State) -> Plan:
    """The plan of a class-conditional PixelDiT."""
    s, table = sizes_of(state, "attn.q_norm"), "y_embedder.embedding_table"
    num_rows = shape_of(state, f"{table}.weight", 2)[0]
    s = s._replace(pixel_attention=s.dim, pixel_heads=s.heads)
    moves = shared_moves(s, same) + weight(table, "conditioner.pooled", num_rows, s.dim)
    for i in range(s.depth):
        moves += under(f"patch_blocks.{i}", f"network.blocks.{i}", block_moves(s.dim, s.heads))
    settings = network_settings(s) | {"feature_block": min(C2I_FEATURES, s.depth)}
    return Plan(
        {"class_path": "pixelhdm.models.dit.PixelDiT", "init_args": settings},
        class_conditioner(num_rows),
        moves,
    )


def text_plan(state: State) -> Plan:
    """The plan of a PixelDiT-T2I, whose output noise - x becomes x - noise."""
    s = sizes_of(state, "attn.q_norm_x")
    text_width = shape_of(state, "y_embedder.proj.weight", 2)[1]
    length = shape_of(state, "y_pos_embedding", 3)[1]
    moves = shared_moves(s, torch.neg) + text_moves(s.dim, text_width, length)
    for i in range(s.depth):
        moves += under(f"patch_blocks.{i}", f"network.blocks.{i}", dual_moves(s.dim, s.heads))
    settings = network_settings(s) | {
        "pixel_attention_dim": s.pixel_attention,
        "pixel_num_heads": s.pixel_heads,
        "noise_time": True,
        "feature_block": min(T2I_FEATURES, s.depth),
    }
    return Plan(
        {"class_path": "pixelhdm.models.mmdit.MMPixelDiT", "init_args": settings},
        {
            "class_path": f"{CONDITIONERS}.positioned_text_conditioner.GemmaConditioner",
            "init_args": {"width": text_width, "max_length": length, "attends_padding": True},
        },
        moves,
    )


def network_settings(s: Sizes) -> dict[str, int | bool]:
    """The arguments that both networks take."""
    return {
        "hidden_dim": s.dim,
        "pixel_dim": s.pixel,
        "patch_size": s.patch,
        "patch_depth": s.depth,
        "pixel_depth": s.pixel_depth,
        "num_heads": s.heads,
        "post_modulation": s.is_post,
    }


def shared_moves(s: Sizes, output: Change) -> list[Move]:
    """All but the condition's and the patch blocks'; `output` changes the last layer."""
    path = "network.pixel_path"
    moves = weight(
        "s_embedder.proj",
        "network.patch_embedding",
        s.dim,
        3 * s.patch**2,
        change=patch_columns(s.patch),
    )
    moves.append(Move("s_embedder.proj.bias", "network.patch_embedding.bias", (s.dim,)))
    moves += time_moves(s.dim) + layer("pixel_embedder.proj", f"{path}.embedding", s.pixel, 3)
    for i in range(s.pixel_depth):
        moves += under(f"pixel_blocks.{i}", f"{path}.blocks.{i}", pixel_moves(s))
    moves += weight("final_layer.norm", f"{path}.norm", s.pixel)
    return moves + layer("final_layer.linear", f"{path}.final", 3, s.pixel, change=output)
