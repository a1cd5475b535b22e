"""AdamW8bit of torchao and of bitsandbytes on our groups; both are optional."""

import copy
import io

import pytest
import torch
from torch import nn

from pixelhdm.models.layers import SwiGLU
from pixelhdm.training.optim.groups import parameter_groups
from tests.stubs import randn

PACKAGES = ["torchao.optim", "bitsandbytes.optim"]


@pytest.fixture(params=PACKAGES)
def adamw(request):
    found = pytest.importorskip(request.param).AdamW8bit
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step, for minutes
        yield found


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(SwiGLU(64, 96), nn.Linear(64, 64))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = (net(randn(16, 64, seed=step % 2)) - randn(16, 64, seed=7)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_it_trains_as_adamw_does_in_less_memory(adamw):
    expected, net = network(), network()
    settings = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.0}
    optimizer = adamw(parameter_groups(net), **settings)
    full = torch.optim.AdamW(parameter_groups(expected), **settings)
    losses, full_losses = train(net, optimizer, range(30)), train(expected, full, range(30))
    assert losses[-1] < 0.5 * losses[0]
    assert losses == pytest.approx(full_losses, rel=0.05)
    assert {value.dtype for value in net.parameters()} == {torch.float32}
    sizes = []
    for one in (optimizer, full):
        file = io.BytesIO()
        torch.save(one.state_dict(), file)
        sizes.append(len(file.getvalue()))
    assert sizes[0] < 0.4 * sizes[1]


def test_its_state_is_saved_without_code_and_goes_on_to_the_bit(adamw):
    net = network()
    optimizer = adamw(parameter_groups(net), lr=1e-3)
    train(net, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = copy.deepcopy(net)
    other = adamw(parameter_groups(resumed), lr=1.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert train(net, optimizer, range(3, 6)) == train(resumed, other, range(3, 6))
    for value, twin in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(value, twin)


def test_it_obeys_schedules_and_skips_steps_without_gradients(adamw):
    net = network()
    optimizer = adamw(parameter_groups(net), lr=1e-3, weight_decay=0.1)
    train(net, optimizer, range(2))
    before = copy.deepcopy(net)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * 0.0  # torchao's rates are tensors and must stay so
    train(net, optimizer, range(1))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * 1.0
    optimizer.zero_grad()
    optimizer.step()
    for value, twin in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(value, twin)
    train(net, optimizer, range(1))
    assert not torch.equal(net[0].gate.weight, before[0].gate.weight)
