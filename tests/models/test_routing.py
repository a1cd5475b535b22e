from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.dit import DiT, PixelDiT
from pixelhdm.models.flops import ForwardFlop, count_flop
from pixelhdm.models.jit import JiT
from pixelhdm.models.mmdit import MMDiT, MMPixelDiT
from pixelhdm.models.network import Network
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.routing import Detour, Route, TokenRouting
from pixelhdm.models.text_jit import TextJiT
from tests.models.networks import TAKES_TOKENS, small
from tests.stubs import perturb, randn, tiny_network

NUM, KEPT = 24, torch.tensor([[0, 3, 4, 5, 9, 12, 16, 20, 23], [1, 2, 3, 7, 8, 13, 14, 21, 22]])
OUT = torch.stack([torch.tensor(sorted(set(range(NUM)) - set(row.tolist()))) for row in KEPT])
ALL = torch.arange(NUM).expand(2, -1)
T = torch.tensor([0.2, 0.7])
DEPTH = {kind: {"depth": 5} for kind in (DiT, MMDiT, JiT, TextJiT)}
DEPTH |= {kind: {"patch_depth": 5} for kind in (PixelDiT, MMPixelDiT, PixelHDM)}
KINDS = tuple(DEPTH)


def network_of(kind: type[Network], routing: TokenRouting | None, **changes: Any) -> Network:
    """A network of 5 blocks with random numbers, whose features come after the third."""
    settings = DEPTH[kind] | {"feature_block": 3, "routing": routing} | changes
    torch.manual_seed(0)
    network = tiny_network(**settings) if kind is PixelHDM else small(kind, **settings)
    return perturb(network)


def routed(kind: type[Network], **changes: Any) -> Network:
    return network_of(kind, TokenRouting(min_tokens=1), **changes)


def image(network: Network) -> Tensor:
    return randn(2, 4 * network.patch_size, 6 * network.patch_size, 3)


def context(kind: type[Network], length: int = 4, kept: Tensor | None = KEPT) -> Context:
    """A random context that the network takes, with a mask, and with a route."""
    num = length if kind in (*TAKES_TOKENS, PixelHDM) else 0
    mask = torch.arange(num) < torch.tensor([[2], [num]]) if num else None
    route = None if kept is None else Route(kept)
    return Context(randn(2, num, 32), mask, randn(2, 32, seed=5), route)


def patch_blocks(network: Network) -> nn.ModuleList:
    return network.patch_blocks if isinstance(network, PixelHDM) else network.blocks


def taken(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def watched(network: Network, given: Context) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Inputs and image tokens of the output of each block, in order."""
    seen = []

    def note(block: nn.Module, inputs: tuple, output: Any) -> None:
        seen.append((inputs, output[0] if isinstance(output, tuple) else output))

    hooks = [block.register_forward_hook(note) for block in patch_blocks(network)]
    with torch.no_grad():
        network(image(network), T, given)
    for hook in hooks:
        hook.remove()
    return iter(seen)


def rotation_of(inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The image tokens' rotation among a block's inputs."""
    return next(value for value in inputs if isinstance(value, tuple))


@pytest.mark.parametrize("kind", KINDS)
def test_a_route_that_keeps_all_tokens_is_dense(kind):
    network = routed(kind)
    dense = network(image(network), T, context(kind, kept=None))
    whole = network(image(network), T, context(kind, kept=ALL))
    assert torch.equal(whole.output, dense.output)
    assert torch.equal(whole.features, dense.features)
    assert dense.kept is None
    assert whole.kept.all()


@pytest.mark.parametrize("kind", KINDS)
def test_kept_tokens_take_the_blocks_and_the_others_come_back_as_they_were(kind):
    """Each block gets what the one before gave; with the inputs that it gets in a dense pass, for
    these tokens alone.
    """
    network = routed(kind)
    dense = watched(network, context(kind, kept=None))
    *blocks, last = watched(network, context(kind))
    before = blocks[0][1][:, -NUM:]
    tokens = taken(before, KEPT)
    for inputs, output in blocks[1:]:
        length = inputs[0].shape[1] - KEPT.shape[1]
        assert torch.equal(inputs[0][:, length:], tokens)
        for part, whole in zip(rotation_of(inputs), rotation_of(next(dense)[0]), strict=True):
            own = whole[:, -NUM:].expand(2, -1, -1)
            assert torch.equal(part[:, -KEPT.shape[1] :], taken(own, KEPT))
        tokens = output[:, length:] if output.shape[1] == inputs[0].shape[1] else output
    came_back = last[0][0][:, -NUM:]
    assert torch.equal(taken(came_back, OUT), taken(before, OUT))
    assert torch.equal(taken(came_back, KEPT), tokens)
    assert (taken(before, KEPT) - tokens).abs().mean() > 0.01


@pytest.mark.parametrize("kind", [*TAKES_TOKENS, PixelHDM])
def test_padding_of_the_context_changes_nothing_on_a_route(kind):
    network, given = routed(kind), context(kind, 6)
    given.mask[:, 4:] = False
    short = given._replace(tokens=given.tokens[:, :4], mask=given.mask[:, :4])
    long = network(image(network), T, given)
    other = given._replace(tokens=torch.where(given.mask[..., None], given.tokens, 9.0))
    torch.testing.assert_close(long, network(image(network), T, short), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(long, network(image(network), T, other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad_checkpoint", ["none", "all"])
def test_the_gradient_reaches_every_token_of_the_first_block(kind, grad_checkpoint):
    network, seen = routed(kind, grad_checkpoint=grad_checkpoint), []

    def keep(block: nn.Module, inputs: tuple, output: Any) -> None:
        tokens = output[0] if isinstance(output, tuple) else output
        tokens.retain_grad()
        seen.append(tokens)

    hook = patch_blocks(network)[0].register_forward_hook(keep)
    out = network(image(network), T, context(kind))
    hook.remove()
    out.output.square().sum().backward()
    assert (seen[0].grad[:, -NUM:].abs().sum(dim=2) > 0).all()
    weights = [value for block in patch_blocks(network)[1:4] for value in block.parameters()]
    assert all(value.grad is not None and value.grad.any() for value in weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block", "counts"), [(1, False), (2, True), (4, True), (5, False)])
def test_features_tell_which_of_them_went_through_their_block(kind, block, counts):
    network = routed(kind, feature_block=block)
    out = network(image(network), T, context(kind))
    assert out.features.shape[1] == NUM
    assert (out.kept is not None) == counts
    if counts:
        assert torch.equal(out.kept.nonzero()[:, 1].view(2, -1), KEPT)
        first = routed(kind, feature_block=1)(image(network), T, context(kind)).features
        assert torch.equal(taken(out.features, OUT), taken(first, OUT))


def test_tokens_that_went_through_the_blocks_are_as_precise_as_they_left_them():
    detour = Detour(Route(KEPT), range(1, 2), NUM)
    x = randn(2, 3 + NUM, 8).bfloat16()
    inside = detour.enter(1, x).float() + 1e-6
    out = detour.leave(1, inside)
    assert out.dtype == torch.float32
    assert torch.equal(taken(out[:, 3:], OUT), taken(x[:, 3:], OUT).float())
    assert torch.equal(out[:, :3], inside[:, :3])
    assert torch.equal(taken(out[:, 3:], KEPT), inside[:, 3:])


@pytest.mark.parametrize(("kind", "length"), [(DiT, 3), (PixelHDM, 3)])
def test_flop_drop_by_what_the_blocks_save_on_the_tokens_left_out(kind, length):
    network = routed(kind)
    size = (4 * network.patch_size, 6 * network.patch_size)
    forward = ForwardFlop(network, is_training=True)
    given = context(kind, length, kept=torch.arange(12)[None])
    given = given._replace(tokens=given.tokens[:1], mask=None, pooled=given.pooled[:1])
    real = count_flop(lambda: network(image(network)[:1], T[:1], given))
    assert forward(*size, length) == real
    assert ForwardFlop(network)(*size, length) == ForwardFlop(network_of(kind, None))(*size, length)
    if kind is DiT:
        at = {num: block_flop(network.blocks[1], length + num) for num in (12, NUM)}
        dense = ForwardFlop(network)(*size, length)
        assert dense - forward(*size, length) == 3 * (at[NUM] - at[12])


def block_flop(block: nn.Module, length: int) -> int:
    by = torch.zeros(1, length, 16), torch.zeros(1, length, 16)
    return count_flop(lambda: block(torch.zeros(1, length, 32), torch.zeros(1, 32), by))


@pytest.mark.parametrize(
    ("share", "num", "kept"),
    [(0.5, 1024, 512), (0.5, 1025, 513), (0.75, 1024, 256), (1e-9, 2048, None), (0.5, 1023, None)],
)
def test_number_of_kept_tokens(share, num, kept):
    assert TokenRouting(share).num_kept(num) == kept


def test_blocks_are_counted_from_both_ends():
    assert TokenRouting().blocks(16) == range(2, 16)
    assert TokenRouting(first=1, last=-1).blocks(3) == range(1, 4)
    assert TokenRouting(first=-3, last=4).blocks(5) == range(3, 5)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_share_must_leave_some_tokens_on_both_ways(share):
    with pytest.raises(UserError, match=r"routing.share must be above 0 and below 1, got"):
        TokenRouting(share)


def test_wrong_numbers_are_named():
    with pytest.raises(UserError, match="min_tokens must be at least 1, got 0"):
        TokenRouting(min_tokens=0)
    message = r"routing.first … routing.last must be blocks of the network, rising, in 1 … {}"
    for settings, depth in (({}, 2), ({"first": 0}, 5), ({"last": 6}, 5), ({"first": -9}, 5)):
        with pytest.raises(UserError, match=message.format(depth)):
            small(DiT, depth=depth, routing=TokenRouting(**settings))
    with pytest.raises(UserError, match=r"got 2 … -2, which are 2 … 1\. Route a deeper network"):
        tiny_network(patch_depth=2, routing=TokenRouting())
