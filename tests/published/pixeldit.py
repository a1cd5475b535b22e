"""PixelDiT as published: class-conditional and text-to-image, B C H W."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tests.published import parts
from tests.published.parts import Shapes, State, below, linear, modulated, rms, with_bias

EXTENT = (16.0, 16.0)


class Sizes(NamedTuple):
    """Sizes of a PixelDiT; those of texts make it text-to-image."""

    hidden: int = 32
    heads: int = 4
    patch_depth: int = 2
    pixel_depth: int = 2
    patch: int = 4
    pixel: int = 8
    classes: int = 10
    post: bool = False
    text_width: int | None = None
    text_length: int = 6
    attention: int | None = None
    attention_heads: int | None = None


B = Sizes(768, 12, 12, 2, 16, 16, 1000)
L = Sizes(1024, 16, 22, 4, 16, 16, 1000)
XL = Sizes(1152, 16, 26, 4, 16, 16, 1000)
T2I = Sizes(1536, 24, 14, 2, 16, 16, 0, False, 2304, 300, 1152, 16)


def shapes(s: Sizes) -> Shapes:
    """The published names in their order, with shapes."""
    is_text = s.text_width is not None
    found: Shapes = {"y_pos_embedding": (1, s.text_length, s.hidden)} if is_text else {}
    found |= with_bias("pixel_embedder.proj", s.pixel, 3)
    found |= with_bias("s_embedder.proj", s.hidden, 3 * s.patch**2)
    found |= with_bias("t_embedder.mlp.0", s.hidden, 256)
    found |= with_bias("t_embedder.mlp.2", s.hidden, s.hidden)
    if is_text:
        found |= with_bias("y_embedder.proj", s.hidden, s.text_width)
        found["y_embedder.norm.weight"] = (s.hidden,)
    else:
        found["y_embedder.embedding_table.weight"] = (s.classes + 1, s.hidden)
    for i in range(s.patch_depth):
        own = dual_shapes(s) if is_text else patch_shapes(s)
        found |= {f"patch_blocks.{i}.{name}": shape for name, shape in own.items()}
    for i in range(s.pixel_depth):
        found |= {f"pixel_blocks.{i}.{name}": shape for name, shape in pixel_shapes(s).items()}
    found["final_layer.norm.weight"] = (s.pixel,)
    return found | with_bias("final_layer.linear", 3, s.pixel)


def attention_shapes(dim: int, head_dim: int) -> Shapes:
    norms: Shapes = {"attn.q_norm.weight": (head_dim,), "attn.k_norm.weight": (head_dim,)}
    return {"attn.qkv.weight": (3 * dim, dim)} | norms | with_bias("attn.proj", dim, dim)


def swiglu_shapes(name: str, dim: int) -> Shapes:
    wide, narrow = (int(2 * 4 * dim / 3), dim), (dim, int(2 * 4 * dim / 3))
    return {f"{name}.w1.weight": wide, f"{name}.w3.weight": wide, f"{name}.w2.weight": narrow}


def patch_shapes(s: Sizes) -> Shapes:
    found: Shapes = {"norm1.weight": (s.hidden,)}
    found |= attention_shapes(s.hidden, s.hidden // s.heads)
    found |= {"norm2.weight": (s.hidden,)} | swiglu_shapes("mlp", s.hidden)
    return found | with_bias("adaLN_modulation.0", 6 * s.hidden, s.hidden)


def dual_shapes(s: Sizes) -> Shapes:
    dim, head_dim = s.hidden, s.hidden // s.heads
    found: Shapes = {"norm_x1.weight": (dim,), "norm_y1.weight": (dim,)}
    found |= {f"attn.qkv_{own}.weight": (3 * dim, dim) for own in "xy"}
    found |= {f"attn.{q}_norm_{own}.weight": (head_dim,) for own in "xy" for q in "qk"}
    found |= with_bias("attn.proj_x", dim, dim) | with_bias("attn.proj_y", dim, dim)
    found |= {"norm_x2.weight": (dim,), "norm_y2.weight": (dim,)}
    found |= swiglu_shapes("mlp_x", dim) | swiglu_shapes("mlp_y", dim)
    found |= with_bias("adaLN_modulation_img.0", 6 * dim, dim)
    return found | with_bias("adaLN_modulation_txt.0", 6 * dim, dim)


def pixel_shapes(s: Sizes) -> Shapes:
    width, heads, flat = s.attention or s.hidden, s.attention_heads or s.heads, s.pixel * s.patch**2
    found = with_bias("compress_to_attn", width, flat) | with_bias("expand_from_attn", flat, width)
    found |= {"norm1.weight": (s.pixel,)} | attention_shapes(width, width // heads)
    found |= {"norm2.weight": (s.pixel,)} | with_bias("mlp.fc1", 4 * s.pixel, s.pixel)
    found |= with_bias("mlp.fc2", s.pixel, 4 * s.pixel)
    return found | with_bias("adaLN_modulation.0", (4 if s.post else 6) * flat, s.hidden)


def make_state(s: Sizes = Sizes(), seed: int = 0) -> State:
    return parts.random_state(shapes(s), seed)


def c2i(state: State, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The velocity x - noise at images x of times t, 0 noise, of classes y."""
    p = patch_of(state)
    time = parts.embed_time(state, t, 10)
    c = F.silu(time + state["y_embedder.embedding_table.weight"][y])
    s = linear(state, "s_embedder.proj", parts.cut(x, p))
    places = places_of(x, p)
    for i in range(parts.number_of(state, "patch_blocks")):
        own = below(state, f"patch_blocks.{i}.")
        b1, a1, g1, b2, a2, g2 = linear(own, "adaLN_modulation.0", c)[:, None].chunk(6, dim=-1)
        angle = parts.angles(places, len(own["attn.q_norm.weight"]), alternate=True)
        h = parts.self_attention(
            below(own, "attn."), modulated(rms(own, "norm1", s), b1, a1), angle
        )
        s = s + g1 * h
        s = s + g2 * parts.swiglu(below(own, "mlp."), modulated(rms(own, "norm2", s), b2, a2))
    return pixel_path(state, x, F.silu(time[:, None] + s))


def t2i(state: State, x: Tensor, t_1000: Tensor, text: Tensor) -> Tensor:
    """noise - image at images x of times 1000 sigma, 1000 noise, of text states B T width."""
    p, length = patch_of(state), text.shape[1]
    time = parts.embed_time(state, t_1000, 10)
    c = F.silu(time)
    y = rms(state, "y_embedder.norm", linear(state, "y_embedder.proj", text))
    y = y + state["y_pos_embedding"][:, :length]
    s = linear(state, "s_embedder.proj", parts.cut(x, p))
    for i in range(parts.number_of(state, "patch_blocks")):
        own = below(state, f"patch_blocks.{i}.")
        s, y = dual_block(own, s, y, c, places_of(x, p))
    return pixel_path(state, x, F.silu(time[:, None] + s))


def dual_block(
    own: State, s: Tensor, y: Tensor, c: Tensor, places: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Image s and text y attend to [text; image] with weights of their own."""
    streams, joint = {"x": s, "y": y}, []
    head_dim, length = len(own["attn.q_norm_x.weight"]), y.shape[1]
    turns = {
        "x": parts.angles(places, head_dim, alternate=True),
        "y": parts.angles([torch.arange(length).float()], head_dim, alternate=False),
    }
    steering = {
        name: linear(own, f"adaLN_modulation_{long}.0", c)[:, None].chunk(6, dim=-1)
        for name, long in (("x", "img"), ("y", "txt"))
    }
    for name in "yx":
        h = modulated(rms(own, f"norm_{name}1", streams[name]), *steering[name][:2])
        q, k, v = parts.heads_of(linear(own, f"attn.qkv_{name}", h), 3, head_dim)
        q, k = rms(own, f"attn.q_norm_{name}", q), rms(own, f"attn.k_norm_{name}", k)
        joint.append((parts.turned(q, turns[name]), parts.turned(k, turns[name]), v))
    values = parts.softmax_attention(*(torch.cat(pair, dim=2) for pair in zip(*joint, strict=True)))
    for name, part in (("y", values[:, :length]), ("x", values[:, length:])):
        _, _, g1, b2, a2, g2 = steering[name]
        z = streams[name] + g1 * linear(own, f"attn.proj_{name}", part)
        h = modulated(rms(own, f"norm_{name}2", z), b2, a2)
        streams[name] = z + g2 * parts.swiglu(below(own, f"mlp_{name}."), h)
    return streams["x"], streams["y"]


def pixel_path(state: State, x: Tensor, s: Tensor) -> Tensor:
    """The pixels, steered by the finished condition s of their patches."""
    p, (height, width) = patch_of(state), x.shape[2:]
    z = linear(state, "pixel_embedder.proj", rearrange(x, "b c h w -> b (h w) c"))
    z = z + parts.sincos(height, width, z.shape[-1])
    z = rearrange(z, "b (h p w q) d -> b (h w) (p q) d", h=height // p, p=p, q=p)
    for i in range(parts.number_of(state, "pixel_blocks")):
        z = pixel_block(below(state, f"pixel_blocks.{i}."), z, s, places_of(x, p))
    z = linear(state, "final_layer.linear", rms(state, "final_layer.norm", z))
    return rearrange(z, "b (h w) (p q) c -> b c (h p) (w q)", h=height // p, p=p)


def pixel_block(own: State, z: Tensor, s: Tensor, places: list[Tensor]) -> Tensor:
    head_dim, dim = len(own["attn.q_norm.weight"]), z.shape[-1]
    angle = parts.angles(places, head_dim, alternate=True)

    def attended(h: Tensor) -> Tensor:
        tokens = linear(own, "compress_to_attn", rearrange(h, "b l p d -> b l (p d)"))
        tokens = parts.self_attention(below(own, "attn."), tokens, angle)
        return rearrange(linear(own, "expand_from_attn", tokens), "b l (p d) -> b l p d", d=dim)

    def mixed(h: Tensor) -> Tensor:
        return linear(own, "mlp.fc2", F.gelu(linear(own, "mlp.fc1", h)))

    steering = rearrange(
        linear(own, "adaLN_modulation.0", s), "b l (p g d) -> g b l p d", p=z.shape[2], d=dim
    )
    if len(steering) == 4:  # post-modulation
        a1, b1, a2, b2 = steering
        z = z + modulated(attended(rms(own, "norm1", z)), b1, a1)
        return z + modulated(mixed(rms(own, "norm2", z)), b2, a2)
    b1, a1, g1, b2, a2, g2 = steering
    z = z + g1 * attended(modulated(rms(own, "norm1", z), b1, a1))
    return z + g2 * mixed(modulated(rms(own, "norm2", z), b2, a2))


def patch_of(state: State) -> int:
    return round((state["s_embedder.proj.weight"].shape[1] / 3) ** 0.5)


def places_of(x: Tensor, p: int) -> list[Tensor]:
    """Columns, then rows, of the patches, 0 … 16."""
    rows, columns = parts.grid(x.shape[2] // p, x.shape[3] // p, EXTENT)
    return [columns, rows]
