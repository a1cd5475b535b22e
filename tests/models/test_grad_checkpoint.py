from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from pixelhdm.models import linear, selective
from pixelhdm.models.jit import JiT
from pixelhdm.models.network import Network
from tests.models.networks import small
from tests.stubs import Sized, context, perturb, randn, tiny_network

MODES = ("none", "pixel", "selective", "all")


@pytest.fixture(autouse=True)
def products(monkeypatch):
    """Products inside a pixel, of 4 channels or 12, are the only short ones of a tiny network."""
    monkeypatch.setattr(selective, "MIN_PRODUCTS", 16)


def step(network: Network, batch: int = 2) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients."""
    torch.manual_seed(1)
    given = randn(batch, 8, 12, 3), torch.rand(batch), context(batch, 3)
    prediction = network(*given)
    loss = prediction.output.square().mean() + prediction.features.square().mean()
    network.zero_grad()
    loss.backward()
    return loss.detach(), [value.grad for value in network.parameters()]


def run(mode: str, batch: int = 2) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Loss, gradients, and the bytes that the graph keeps from forward to backward."""
    network = perturb(tiny_network(grad_checkpoint=mode)).train()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {value.untyped_storage().data_ptr() for value in network.parameters()}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, gradients = step(network, batch)
    grown = sum(size for address, size in kept.items() if address not in weights)
    return loss, gradients, grown


def assert_same(one, other) -> None:
    assert torch.equal(one[0], other[0])
    assert all(map(torch.equal, one[1], other[1]))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("mode", MODES[1:])
def test_losses_and_gradients_are_equal_to_the_bit(mode, mixed):
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert_same(run("none"), run(mode))


@pytest.mark.parametrize("mode", MODES[1:])
def test_the_fast_layers_of_cpus_are_computed_again_to_the_bit(mode, monkeypatch):
    """Those for large products, which a tiny network else does not have."""
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 1)
    monkeypatch.setattr(linear, "MIN_ROWS", 1)
    assert_same(run("none"), run(mode))


@pytest.mark.parametrize("mode", MODES[1:])
def test_dropout_falls_on_the_same_numbers_again(mode):
    network = perturb(small(JiT, dropout=0.5)).train()
    network.grad_checkpoint = "none"
    given = randn(2, 8, 8, 3), torch.rand(2), context(2, 0)
    found = []
    for network.grad_checkpoint in ("none", mode):
        torch.manual_seed(1)
        network.zero_grad()
        network(*given).output.square().mean().backward()
        found.append([value.grad for value in network.parameters()])
    assert all(map(torch.equal, *found))


def test_all_saves_half_of_the_activations_at_least():
    none, pixel, selective, every = (run(mode, batch=8)[2] for mode in MODES)
    assert every < 0.5 * none
    assert every < pixel < 0.8 * none
    assert every < selective < 0.6 * none


class Count(TorchDispatchMode):
    """Counts operators, and the long products and attentions among them."""

    def __init__(self):
        super().__init__()
        self.costly, self.all = Counter(), 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.all += 1
        self.costly[op.name()] += selective.is_costly(op, *args)
        return op(*args, **(kwargs or {}))


def test_selective_computes_nothing_costly_twice():
    counts = []
    for mode in MODES:
        with Count() as count:
            step(perturb(tiny_network(grad_checkpoint=mode)).train())
        counts.append(count)
    none, _, selectively, every = counts
    assert selectively.costly == none.costly
    assert selectively.all > 1.1 * none.all
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert none.costly[attention] == 5  # three patch blocks, two pixel blocks
    assert every.costly[attention] == 10


def test_nothing_is_computed_twice_without_gradients(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    for module in ("network", "selective"):
        monkeypatch.setattr(f"pixelhdm.models.{module}.checkpoint", refuse)
    for mode in MODES[1:]:
        with torch.no_grad():
            tiny_network(grad_checkpoint=mode)(randn(1, 4, 4, 3), torch.rand(1), context(1, 2))


@pytest.mark.parametrize("pixel", [False, True])
def test_a_compiled_block_gives_the_same_numbers_in_every_mode(pixel, monkeypatch):
    """Under selective it runs as it is, or whole again in the pixel path."""
    graphs, network = [], Sized(32, 2)
    block = network.block = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32))
    x, found, kept, num_kept = randn(8, 32).requires_grad_(), [], [], []
    monkeypatch.setattr(selective, "checkpoint", None)

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    block.compile(backend=backend)
    for network.grad_checkpoint in MODES:
        network.zero_grad()
        again = network.grad_checkpoint == "all" or (pixel and network.grad_checkpoint != "none")
        with saved_tensors_hooks(note, lambda tensor: tensor):
            out = network.run_block(block, x, again=again)
        num_kept.append(len(kept))
        kept.clear()
        out.square().sum().backward()
        found.append([value.grad for value in network.parameters()])
    assert len(graphs) == 1
    assert all(all(map(torch.equal, found[0], gradients)) for gradients in found)
    none, _, selectively, every = num_kept
    assert selectively == (every if pixel else none) != (none if pixel else every)
