"""What the published networks are made of, written from their papers and key layouts: functions on
plain dicts of tensors, independent of pixelhdm.
"""

import math

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def below(state: State, prefix: str) -> State:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def number_of(state: State, name: str) -> int:
    """How many blocks of a name there are."""
    return len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def rms(state: State, name: str, x: Tensor) -> Tensor:
    """RMSNorm with eps 1e-6 and a weight."""
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def embed_time(state: State, t: Tensor, max_period: float) -> Tensor:
    """256 waves, cosines first, then Linear, SiLU, Linear.

    The frequencies are rounded as the published float32 ones: times of 1000 make much of it.
    """
    angle = t[:, None] * torch.exp(-math.log(max_period) * torch.arange(128) / 128)
    waves = torch.cat([angle.cos(), angle.sin()], dim=1)
    return linear(state, "t_embedder.mlp.2", F.silu(linear(state, "t_embedder.mlp.0", waves)))


def cut(image: Tensor, p: int) -> Tensor:
    """Patches with features (channel, row, column)."""
    return rearrange(F.unfold(image, p, stride=p), "b f l -> b l f")


def angles(positions: list[Tensor], head_dim: int, alternate: bool) -> Tensor:
    """Angle of each pair of a head: the axes' pairs alternate, or lie one axis after another.

    Each axis turns head_dim / 2 / axes pairs, with 10000^(-k / pairs).
    """
    pairs = head_dim // 2 // len(positions)
    frequency = 10_000.0 ** (-torch.arange(pairs) / pairs)
    each = torch.stack([place[:, None] * frequency for place in positions])
    return rearrange(each, "a s k -> s (k a)" if alternate else "a s k -> s (a k)")


def grid(height: int, width: int, end: tuple[float, float] | None) -> list[Tensor]:
    """Rows and columns of a grid's places: 0 … end inclusive, or whole numbers."""
    ends = end or (height - 1, width - 1)
    rows, columns = (torch.linspace(0, e, n) for e, n in zip(ends, (height, width), strict=True))
    return [repeat(rows, "h -> (h w)", w=width), repeat(columns, "w -> (h w)", h=height)]


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """B heads S hd with neighbouring channels turned: (a, b) -> (a cos - b sin, a sin + b cos)."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return rearrange([a * cos - b * sin, a * sin + b * cos], "two b n s k -> b n s (k two)")


def heads_of(x: Tensor, num: int, head_dim: int) -> Tensor:
    """`num` stacked matrices of heads, e.g. q, k, v."""
    return rearrange(x, "b s (num n d) -> num b n s d", num=num, d=head_dim)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ rearrange(k, "b n s d -> b n d s") / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return rearrange(weights @ v, "b n s d -> b s (n d)")


def self_attention(state: State, x: Tensor, angle: Tensor | None) -> Tensor:
    """Fused qkv, RMSNorm of q and k in each head, rotation, output layer."""
    q, k, v = heads_of(linear(state, "qkv", x), 3, len(state["q_norm.weight"]))
    q, k = rms(state, "q_norm", q), rms(state, "k_norm", k)
    if angle is not None:
        q, k = turned(q, angle), turned(k, angle)
    return linear(state, "proj", softmax_attention(q, k, v))


def swiglu(state: State, x: Tensor) -> Tensor:
    """w2 (SiLU(w1 x) * w3 x)."""
    return linear(state, "w2", F.silu(linear(state, "w1", x)) * linear(state, "w3", x))


def fused_swiglu(state: State, x: Tensor) -> Tensor:
    """w3 (SiLU(first half of w12 x) * second half)."""
    first, second = linear(state, "w12", x).chunk(2, dim=-1)
    return linear(state, "w3", F.silu(first) * second)


def sincos(height: int, width: int, dim: int) -> Tensor:
    """Fixed positions H*W dim: the column's half first, each half sines then cosines."""
    rows, columns = (place.double() for place in grid(height, width, None))
    frequency = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    waves = [
        f(place[:, None] * frequency) for place in (columns, rows) for f in (torch.sin, torch.cos)
    ]
    return torch.cat(waves, dim=1).float()


def random_state(shapes: Shapes, seed: int) -> State:
    """Random tensors, those that start at zero too, of a size that keeps numbers near 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.2 * value
        elif name.endswith("weight") and "embedding_table" not in name:
            value = value / math.sqrt(value[0].numel())
        else:
            value = 0.3 * value
        state[name] = value
    return state


def with_bias(name: str, *shape: int) -> Shapes:
    """A layer with weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}
