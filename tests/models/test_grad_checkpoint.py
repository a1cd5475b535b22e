import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.stubs import context, perturb, randn, tiny_network

MODES = ("none", "pixel", "all")


def run(mode: str, batch: int = 2, **changes) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Loss, gradients, and the bytes that the graph keeps from forward to backward."""
    network = perturb(tiny_network(grad_checkpoint=mode, **changes)).train()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {value.untyped_storage().data_ptr() for value in network.parameters()}
    given = randn(batch, 8, 12, 3), torch.rand(batch), context(batch, 3)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = network(*given)
        loss = prediction.output.square().mean() + prediction.features.square().mean()
    loss.backward()
    grown = sum(size for address, size in kept.items() if address not in weights)
    return loss.detach(), [value.grad for value in network.parameters()], grown


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("mode", MODES[1:])
def test_losses_and_gradients_are_equal_to_the_bit(mode, mixed):
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        torch.manual_seed(0)
        loss, gradients, _ = run("none")
        torch.manual_seed(0)
        again, same, _ = run(mode)
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradients, same))


def test_all_saves_half_of_the_activations_at_least():
    none, pixel, every = (run(mode, batch=8)[2] for mode in MODES)
    assert every < 0.5 * none
    assert every < pixel < 0.8 * none


def test_nothing_is_computed_twice_without_gradients(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("pixelhdm.models.network.checkpoint", refuse)
    with torch.no_grad():
        tiny_network(grad_checkpoint="all")(randn(1, 4, 4, 3), torch.rand(1), context(1, 2))
