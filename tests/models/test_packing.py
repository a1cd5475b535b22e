import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from pixelhdm.models import packing
from pixelhdm.models.attention import GatedAttention, attend
from pixelhdm.models.rope import rotation, token_positions
from tests.stubs import context, perturb, randn, tiny_network


def slow_varlen(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, starts_k: Tensor, *_: int):
    """The kernel's meaning: each sequence attends to itself alone."""
    assert starts.dtype == torch.int32
    parts = []
    for first, last in zip(starts[:-1].tolist(), starts_k[1:].tolist(), strict=True):
        heads = [part[first:last].transpose(0, 1) for part in (q, k, v)]
        parts.append(F.scaled_dot_product_attention(*heads).transpose(0, 1))
    return torch.cat(parts)


MASK = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1]]).bool()


def test_packed_attention_is_masked_attention(monkeypatch):
    monkeypatch.setattr(packing, "varlen_attn", slow_varlen)
    q, k, v = randn(3, 4, 6, 8), randn(3, 2, 6, 8, seed=5), randn(3, 2, 6, 8, seed=6)
    for part in (q, k, v):
        part.requires_grad_()
    valid = MASK[:, None, :, None]
    masked = attend(q, k, v, MASK) * valid
    found = attend(q, k, v, packing.packing(MASK))
    torch.testing.assert_close(found, masked)
    weight = randn(3, 4, 6, 8, seed=7)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((masked * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_network_gives_the_same_packed(monkeypatch):
    network, given = perturb(tiny_network()), context(3, 4)
    given = given._replace(mask=MASK[:, :4])
    z, t = randn(3, 4, 6, 3), torch.tensor([0.2, 0.5, 0.8])
    masked = network(z, t, given)
    monkeypatch.setattr(packing, "varlen_attn", slow_varlen)
    monkeypatch.setattr(packing, "has_kernel", lambda *_: True)
    torch.testing.assert_close(network(z, t, given), masked, rtol=1e-4, atol=1e-5)


def test_a_cpu_keeps_the_mask():
    assert packing.packed(MASK, torch.bfloat16, 64) is MASK


def test_the_kernel_is_given_half_precision_under_autocast(monkeypatch):
    """CUDA's autocast norms queries and keys in float32; on tensors without data, no GPU needed."""
    given = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
        given.extend((part.device.type, part.dtype) for part in (q, k, v))
        return torch.empty_like(q)

    monkeypatch.setattr(packing, "varlen_attn", kernel)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            layer, x = GatedAttention(64, 4, 2, 16), torch.randn(2, 6, 64)
            by = rotation(token_positions(6, x.device).expand(2, -1, -1), (4, 6, 6), 1e4)
            where = packing.Packing(torch.arange(10), torch.tensor([0, 4, 10], dtype=torch.int32))
        torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses where there is no GPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            layer(x, by, where)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert given == [("cuda", torch.bfloat16)] * 3
