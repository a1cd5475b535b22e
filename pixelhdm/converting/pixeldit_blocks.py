"""Where the tensors of PixelDiT's blocks go."""

from typing import NamedTuple

from pixelhdm.converting.moves import Move, layer, same, scale_first, weight
from pixelhdm.converting.plan import MLP_RATIO
from pixelhdm.models.layers import swiglu_dim


class Sizes(NamedTuple):
    """Sizes of a PixelDiT."""

    dim: int
    patch: int
    depth: int
    heads: int
    pixel: int
    pixel_depth: int
    pixel_attention: int
    pixel_heads: int
    is_post: bool


def attention_moves(dim: int, num_heads: int) -> list[Move]:
    """Those of plain attention without biases of queries, keys and values."""
    head_dim = dim // num_heads
    moves = weight("attn.qkv", "attention.qkv", 3 * dim, dim)
    moves += weight("attn.q_norm", "attention.q_norm", head_dim)
    moves += weight("attn.k_norm", "attention.k_norm", head_dim)
    return moves + layer("attn.proj", "attention.out", dim, dim)


def swiglu_moves(theirs: str, ours: str, dim: int) -> list[Move]:
    """Those of a SwiGLU in three layers without biases."""
    inner = swiglu_dim(dim, MLP_RATIO)
    moves = weight(f"{theirs}.w1", f"{ours}.gate", inner, dim)
    moves += weight(f"{theirs}.w3", f"{ours}.up", inner, dim)
    return moves + weight(f"{theirs}.w2", f"{ours}.out", dim, inner)


def block_moves(dim: int, num_heads: int) -> list[Move]:
    """Those of a patch block."""
    moves = weight("norm1", "norm1", dim) + weight("norm2", "norm2", dim)
    moves += attention_moves(dim, num_heads) + swiglu_moves("mlp", "mlp", dim)
    return moves + layer("adaLN_modulation.0", "modulation", 6 * dim, dim)


def dual_moves(dim: int, num_heads: int) -> list[Move]:
    """Those of a block of two streams, of which x is the image."""
    moves, head_dim = [], dim // num_heads
    for own, ours, steering in (("x", "image", "img"), ("y", "text", "txt")):
        moves += weight(f"norm_{own}1", f"{ours}.norm1", dim)
        moves += weight(f"norm_{own}2", f"{ours}.norm2", dim)
        moves += weight(f"attn.qkv_{own}", f"{ours}.attention.qkv", 3 * dim, dim)
        for norm in ("q_norm", "k_norm"):
            moves += weight(f"attn.{norm}_{own}", f"{ours}.attention.{norm}", head_dim)
        moves += layer(f"attn.proj_{own}", f"{ours}.attention.out", dim, dim)
        moves += swiglu_moves(f"mlp_{own}", f"{ours}.mlp", dim)
        moves += layer(f"adaLN_modulation_{steering}.0", f"{ours}.modulation", 6 * dim, dim)
    return moves


def pixel_moves(s: Sizes) -> list[Move]:
    """Those of a pixel block."""
    flat, width = s.pixel * s.patch**2, s.pixel_attention
    moves = layer("compress_to_attn", "compaction.compress", width, flat)
    moves += layer("expand_from_attn", "compaction.expand", flat, width)
    moves += weight("norm1", "norm1", s.pixel) + weight("norm2", "norm2", s.pixel)
    attention = attention_moves(width, s.pixel_heads)
    moves += [move._replace(ours=f"compaction.{move.ours}") for move in attention]
    moves += layer("mlp.fc1", "mlp.up", 4 * s.pixel, s.pixel)
    moves += layer("mlp.fc2", "mlp.out", s.pixel, 4 * s.pixel)
    num, change = (4, same) if s.is_post else (6, scale_first(s.pixel))
    return moves + layer("adaLN_modulation.0", "modulator.out", num * flat, s.dim, change=change)
