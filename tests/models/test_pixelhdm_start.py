"""A new network, after the generic initialisation: special starts are still there."""

import pytest
import torch

from pixelhdm.models.attention import GatedAttention
from pixelhdm.models.blocks import PatchBlock, PixelBlock, TokenCompaction
from pixelhdm.models.layers import patchify
from tests.stubs import context, perturb, randn, tiny_network

T = torch.tensor([0.2, 0.7])


def test_patch_path_is_its_embedding():
    network, z = tiny_network(feature_block=3), randn(2, 4, 6, 3)
    features = network(z, T, context(2, 3)).features
    assert torch.equal(features, network.patch_embedding(patchify(z, 2)))


@pytest.mark.parametrize("form", ["factored", "full"])
def test_every_block_is_the_identity(form):
    network, seen = tiny_network(pixel_modulation=form), []
    blocks = [m for m in network.modules() if isinstance(m, PatchBlock | PixelBlock)]
    for block in blocks:
        block.register_forward_hook(lambda _, given, out: seen.append(torch.equal(given[0], out)))
    network(randn(2, 4, 6, 3), T, context(2, 3))
    assert seen == [True] * 5
    perturb(network)(randn(2, 4, 6, 3), T, context(2, 3))
    assert seen[5:] == [False] * 5


def test_every_gate_is_one_half():
    gates = [m.gate for m in tiny_network().modules() if isinstance(m, GatedAttention)]
    for gate in gates:
        assert torch.equal(torch.sigmoid(gate(randn(3, 32))), torch.full((3, 4), 0.5))
    assert len(gates) == 5


def test_every_expansion_has_a_tenth_of_xavier():
    expansions = [m.expand for m in tiny_network().modules() if isinstance(m, TokenCompaction)]
    for expand in expansions:
        bound = 0.1 * (6 / (32 + 16)) ** 0.5
        assert 0.9 * bound < expand.weight.abs().max() <= bound
    assert len(expansions) == 2


def test_the_rest_is_xavier_with_zero_biases():
    network = tiny_network()
    bound = (6 / (32 + 96)) ** 0.5
    weights = [block.mlp.gate.weight for block in network.patch_blocks]
    assert all(0.95 * bound < weight.abs().max() <= bound for weight in weights)
    assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("changes", [{}, {"post_modulation": True}, {"pixel_depth": 0}])
def test_training_opens_a_new_network_step_by_step(changes):
    """Zero gates need a few steps until every parameter moves; none stays still for ever."""
    network = tiny_network(**changes)
    start = {name: p.clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(8):
        optimizer.zero_grad()
        (network(randn(2, 4, 6, 3), T, context(2, 3)).output - 1).square().mean().backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if torch.equal(p, start[name])] == []
