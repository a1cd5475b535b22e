"""One training step on tensors without numbers, and what it takes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from einops import reduce
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.routing import Route
from pixelhdm.planning.kernels import autocast, cuda_kernels
from pixelhdm.planning.parts import Parts, Shape
from pixelhdm.planning.recording import Recorder, Work
from pixelhdm.planning.standins import stand_in
from pixelhdm.training.losses.perceptual import PerceptualLoss
from pixelhdm.training.optim.groups import parameter_groups


class Counted(NamedTuple):
    """What the forward and backward pass of a batch take.

    Attributes:
        kept: bytes that autograd keeps for the backward pass, parameters left out.
        forward_peak: most bytes that live at once in the forward pass.
        backward_peak: most in the backward pass, with the gradients that it has made by then.
        works: the operations of both.
    """

    kept: int
    forward_peak: int
    backward_peak: int
    works: list[Work]


class OptimizerCount(NamedTuple):
    """What an optimizer takes.

    Attributes:
        state: bytes of its states.
        peak: bytes that its step needs beside them.
        works: the operations of a step; none where it cannot run without numbers.
    """

    state: int
    peak: int
    works: list[Work]


class FakeStep:
    """Runs training steps of parts whose tensors have shapes and no numbers.

    With CPU kernels everything is as on this CPU. Otherwise the kernels are CUDA's, see
    cuda_kernels.

    Args:
        parts: parts on the meta device, which are moved.
        dtype: type of the matrix products.
        on_cpu: whether the CPU's kernels run.
    """

    def __init__(self, parts: Parts, dtype: torch.dtype, on_cpu: bool):
        self.parts, self.dtype, self.on_cpu = parts, dtype, on_cpu
        self.device, self.fakes = torch.device("cpu"), FakeTensorMode()
        self.trained = parts.trained
        stand_ins = [(frozen, stand_in(frozen)) for _, frozen in parts.frozen()]
        with self.world():
            move(self.trained, self.device)
            for frozen, network in stand_ins:
                frozen.network = move(network, self.device).eval().requires_grad_(False)
                frozen.device = self.device
                if not on_cpu:
                    for parameter in network.parameters():
                        parameter.data = parameter.data.to(frozen.gpu_dtype)

    @contextmanager
    def world(self) -> Iterator[None]:
        """Where tensors are fake and kernels are the device's."""
        with self.fakes, nullcontext() if self.on_cpu else cuda_kernels():
            yield

    def count(self, shape: Shape, mode: str | None = None) -> Counted:
        """What a batch takes, with a grad_checkpoint in the place of the network's own."""
        network = self.parts.network
        network.grad_checkpoint = mode or network.grad_checkpoint
        self.trained.zero_grad(set_to_none=True)
        kept: dict[Any, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage] = storage.nbytes()
            return tensor

        with self.world(), Recorder() as recorder:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = self.loss(shape)
            for parameter in self.trained.parameters():
                kept.pop(parameter.untyped_storage(), None)
            size = sum(kept.values())
            kept.clear()
            forward_peak = recorder.peak
            works = recorder.begin()
            loss.backward()
            works += recorder.works
        return Counted(size, forward_peak, recorder.peak, works)

    def loss(self, shape: Shape) -> Tensor:
        """The loss of a batch, as PixelHDMModule computes it."""
        num, height, width, _ = shape
        parts, size = self.parts, (num, height, width, 3)
        image = torch.zeros(size, dtype=torch.uint8, device=self.device).float() / 127.5 - 1
        noise = torch.empty(size, device=self.device)
        time = parts.flow.time(torch.empty(num, device=self.device), height, width)
        with autocast(self.dtype):
            sample = parts.flow.sample(image, noise, time)
            context = parts.conditioner(self.condition(shape))
            num_kept = parts.network.num_kept(height, width)
            if num_kept is not None:
                kept = torch.zeros(num, num_kept, dtype=torch.long, device=self.device)
                context = context._replace(route=Route(kept))
            prediction = parts.network(sample.z_t, sample.t, context)
            prediction = parts.flow.velocity(prediction, sample.z_t, sample.t)
            total = torch.zeros(num, device=self.device)
            for term in parts.loss.terms.values():
                if not term.active:
                    continue
                if isinstance(term, PerceptualLoss):  # which looks at the times' numbers
                    with torch.autocast("cpu", enabled=False):
                        clean = sample.clean(prediction.output.float())
                        value = term.distance(clean, sample.x.float())
                else:
                    value = term(prediction, sample)
                total = total + term.weight * value
        return reduce(total, "b -> ", "sum")

    def condition(self, shape: Shape) -> Any:
        """Class numbers, or what a text encoder gives for captions of equal length."""
        conditioner = self.parts.conditioner
        if not isinstance(conditioner, TextConditioner):
            return torch.zeros(shape.num, dtype=torch.long, device=self.device)
        states = torch.empty(
            shape.num,
            shape.text_len,
            conditioner.encoder.width,
            dtype=torch.bfloat16,
            device=self.device,
        )
        return list(states.unbind())

    def optimizer(self) -> OptimizerCount:
        """What a step of the optimizer takes; its gradients are there already."""
        with self.world():
            for parameter in self.trained.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer = self.parts.optimizer(parameter_groups(self.trained))
            for group in optimizer.param_groups:
                if group.get("foreach", ...) is None and not group.get("fused"):
                    group["foreach"] = not self.on_cpu  # PyTorch's choice on CUDA
            with Recorder() as recorder:
                optimizer.step()
                state = state_bytes(optimizer)
        self.trained.zero_grad(set_to_none=True)
        return OptimizerCount(state, max(0, recorder.peak - state), recorder.works)


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """Give a module new tensors of the same shapes, without numbers."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                new = torch.empty(value.shape, dtype=value.dtype, device=device)
                part._parameters[name] = nn.Parameter(new, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=device)
    return module


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's states."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def eight_bit_state(module: nn.Module, block: int = 256, least: int = 4096) -> int:
    """Bytes of two 8-bit states of an optimizer, whose kernels are its own: two bytes a number, and
    two float32 scales for every `block` of them (arXiv:2110.02861); of parameters below `least`
    numbers they stay float32.
    """
    sizes = (parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return sum(8 * n if n < least else 2 * n + 2 * 4 * -(-n // block) for n in sizes)
