"""JiT and PixelGen as published: classes, and PixelGen's text-to-image network, B C H W."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tests.published import parts
from tests.published.parts import Shapes, State, below, linear, modulated, rms, with_bias


class Sizes(NamedTuple):
    """Sizes of a JiT; those of texts make it PixelGen's text-to-image network."""

    hidden: int = 32
    heads: int = 4
    depth: int = 4
    patch: int = 4
    image: int = 12
    bottleneck: int | None = 8
    classes: int = 10
    in_context: int = 3
    text_width: int | None = None
    text_length: int = 6
    text_depth: int = 2


JIT_B = Sizes(768, 12, 12, 16, 256, 128, 1000, 32)
JIT_L = Sizes(1024, 16, 24, 16, 256, 128, 1000, 32)
JIT_H = Sizes(1280, 16, 32, 16, 256, 256, 1000, 32)
PIXELGEN_XL = Sizes(1152, 16, 28, 16, 256, None, 1000, 32)
PIXELGEN_T2I = Sizes(1536, 24, 16, 16, 256, 256, 0, 0, 2048, 128, 4)


def shapes(s: Sizes) -> Shapes:
    """The published names in their order, with shapes."""
    return text_shapes(s) if s.text_width is not None else class_shapes(s)


def class_shapes(s: Sizes) -> Shapes:
    dim, conv = s.hidden, (3, s.patch, s.patch)
    found: Shapes = {"pos_embed": (1, (s.image // s.patch) ** 2, dim)}
    found["in_context_posemb"] = (1, s.in_context, dim)
    found |= time_shapes(dim)
    found["y_embedder.embedding_table.weight"] = (s.classes + 1, dim)
    if s.bottleneck is None:
        found |= with_bias("x_embedder.proj1", dim, *conv)
    else:
        found["x_embedder.proj1.weight"] = (s.bottleneck, *conv)
        found |= with_bias("x_embedder.proj2", dim, s.bottleneck, 1, 1)
    inner = int(4 * dim * 2 / 3)
    for i in range(s.depth):
        own: Shapes = {"norm1.weight": (dim,)} | norm_shapes(s)
        own |= with_bias("attn.qkv", 3 * dim, dim) | with_bias("attn.proj", dim, dim)
        own |= {"norm2.weight": (dim,)} | with_bias("mlp.w12", 2 * inner, dim)
        own |= with_bias("mlp.w3", dim, inner) | with_bias("adaLN_modulation.1", 6 * dim, dim)
        found |= {f"blocks.{i}.{name}": shape for name, shape in own.items()}
    found["final_layer.norm_final.weight"] = (dim,)
    found |= with_bias("final_layer.linear", 3 * s.patch**2, dim)
    return found | with_bias("final_layer.adaLN_modulation.1", 2 * dim, dim)


def text_shapes(s: Sizes) -> Shapes:
    dim = s.hidden
    found: Shapes = {"pos_embed": (1, (s.image // s.patch) ** 2, dim)}
    found["y_pos_embedding"] = (1, s.text_length, dim)
    found["x_embedder.proj1.weight"] = (s.bottleneck, 3 * s.patch**2)
    found |= with_bias("x_embedder.proj2", dim, s.bottleneck) | time_shapes(dim)
    found |= with_bias("y_embedder.proj", dim, s.text_width)
    found["y_embedder.norm.weight"] = (dim,)
    image: Shapes = {"attn.qkv_x.weight": (3 * dim, dim), "attn.kv_y.weight": (2 * dim, dim)}
    text: Shapes = {"attn.qkv.weight": (3 * dim, dim)}
    for group, depth, first in (
        ("blocks", s.depth, image),
        ("text_refine_blocks", s.text_depth, text),
    ):
        for i in range(depth):
            own: Shapes = {"norm1.weight": (dim,)} | first | norm_shapes(s)
            own |= with_bias("attn.proj", dim, dim) | {"norm2.weight": (dim,)}
            own |= {"mlp.w12.weight": (8 * dim, dim), "mlp.w3.weight": (dim, 4 * dim)}
            own |= with_bias("adaLN_modulation.0", 6 * dim, dim)
            found |= {f"{group}.{i}.{name}": shape for name, shape in own.items()}
    return found | with_bias("final_layer.linear", 3 * s.patch**2, dim)


def time_shapes(dim: int) -> Shapes:
    return with_bias("t_embedder.mlp.0", dim, 256) | with_bias("t_embedder.mlp.2", dim, dim)


def norm_shapes(s: Sizes) -> Shapes:
    return {f"attn.{q}_norm.weight": (s.hidden // s.heads,) for q in "qk"}


def make_state(s: Sizes = Sizes(), seed: int = 0) -> State:
    """Random weights; the positions of patches are fixed."""
    state, side = parts.random_state(shapes(s), seed), s.image // s.patch
    state["pos_embed"] = parts.sincos(side, side, s.hidden)[None]
    return state


def jit(state: State, x: Tensor, t: Tensor, y: Tensor, in_context_start: int) -> Tensor:
    """The clean image that the network sees in x at times t, 0 noise, of classes y."""
    p, num = state["x_embedder.proj1.weight"].shape[-1], state["in_context_posemb"].shape[1]
    label = state["y_embedder.embedding_table.weight"][y]
    c = F.silu(parts.embed_time(state, t, 10_000) + label)
    z = F.conv2d(x, state["x_embedder.proj1.weight"], state.get("x_embedder.proj1.bias"), stride=p)
    if "x_embedder.proj2.weight" in state:
        z = F.conv2d(z, state["x_embedder.proj2.weight"], state["x_embedder.proj2.bias"])
    height, width = z.shape[2:]
    z = rearrange(z, "b d h w -> b (h w) d") + state["pos_embed"]
    places = parts.grid(height, width, None)
    angle = parts.angles(places, len(state["blocks.0.attn.q_norm.weight"]), alternate=False)
    for i in range(parts.number_of(state, "blocks")):
        own = below(state, f"blocks.{i}.")
        if i == in_context_start:
            z = torch.cat([label[:, None] + state["in_context_posemb"], z], dim=1)
            angle = F.pad(angle, (0, 0, num, 0))
        b1, a1, g1, b2, a2, g2 = linear(own, "adaLN_modulation.1", c)[:, None].chunk(6, dim=-1)
        h = modulated(rms(own, "norm1", z), b1, a1)
        z = z + g1 * parts.self_attention(below(own, "attn."), h, angle)
        h = modulated(rms(own, "norm2", z), b2, a2)
        z = z + g2 * parts.fused_swiglu(below(own, "mlp."), h)
    own = below(state, "final_layer.")
    shift, scale = linear(own, "adaLN_modulation.1", c)[:, None].chunk(2, dim=-1)
    z = linear(own, "linear", modulated(rms(own, "norm_final", z[:, num:]), shift, scale))
    return rearrange(z, "b (h w) (p q c) -> b c (h p) (w q)", h=height, p=p, q=p)


def pixelgen_t2i(state: State, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """The clean image that the network sees in x at times t, 0 noise, of text states B T width."""
    p = round((state["x_embedder.proj1.weight"].shape[1] / 3) ** 0.5)
    c = F.silu(parts.embed_time(state, t, 10))
    y = rms(state, "y_embedder.norm", linear(state, "y_embedder.proj", text))
    y = y + state["y_pos_embedding"]
    for i in range(parts.number_of(state, "text_refine_blocks")):
        y = text_block(below(state, f"text_refine_blocks.{i}."), y, c)
    z = linear(state, "x_embedder.proj2", linear(state, "x_embedder.proj1", parts.cut(x, p)))
    z = z + state["pos_embed"]
    height, width = x.shape[2] // p, x.shape[3] // p
    # Their extents of rows and columns are swapped, which a square does not show.
    rows, columns = parts.grid(height, width, (width, height))
    angle = parts.angles([columns, rows], len(state["blocks.0.attn.q_norm.weight"]), alternate=True)
    for i in range(parts.number_of(state, "blocks")):
        own = below(state, f"blocks.{i}.")
        z = text_block(own, z, c, lambda h, own=own: context_attention(own, h, y, angle))
    z = linear(state, "final_layer.linear", F.layer_norm(z, z.shape[-1:], eps=1e-6))
    z = rearrange(z, "b l f -> b f l")
    return F.fold(z, x.shape[2:], p, stride=p)


def text_block(own: State, z: Tensor, c: Tensor, attention=None) -> Tensor:
    """A block whose attention is its own over z without rotation, or the one that is given."""
    b1, a1, g1, b2, a2, g2 = linear(own, "adaLN_modulation.0", c)[:, None].chunk(6, dim=-1)
    attention = attention or (lambda h: parts.self_attention(below(own, "attn."), h, None))
    z = z + g1 * attention(modulated(rms(own, "norm1", z), b1, a1))
    return z + g2 * parts.fused_swiglu(below(own, "mlp."), modulated(rms(own, "norm2", z), b2, a2))


def context_attention(own: State, z: Tensor, y: Tensor, angle: Tensor) -> Tensor:
    """Queries of the image; keys and values of [image; text], the text's keys not turned."""
    head_dim = len(own["attn.q_norm.weight"])
    q, k, v = parts.heads_of(linear(own, "attn.qkv_x", z), 3, head_dim)
    text_k, text_v = parts.heads_of(linear(own, "attn.kv_y", y), 2, head_dim)
    q, k = rms(own, "attn.q_norm", q), rms(own, "attn.k_norm", k)
    k = torch.cat([parts.turned(k, angle), rms(own, "attn.k_norm", text_k)], dim=2)
    values = parts.softmax_attention(parts.turned(q, angle), k, torch.cat([v, text_v], dim=2))
    return linear(own, "attn.proj", values)
