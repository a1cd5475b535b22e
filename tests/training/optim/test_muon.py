import copy
import io
from collections.abc import Iterable

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader

from pixelhdm.errors import UserError
from pixelhdm.models.attention import GatedAttention
from pixelhdm.training.optim.groups import parameter_groups
from pixelhdm.training.optim.muon import MuonAdamW
from tests.stubs import randn


class Net(nn.Module):
    """One attention layer (hidden), one linear layer (other) and biases."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.head = GatedAttention(8, 4, 2, 4), nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention.out(self.attention.qkv(x)[..., :16]))


def give_gradients(parameters: Iterable[nn.Parameter], step: int) -> None:
    for number, value in enumerate(parameters):
        value.grad = randn(*value.shape, seed=100 * step + number)


def trained(optimizer: torch.optim.Optimizer, net: Net, steps: Iterable[int]) -> Net:
    for step in steps:
        give_gradients(net.parameters(), step)
        optimizer.step()
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(a.parameters(), b.parameters(), strict=True))


def test_queries_keys_and_values_are_orthogonalised_apart():
    net = Net()
    weight = net.attention.qkv.weight
    before = weight.detach().clone()
    trained(MuonAdamW(parameter_groups(net), lr=0.01), net, [1])
    moved, gradients = (before - weight.detach()).split([16, 8, 8]), weight.grad.split([16, 8, 8])
    for step, gradient in zip(moved, gradients, strict=True):
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        inner = u.T @ step @ vh.T / (0.01 * 0.2 * max(gradient.shape) ** 0.5)
        assert (inner.diag() > 0.6).all()  # Newton-Schulz leaves singular values about 1
        assert (inner.diag() < 1.3).all()
        assert (inner - inner.diag().diag()).abs().max() < 0.05


def test_it_is_torch_muon_on_each_matrix_and_torch_adamw_on_the_rest():
    net = Net()
    optimizer = MuonAdamW(
        parameter_groups(net), lr=0.01, hidden_lr=0.03, weight_decay=0.1, momentum=0.9, ns_steps=3
    )
    twin = Net()
    matrices = [
        nn.Parameter(matrix.clone())
        for matrix in (
            *twin.attention.qkv.weight.detach().split([16, 8, 8]),
            twin.attention.gate.weight.detach(),
            twin.attention.out.weight.detach(),
        )
    ]
    muon = torch.optim.Muon(
        matrices,
        lr=0.03,
        weight_decay=0.1,
        momentum=0.9,
        ns_steps=3,
        adjust_lr_fn="match_rms_adamw",
    )
    norms = [twin.attention.q_norm.weight, twin.attention.k_norm.weight]
    rest = [
        {"params": [twin.head.weight], "weight_decay": 0.1},
        {"params": [*norms, twin.head.bias], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95))
    for step in range(3):
        trained(optimizer, net, [step])
        give_gradients(twin.parameters(), step)
        attention = twin.attention
        gradients = (
            *attention.qkv.weight.grad.split([16, 8, 8]),
            attention.gate.weight.grad,
            attention.out.weight.grad,
        )
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient
        muon.step()
        adamw.step()
    assert torch.equal(net.attention.qkv.weight, torch.cat(matrices[:3]))
    assert torch.equal(net.attention.gate.weight, matrices[3])
    assert torch.equal(net.attention.out.weight, matrices[4])
    assert torch.equal(net.head.weight, twin.head.weight)
    assert torch.equal(net.head.bias, twin.head.bias)
    assert torch.equal(net.attention.q_norm.weight, norms[0])


def test_a_saved_state_goes_on_to_the_bit():
    net = Net()
    optimizer = MuonAdamW(parameter_groups(net), lr=0.01, weight_decay=0.1)
    trained(optimizer, net, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = copy.deepcopy(net)
    other = MuonAdamW(parameter_groups(resumed), lr=0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(trained(optimizer, net, range(3, 6)), trained(other, resumed, range(3, 6)))
    assert len(optimizer.state_dict()["state"]) == len(list(net.parameters()))


def test_learning_rates_can_be_set_by_group_after_loading_too():
    net = Net()
    optimizer = MuonAdamW(parameter_groups(net), lr=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * 4
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.02 if group["role"] == "no_decay" else 0.0
    before = copy.deepcopy(net)
    trained(optimizer, net, [1])
    moved = {
        name
        for (name, a), b in zip(net.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved == {"attention.q_norm.weight", "attention.k_norm.weight", "head.bias"}


def test_a_step_without_gradients_changes_nothing():
    net = Net()
    optimizer = MuonAdamW(parameter_groups(net), lr=0.01, weight_decay=0.1)
    trained(optimizer, net, [0])
    weights, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    optimizer.step()
    assert same(net, weights)
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, state["state"][number][name])


def test_gradients_are_not_held_after_the_step():
    net = Net()
    optimizer = MuonAdamW(parameter_groups(net))
    trained(optimizer, net, [0])
    gradients = [StorageWeakRef(value.grad.untyped_storage()) for value in net.parameters()]
    optimizer.zero_grad()
    assert all(gradient.expired() for gradient in gradients)


def test_a_closure_is_called_with_gradients_and_gives_the_result():
    net = Net()
    optimizer, before = MuonAdamW(parameter_groups(net), lr=0.01), copy.deepcopy(net)

    def closure() -> torch.Tensor:
        loss = net(randn(2, 3, 8)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) == before(randn(2, 3, 8)).square().mean()
    assert not torch.equal(net.attention.qkv.weight, before.attention.qkv.weight)
    assert not torch.equal(net.head.weight, before.head.weight)


def test_a_gradient_scaler_changes_nothing_and_skips_infinity():
    plain, scaled = Net(), Net()
    trained(MuonAdamW(parameter_groups(plain), lr=0.01), plain, range(2))
    optimizer = MuonAdamW(parameter_groups(scaled), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(2):
        scaler.scale(torch.ones(()))
        give_gradients(scaled.parameters(), step)
        for value in scaled.parameters():
            value.grad *= 1024
        scaler.step(optimizer)
        scaler.update()
    assert same(plain, scaled)
    give_gradients(scaled.parameters(), 2)
    scaled.attention.qkv.weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    assert same(plain, scaled)


class Trained(LightningModule):
    """Trains Net on fixed inputs under Lightning."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> MuonAdamW:
        return MuonAdamW(parameter_groups(self), lr=0.01)


def test_lightning_trains_with_it_and_resumes_to_the_bit(tmp_path):
    batches = [randn(2, 3, 8, seed=seed) for seed in range(8)]
    expected = Net()
    optimizer = MuonAdamW(parameter_groups(expected), lr=0.01)
    for one, two in zip(batches[::2], batches[1::2], strict=True):
        optimizer.zero_grad()
        for batch in (one, two):
            (expected(batch).square().mean() / 2).backward()
        optimizer.step()

    def loader(given: list[torch.Tensor]) -> DataLoader:
        return DataLoader(given, batch_size=None)

    def trainer(epochs: int) -> Trainer:
        return Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            accumulate_grad_batches=2,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    whole, half, resumed = Trained(), Trained(), Trained()
    trainer(1).fit(whole, loader(batches))
    assert same(whole.net, expected)
    first = trainer(1)
    first.fit(half, loader(batches[:4]))
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(2).fit(
        resumed, loader(batches[4:]), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert same(resumed.net, expected)


def test_it_is_built_from_a_config():
    parser = ArgumentParser()
    parser.add_argument("--optimizer", type=OptimizerCallable)
    settings = {"lr": 0.01, "hidden_lr": 0.02, "betas": [0.8, 0.9]}
    given = {"class_path": "pixelhdm.training.optim.muon.MuonAdamW", "init_args": settings}
    build = parser.instantiate(parser.parse_object({"optimizer": given})).optimizer
    groups = build(parameter_groups(Net())).param_groups
    assert [group["lr"] for group in groups] == [0.02, 0.02, 0.01, 0.01]
    assert groups[2]["betas"] == (0.8, 0.9)


def test_it_needs_whole_hidden_matrices():
    with pytest.raises(UserError, match="MuonAdamW must have hidden matrices to train"):
        MuonAdamW(parameter_groups(nn.Linear(3, 3)))
    net = Net()
    net.attention.qkv.weight.full_tensor = None  # what tells a sharded tensor
    with pytest.raises(UserError, match="MuonAdamW must have whole matrices, got sharded ones"):
        MuonAdamW(parameter_groups(net))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ns_steps": 0}, "ns_steps must lie in 1 … 99, got 0"),
        ({"ns_steps": 100}, "ns_steps must lie in 1 … 99, got 100"),
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"hidden_lr": -1.0}, "hidden_lr must be at least 0, got -1.0"),
        ({"momentum": 1.0}, "momentum must lie in 0 … 1"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        MuonAdamW(parameter_groups(Net()), **settings)
