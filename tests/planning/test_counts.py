"""What is counted on tensors without numbers is what real ones take."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.planning.fake_step import FakeStep, eight_bit_state
from pixelhdm.planning.forecast import MODES
from pixelhdm.planning.kernels import autocast, cuda_kernels
from pixelhdm.planning.memory import Passes
from pixelhdm.planning.parts import Parts, Shape
from pixelhdm.planning.recording import Recorder
from pixelhdm.planning.speed import Line, fused
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.frequency import FrequencyLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from pixelhdm.training.optim.groups import parameter_groups
from pixelhdm.training.optim.muon import MuonAdamW
from tests.stubs import tiny_network

SIZE = Shape(3, 64, 64, 0)
ADAMW = partial(torch.optim.AdamW, lr=1e-3, fused=True)


def parts(optimizer=ADAMW) -> Parts:
    """Real parts; a width of 128 takes the fast paths of a CPU."""
    network = tiny_network(hidden_dim=128, patch_size=4, head_dim=32, rope_dims=(8, 12, 12))
    loss = TripleLoss(VelocityLoss(), FrequencyLoss())
    return Parts(network, ClassConditioner(128, 3, 2), FlowMatching(), loss, optimizer)


def real_kept(parts: Parts, shape: Shape) -> int:
    """Bytes that autograd keeps of a real step."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(shape.num, shape.height, shape.width, 3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sample = parts.flow.sample(x, torch.randn_like(x), torch.rand(shape.num))
        context = parts.conditioner(torch.zeros(shape.num, dtype=torch.long))
        prediction = parts.network(sample.z_t, sample.t, context)
        loss = parts.loss(parts.flow.velocity(prediction, sample.z_t, sample.t), sample)
    for parameter in parts.trained.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert loss["total"].requires_grad
    return sum(kept.values())


def test_a_step_on_this_cpu_keeps_the_counted_bytes_in_every_mode():
    own, real = parts(), {}
    for mode in MODES:
        own.network.grad_checkpoint = mode
        real[mode] = real_kept(own, SIZE)
    step = FakeStep(own, torch.float32, on_cpu=True)
    assert {mode: step.count(SIZE, mode).kept for mode in MODES} == real
    assert len(set(real.values())) == len(MODES)


def test_cuda_s_norms_keep_what_fake_cuda_tensors_keep():
    def kept(device: str) -> int:
        found = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
            return tensor

        with FakeTensorMode():
            x = torch.empty(4, 8, 16, device=device, dtype=torch.bfloat16, requires_grad=True)
            torch.set_autocast_enabled(device, True)
            torch.set_autocast_dtype(device, torch.bfloat16)
            try:
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    y = F.layer_norm(F.rms_norm(x, (16,), eps=1e-6), (16,))
            finally:
                torch.set_autocast_enabled(device, False)
            assert y.dtype == torch.float32
            return sum(found.values())

    on_cuda = kept("cuda")
    with cuda_kernels():
        assert kept("cpu") == on_cuda


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_and_arithmetic_are_lines_in_the_batch(dtype):
    step = FakeStep(parts(), dtype, on_cpu=False)
    counts = {n: step.count(SIZE._replace(num=n), "none") for n in (8, 16, 40)}
    for value in (lambda c: c.kept, lambda c: c.forward_peak, lambda c: flop(c.works)):
        line = Line.through(8, value(counts[8]), 16, value(counts[16]))
        assert line(40) == value(counts[40])


def flop(works) -> int:
    return sum(work.flop for work in works)


def test_bfloat16_keeps_a_copy_of_every_weight_that_is_multiplied():
    half, single = (FakeStep(parts(), d, on_cpu=False) for d in (torch.bfloat16, torch.float32))
    counts = [[s.count(SIZE._replace(num=n)).kept for n in (1, 2)] for s in (half, single)]
    constant = [2 * one - two for one, two in counts]
    linears = sum(
        module.weight.numel()
        for module in half.trained.modules()
        if isinstance(module, torch.nn.Linear)
    )
    # All but those whose input has no gradient, and biases.
    assert constant[0] - constant[1] == pytest.approx(2 * linears, rel=0.05)


def test_checkpointing_all_computes_the_blocks_again():
    step = FakeStep(parts(), torch.bfloat16, on_cpu=False)
    none, every = (step.count(SIZE, mode) for mode in ("none", "all"))
    assert 1.25 < flop(every.works) / flop(none.works) < 4 / 3 + 0.01
    assert every.kept < none.kept / 4


def test_the_peak_is_of_what_lives_at_once():
    with Recorder() as recorder:
        x = torch.empty(1000)
        y = x + 1
        del x
        z = y * 2
        view = z[:10]
        del z
        y.add_(1)
    assert recorder.peak == 8000
    assert recorder.live == 8000  # the view holds all
    assert len(view) == 10
    moved = [work.moved for work in recorder.works]
    assert moved == [4000, 8000, 8000, 8000]


def test_a_chain_between_products_reads_and_writes_once():
    with Recorder() as recorder:
        x = torch.randn(16, 16)
        recorder.begin()
        y = (torch.relu(x @ x) * 3 + x).sigmoid() @ x
    first, chain, last = fused(recorder.works)
    assert first.flop == last.flop == 2 * 16**3
    assert sum(chain.read.values()) == 2 * x.nbytes
    assert sum(chain.written.values()) == y.nbytes


def test_the_optimizer_s_states_have_their_closed_forms():
    own = parts()
    count = sum(p.numel() for p in own.trained.parameters())
    tensors = len(list(own.trained.parameters()))
    adamw = FakeStep(own, torch.bfloat16, on_cpu=False).optimizer()
    assert adamw.state == 8 * count + 4 * tensors
    assert sum(work.moved for work in adamw.works) >= 28 * count
    muon_parts = parts(partial(MuonAdamW, lr=1e-3))
    groups = parameter_groups(muon_parts.trained)
    hidden = [p for g in groups if g["role"] == "hidden" for p in g["params"]]
    in_hidden = sum(p.numel() for p in hidden)
    muon = FakeStep(muon_parts, torch.bfloat16, on_cpu=False).optimizer()
    assert muon.state == 8 * count - 4 * in_hidden + 4 * (tensors - len(hidden))
    assert flop(muon.works) > 0


def test_eight_bit_states_have_scales_and_leave_small_parameters():
    assert eight_bit_state(torch.nn.Linear(64, 65)) == 2 * 4160 + 8 * 17 + 8 * 65


def test_gradients_of_the_last_step_live_through_the_forward_pass():
    passes = Passes(Line(0, 10), Line(0, 12), Line(0, 13))
    assert passes.most(10, gradients=50, accumulate=1) == 50 + 120
    assert passes.most(10, gradients=5, accumulate=1) == 130
    assert passes.most(10, gradients=5, accumulate=2) == 135


def test_autocast_is_off_for_float32():
    with autocast(torch.float32):
        assert not torch.is_autocast_enabled("cpu")


def test_the_default_network_s_attention_counts_its_grouped_heads():
    with torch.device("meta"):
        network = PixelHDM(hidden_dim=64, patch_depth=1, pixel_depth=0, feature_block=1)
    own = Parts(
        network, ClassConditioner(64, 3, 0), FlowMatching(), TripleLoss(VelocityLoss()), ADAMW
    )
    step = FakeStep(own, torch.bfloat16, on_cpu=False)
    counts = [flop(step.count(Shape(1, side, side, 0)).works) for side in (16, 32, 64)]
    # Lengths 1, 4, 16: what is no multiple of the length is attention, 7 products of S² · 1024.
    slope = (counts[1] - counts[0]) / 3, (counts[2] - counts[1]) / 12
    assert (slope[1] - slope[0]) / 15 == pytest.approx(7 * 2 * 1024, rel=1e-6)
