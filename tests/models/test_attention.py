import pytest
import torch
from torch import Tensor

from pixelhdm.models.attention import GatedAttention, attend
from pixelhdm.models.layers import init_linear, init_special
from pixelhdm.models.rope import rotation
from tests.stubs import perturb, randn

DIM, HEADS, HEAD_DIM = 24, 4, 8


def by(length: int, batch: int = 2):
    positions = torch.randint(0, 30, (batch, length, 3), generator=torch.Generator().manual_seed(0))
    return rotation(positions, (2, 2, 4), 100.0)


def attention(num_kv_heads: int) -> GatedAttention:
    torch.manual_seed(0)
    return perturb(GatedAttention(DIM, HEADS, num_kv_heads, HEAD_DIM))


def repeated(grouped: GatedAttention) -> GatedAttention:
    """Multi-head attention with each key and value head of `grouped` written out per query head."""
    full = attention(HEADS)
    full.load_state_dict(grouped.state_dict() | {"qkv.weight": full.qkv.weight})
    kv, groups = grouped.num_kv_heads, HEADS // grouped.num_kv_heads
    q, k, v = grouped.qkv.weight.unflatten(0, (-1, HEAD_DIM)).split([HEADS, kv, kv])
    heads = torch.cat([q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)])
    with torch.no_grad():
        full.qkv.weight.copy_(heads.flatten(0, 1))
    return full


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_queries_are_multi_head_with_repeated_keys(num_kv_heads, masked):
    grouped, x = attention(num_kv_heads), randn(2, 6, DIM)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1]]).bool() if masked else None
    expected = repeated(grouped)(x, by(6), mask)
    torch.testing.assert_close(grouped(x, by(6), mask), expected, rtol=1e-5, atol=1e-6)


def plain(layer: GatedAttention, x: Tensor, mask: Tensor) -> Tensor:
    """The formula of the docstring, head by head, for one key/value head per query head."""
    cos, sin = by(x.shape[1])
    q, k, v = layer.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
    gate, values = torch.sigmoid(layer.gate(x)), []

    def turn(y: Tensor) -> Tensor:
        swapped = torch.stack([y[..., 1::2], y[..., ::2]], dim=-1).flatten(-2)
        return y * cos + swapped * sin

    for n in range(HEADS):
        a, b = turn(layer.q_norm(q[:, :, n])), turn(layer.k_norm(k[:, :, n]))
        logits = (a @ b.mT / HEAD_DIM**0.5).masked_fill(~mask[:, None], -torch.inf)
        values.append(gate[..., n, None] * (logits.softmax(-1) @ v[:, :, n]))
    return layer.out(torch.cat(values, dim=-1))


def test_attention_is_its_formula():
    layer, x = attention(HEADS), randn(2, 6, DIM)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0]]).bool()
    torch.testing.assert_close(layer(x, by(6), mask), plain(layer, x, mask), rtol=1e-5, atol=1e-5)
    everything = torch.ones_like(mask)
    torch.testing.assert_close(layer(x, by(6)), plain(layer, x, everything), rtol=1e-5, atol=1e-5)


def test_masked_keys_have_no_influence():
    layer, x = attention(2), randn(2, 6, DIM)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    other = x.clone()
    other[1, 4:] = 100.0
    kept = mask[..., None]
    before, after = layer(x, by(6), mask) * kept, layer(other, by(6), mask) * kept
    torch.testing.assert_close(before, after)


def test_gate_starts_at_one_half_and_closes():
    layer, x = attention(2), randn(2, 6, DIM)
    init_linear(layer)
    init_special(layer)
    assert torch.equal(torch.sigmoid(layer.gate(x)), torch.full((2, 6, HEADS), 0.5))
    half = layer(x, by(6))
    layer.gate = torch.nn.Linear(DIM, HEADS)
    torch.nn.init.constant_(layer.gate.weight, 0.0)
    for bias, factor in ((-100.0, 0.0), (100.0, 2.0)):
        torch.nn.init.constant_(layer.gate.bias, bias)
        torch.testing.assert_close(layer(x, by(6)), factor * half)


def test_queries_and_keys_are_normalised():
    layer, x = attention(2), randn(2, 6, DIM)
    expected = layer(x, by(6))
    with torch.no_grad():
        layer.qkv.weight[: (HEADS + 2) * HEAD_DIM] *= 37.0  # queries and keys, not values
    torch.testing.assert_close(layer(x, by(6)), expected, rtol=1e-4, atol=1e-5)


def test_no_bias_anywhere():
    assert not any("bias" in name for name, _ in attention(2).named_parameters())


def test_attend_without_a_valid_key_but_one_copies_its_value():
    q, k, v = randn(1, 4, 5, 8), randn(1, 2, 5, 8, seed=5), randn(1, 2, 5, 8, seed=6)
    mask = torch.tensor([[False, False, True, False, False]])
    expected = v[:, :, 2:3].repeat_interleave(2, dim=1).expand(1, 4, 5, 8)
    torch.testing.assert_close(attend(q, k, v, mask), expected)
