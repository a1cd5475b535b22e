import copy

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from pixelhdm.models import offload, selective
from pixelhdm.models.network import Network
from pixelhdm.models.offload import Lane, Offload
from tests.stubs import Sized, context, perturb, randn, tiny_network


class SlowLane(Lane):
    """Copies within CPU memory that happen as late as a device may do them: when they are waited
    for. What is read before that is noise.
    """

    def __init__(self):
        self.left: list[StorageWeakRef] = []
        self.num_back = 0
        self.todo: list[tuple[Tensor, Tensor]] = []
        self.num_done = 0

    def leave(self, flat: Tensor) -> tuple[Tensor, int]:
        self.left.append(StorageWeakRef(flat.untyped_storage()))
        host = torch.full_like(flat, 77)
        return host, self.later(host, flat)

    def come_back(self, host: Tensor) -> tuple[Tensor, int]:
        self.num_back += 1
        flat = torch.full_like(host, 78)
        return flat, self.later(flat, host)

    def later(self, target: Tensor, source: Tensor) -> int:
        self.todo.append((target, source))
        return len(self.todo) + self.num_done

    def wait(self, mark: int) -> None:
        while self.num_done < mark:
            target, source = self.todo.pop(0)
            target.copy_(source)
            self.num_done += 1

    @property
    def num_gone(self) -> int:
        """How many storages are no longer on the device."""
        return sum(ref.expired() for ref in self.left)


@pytest.fixture
def lane(monkeypatch) -> SlowLane:
    lane = SlowLane()
    monkeypatch.setattr(offload, "lane_of", lambda device: lane)
    monkeypatch.setattr(offload, "MIN_BYTES", 256)
    monkeypatch.setattr(selective, "MIN_PRODUCTS", 16)
    return lane


def forward(network: Network, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    given = randn(4, 8, 12, 3, seed=seed), torch.rand(4), context(4, 3, seed=seed)
    prediction = network(*given)
    return prediction.output.square().mean() + prediction.features.square().mean()


def gradients(network: Network, *losses: Tensor) -> list[Tensor]:
    network.zero_grad()
    for loss in losses:
        loss.backward()
    return [value.grad.clone() for value in network.parameters()]


def both(mode: str = "none", depth: int = 3) -> tuple[Network, Network]:
    """A network, and the same one that offloads."""
    sizes = {"grad_checkpoint": mode, "patch_depth": depth, "feature_block": 1}
    plain, moving = (
        perturb(tiny_network(activation_offload=on, **sizes)).train() for on in (False, True)
    )
    return plain, moving


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("mode", ["none", "pixel", "selective", "all"])
def test_gradients_are_equal_to_the_bit_in_every_mode(lane, mode, mixed):
    plain, moving = both(mode)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        for seed in (1, 2):
            expected, loss = gradients(plain, forward(plain, seed)), forward(moving, seed)
            assert lane.num_gone > 0
            assert all(map(torch.equal, expected, gradients(moving, loss)))
    assert lane.num_back > 0


def test_a_storage_moves_once_and_all_but_the_last_blocks_leave(lane):
    _, moving = both(depth=8)
    loss = forward(moving)
    assert len({ref.cdata for ref in lane.left}) == len(lane.left)
    assert lane.num_gone > 0.8 * len(lane.left)
    weights = {value.untyped_storage()._cdata for value in moving.parameters()}
    assert not weights & {ref.cdata for ref in lane.left}
    loss.backward()
    assert lane.num_back <= len(lane.left)
    assert lane.num_gone == len(lane.left)  # and all is free after the backward pass


def test_what_is_left_on_the_device_does_not_grow_with_the_depth(lane):
    stays = []
    for depth in (4, 8):
        lane.left.clear()
        loss = forward(both(depth=depth)[1])
        stays.append(len(lane.left) - lane.num_gone)
        del loss
    assert stays[0] == stays[1]


def test_graphs_may_wait_for_each_other_and_be_used_twice(lane):
    plain, moving = both()
    expected = gradients(plain, forward(plain, 1), forward(plain, 2))
    first, second = forward(moving, 1), forward(moving, 2)
    assert all(map(torch.equal, expected, gradients(moving, first, second)))
    loss = forward(moving, 3)
    moving.zero_grad()
    loss.backward(retain_graph=True)
    once = [value.grad.clone() for value in moving.parameters()]
    loss.backward()
    assert all(torch.equal(2 * a, b.grad) for a, b in zip(once, moving.parameters(), strict=True))


class Halves(nn.Module):
    """Two layers, between which the compiler may have to stop."""

    def __init__(self, stop: bool):
        super().__init__()
        self.first, self.second, self.stop = nn.Linear(32, 64), nn.Linear(64, 32), stop

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x))
        if self.stop:
            torch._dynamo.graph_break()
        return torch.sin(self.second(x))


class Views(torch.autograd.Function):
    """Keeps views of one storage and gives them to `seen` in the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, seen: list) -> Tensor:
        ctx.seen = seen
        ctx.save_for_backward(x.t(), x[1:, ::2], x[:1].expand(5, -1), x.view(torch.int32), x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        ctx.seen.extend(ctx.saved_tensors)
        return grad, None


def test_views_come_back_with_their_strides_from_one_copy(lane):
    x, seen = randn(16, 16).requires_grad_(), []
    expected = [x.t(), x[1:, ::2], x[:1].expand(5, -1), x.view(torch.int32), x]
    mover = Offload()
    out = mover.run(nn.Module(), lambda: Views.apply(x * 1.0, seen))
    mover.run(nn.Module(), lambda: None)  # frees what the block before keeps
    assert (len(lane.left), lane.num_gone) == (1, 1)
    out.sum().backward()
    assert lane.num_back == 1
    for value, own in zip(expected, seen, strict=True):
        assert torch.equal(value, own)
        assert (value.stride(), value.dtype) == (own.stride(), own.dtype)
        assert value.storage_offset() == own.storage_offset()
    assert len({value.untyped_storage().data_ptr() for value in seen}) == 1


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_blocks_are_offloaded_too(lane, fullgraph):
    """Also where the compiler has to stop in the middle of a block."""
    network = Sized(32, 2)
    network.blocks = nn.ModuleList(Halves(stop=not fullgraph) for _ in range(3))
    for block in network.blocks:
        block.compile(backend="aot_eager", fullgraph=fullgraph)
    found = []
    for network.activation_offload in (False, True):
        x = randn(8, 32)
        for block in network.blocks:
            x = network.run_block(block, x, again=False)
        found.append(gradients(network, x.square().sum()))
    assert all(map(torch.equal, *found))
    assert lane.num_back > 0


def test_a_copy_of_a_network_in_the_middle_of_a_step_keeps_nothing(lane):
    _, moving = both()
    loss = forward(moving)
    other = copy.deepcopy(moving)
    assert other.offload.last is None
    assert all(map(torch.equal, gradients(moving, loss), gradients(other, forward(other))))


def test_small_storages_and_those_of_a_cpu_stay(lane, monkeypatch):
    _, moving = both()
    monkeypatch.setattr(offload, "MIN_BYTES", 2**20)
    forward(moving)
    monkeypatch.undo()
    forward(moving)
    assert lane.left == []
