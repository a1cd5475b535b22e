import copy

import pytest
import torch
from torch import nn

from pixelhdm.models.attention import GatedAttention
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.layers import SwiGLU
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.training.optim.groups import parameter_groups
from tests.stubs import randn, tiny_network


def parts(network: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"network": network, "conditioner": ClassConditioner(32, 10, 2)})


def with_gradients(module: nn.Module) -> nn.Module:
    for number, value in enumerate(module.parameters()):
        value.grad = randn(*value.shape, seed=number)
    return module


def test_groups_of_the_default_network():
    with torch.device("meta"):
        module = nn.ModuleDict({"network": PixelHDM(), "conditioner": ClassConditioner(1024, 1000)})
    names = {value: name for name, value in module.named_parameters()}
    qkv, hidden, other, no_decay = groups = parameter_groups(module)
    assert [group["role"] for group in groups] == ["hidden", "hidden", "other", "no_decay"]
    assert [group.get("split") for group in groups] == [(1024, 256, 256), None, None, None]
    assert [group.get("weight_decay") for group in groups] == [None, None, None, 0.0]
    # 20 attentions; 5 more matrices in 16 patch blocks and 7 in 4 pixel blocks; then 2 + 2
    # embeddings, 16 modulations, 1 + 1 pixel in and out, 2 per modulator; then 7 norms and biases
    # a block, 2 of time, 1 of pixels, 2 at the end and 2 tables of classes
    assert [len(group["params"]) for group in groups] == [20, 108, 30, 147]
    assert {names[value].split(".")[-2] for value in qkv["params"]} == {"qkv"}
    assert {names[value].split(".")[-2] for value in hidden["params"]} == {
        *("gate", "out", "up", "compress", "expand")
    }
    assert sum(names[value].endswith("modulation.weight") for value in other["params"]) == 16
    assert {"network.final.weight", "network.pixel_blocks.3.modulator.out.weight"} < {
        names[value] for value in other["params"]
    }
    ends = [names[value] for value in no_decay["params"] if value.ndim > 1]
    assert ends == ["conditioner.pooled.weight", "conditioner.tokens.weight"]


def test_every_trained_parameter_is_in_one_group_in_a_fixed_order():
    module = parts(tiny_network())
    module["network"].time_embedding.requires_grad_(False)
    grouped = [value for group in parameter_groups(module) for value in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {value for value in module.parameters() if value.requires_grad}
    again = [value for group in parameter_groups(module) for value in group["params"]]
    assert all(a is b for a, b in zip(grouped, again, strict=True))


def test_hidden_layers_are_found_wherever_they_are():
    attention, mlp = GatedAttention(8, 2, 1, 4), SwiGLU(8, 24)
    loss = nn.Sequential(nn.Sequential(attention), nn.Linear(8, 8, bias=False), mlp)
    qkv, hidden, other, no_decay = parameter_groups(loss)
    assert qkv["split"] == (8, 4, 4)
    assert qkv["params"] == [attention.qkv.weight]
    assert sum(value.numel() for value in hidden["params"]) == 2 * 8 + 8 * 8 + 3 * 8 * 24
    assert other["params"] == [loss[1].weight]
    assert no_decay["params"] == [attention.q_norm.weight, attention.k_norm.weight]


def test_learned_tensors_of_any_shape_do_not_decay():
    module = nn.Conv2d(3, 8, 2)
    module.positions = nn.Parameter(torch.zeros(16, 8))
    other, no_decay = parameter_groups(module)
    assert other["params"] == [module.weight]
    assert {id(value) for value in no_decay["params"]} == {id(module.bias), id(module.positions)}


def test_a_shared_parameter_is_trained_once():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    module[1].weight = module[0].weight
    (group,) = parameter_groups(module)
    assert group == {"params": [module[0].weight], "role": "no_decay", "weight_decay": 0.0}


@pytest.mark.parametrize("settings", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_adamw_on_groups_is_adamw(settings):
    module = with_gradients(parts(tiny_network()))
    plain = copy.deepcopy(module)
    for (_, value), twin in zip(module.named_parameters(), plain.parameters(), strict=True):
        twin.grad = value.grad.clone()
    optimizers = [
        torch.optim.AdamW(parameter_groups(module), lr=1e-2, weight_decay=0.0, **settings),
        torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0, **settings),
    ]
    for optimizer in optimizers:
        optimizer.step()
        optimizer.step()
    for value, twin in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(value, twin)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_matrices_decay_and_nothing_else(optimizer):
    module = parts(tiny_network())
    groups = parameter_groups(module)
    before = {value: value.detach().clone() for value in module.parameters()}
    for value in module.parameters():
        value.grad = torch.zeros_like(value)
    optimizer(groups, lr=0.5, weight_decay=0.1).step()
    for group in groups:
        kept = 1.0 if group["role"] == "no_decay" else 0.95
        for value in group["params"]:
            torch.testing.assert_close(value.detach(), kept * before[value])
