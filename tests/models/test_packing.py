import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pixelhdm.models import packing
from pixelhdm.models.attention import GatedAttention, attend
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.network import Network
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.rope import rotation, token_positions
from pixelhdm.models.routing import Route, TokenRouting
from tests.flash import flash_attn_varlen_func, pretend_flash
from tests.models.networks import TAKES_TOKENS, small
from tests.stubs import perturb, randn, tiny_network

MASK = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1]]).bool()
KERNELS = ("flash", "torch", "torch without groups")
KINDS = (PixelHDM, *TAKES_TOKENS)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    enable_gqa: bool = False,
) -> Tensor:
    """PyTorch's kernel, which wants to be told of groups."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return flash_attn_varlen_func(q, k, v, starts_q, starts_k, longest_q, longest_k)


def pretend(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be a variable-length kernel on CPUs."""
    if kernel == "flash":
        pretend_flash(monkeypatch)
        return
    monkeypatch.setattr(packing, "varlen_attn", varlen)
    monkeypatch.setattr(packing, "has_kernel", lambda *_: True)
    monkeypatch.setattr(packing, "IS_GROUPED", kernel == "torch")


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Equal in value and in the derivatives by inputs."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = randn(*found.shape, seed=7)
    both = (torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected))
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_queries", [6, 2])
def test_packed_attention_is_masked_attention(monkeypatch, kernel, num_queries):
    """With fewer key heads, and with queries of the last tokens alone, which are valid."""
    pretend(kernel, monkeypatch)
    q, k, v = randn(3, 4, num_queries, 8), randn(3, 2, 6, 8, seed=5), randn(3, 2, 6, 8, seed=6)
    parts = [part.requires_grad_() for part in (q, k, v)]
    valid = MASK[:, None, -num_queries:, None]
    found = attend(*parts, packing.packing(MASK))
    assert_same(found, attend(*parts, MASK, "sdpa") * valid, parts)


def case(kind: type[Network], routed: bool) -> tuple[Network, Tensor, Context]:
    """A network, noisy images, and texts of different lengths."""
    routing = TokenRouting(first=-1, last=-1, min_tokens=1) if routed else None
    network = tiny_network if kind is PixelHDM else lambda **own: small(kind, **own)
    network = perturb(network(routing=routing))
    sides = [network.patch_size * side for side in (2, 3)]
    kept = torch.tensor([[0, 2, 5], [1, 2, 3], [0, 1, 4]])
    tokens, pooled = randn(3, 4, network.hidden_dim, seed=3), randn(3, network.hidden_dim, seed=4)
    given = Context(tokens, MASK[:, :4], pooled, Route(kept) if routed else None)
    return network, randn(3, *sides, 3), given


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_network_gives_the_same_packed(monkeypatch, kind, kernel, routed):
    (network, z, given), t = case(kind, routed), torch.tensor([0.2, 0.5, 0.8])
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    network.choose_attention("sdpa")
    masked = network(z, t, given)
    network.choose_attention("auto")
    pretend(kernel, monkeypatch)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", unmasked)
    found = network(z, t, given)
    expected = torch.cat([masked.output.flatten(), masked.features.flatten()])
    assert_same(torch.cat([found.output.flatten(), found.features.flatten()]), expected, weights)


plain_sdpa = torch.nn.functional.scaled_dot_product_attention


def unmasked(*heads: Tensor, attn_mask: Tensor | None = None, enable_gqa: bool = False) -> Tensor:
    assert attn_mask is None, "a padded batch was masked, not packed"
    return plain_sdpa(*heads, enable_gqa=enable_gqa)


def test_sdpa_packs_nothing(monkeypatch):
    pretend_flash(monkeypatch)
    assert packing.packed(MASK, torch.bfloat16, 64, "sdpa") is MASK
    assert packing.packed(MASK, torch.bfloat16, 64, "auto") is not MASK


def test_a_cpu_keeps_the_mask():
    assert packing.packed(MASK, torch.bfloat16, 64) is MASK


@pytest.mark.parametrize(("kernel", "masked"), [("flash", False), ("flash", True), ("torch", True)])
def test_the_kernel_is_given_half_precision_under_autocast(monkeypatch, kernel, masked):
    """CUDA's autocast norms queries and keys in float32; on tensors without data, no GPU needed."""
    given = []

    def see(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: bool) -> Tensor:
        given.extend((part.device.type, part.dtype) for part in (q, k, v))
        return torch.empty_like(q)

    monkeypatch.setattr(packing, "varlen_attn", see)
    if kernel == "flash":
        module = pretend_flash(monkeypatch)
        module.flash_attn_func = module.flash_attn_varlen_func = see
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            layer, x = GatedAttention(64, 4, 2, 16), torch.randn(2, 6, 64)
            by = rotation(token_positions(6, x.device).expand(2, -1, -1), (4, 6, 6), 1e4)
            where = packing.Packing(torch.arange(10), torch.tensor([0, 4, 10], dtype=torch.int32))
        torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses where there is no GPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            layer(x, by, where if masked else None)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert given == [("cuda", torch.bfloat16)] * 3
