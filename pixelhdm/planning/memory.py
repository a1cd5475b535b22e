"""How much memory a training takes, part by part."""

from typing import NamedTuple

from torch import nn

from pixelhdm.planning.gpus import GIB
from pixelhdm.planning.speed import Line

# CUDA's context and kernels, workspaces of its libraries: what a process takes beside its tensors.
CONTEXT_BYTES = 0.75 * GIB
# Share of what comes and goes in a step that PyTorch's allocator cannot use.
FRAGMENTATION = 0.05
FLOAT32 = 4


class Static(NamedTuple):
    """Bytes that stay from step to step.

    Attributes:
        weights: trained parameters and buffers.
        gradients: of the trained parameters.
        states: of the optimizer.
        averages: copies of the averaged weights, of which there may be several.
        frozen: networks that are used and not trained.
        encoder: the text encoder.
        block: parameters of the largest block, which sharding gathers.
    """

    weights: int
    gradients: int
    states: int
    averages: int
    frozen: int
    encoder: int
    block: int


class Setting(NamedTuple):
    """What decides how much memory a training takes and how fast it is.

    Attributes:
        mode: grad_checkpoint of the network.
        num: images of a batch.
        accumulate: batches of a step.
        average_on_cpu: whether the average lies in the CPU's memory.
        offloads: whether activations move to the CPU's memory.
        is_eight_bit: whether the optimizer's states have 8 bits.
        is_sharded: whether weights are shared out over the processes.
    """

    mode: str
    num: int
    accumulate: int
    average_on_cpu: bool
    offloads: bool
    is_eight_bit: bool
    is_sharded: bool


class Passes(NamedTuple):
    """Bytes of a step's passes by the images of a batch.

    Attributes:
        kept: what autograd keeps.
        forward: most that lives at once in the forward pass.
        backward: most in the backward pass, the gradients made by then among them.
    """

    kept: Line
    forward: Line
    backward: Line

    def scaled(self, factor: float) -> "Passes":
        """The same, all times a factor."""
        return Passes(*(Line(factor * own.constant, factor * own.slope) for own in self))

    def most(self, num: int, gradients: float, accumulate: int) -> float:
        """Most bytes of a step with its gradients.

        Lightning drops the last step's gradients after the forward pass, and those of a step's
        earlier batches are there in both passes.
        """
        backward = self.backward(num) + (gradients if accumulate > 1 else 0)
        return max(gradients + self.forward(num), backward)


def parts_of(
    static: Static,
    passes: Passes,
    setting: Setting,
    num_processes: int,
    eight_bit_states: int,
    on_cpu: bool,
) -> dict[str, float]:
    """Bytes of each part on one device, whose sum must fit."""
    ranks = num_processes if setting.is_sharded else 1
    states = eight_bit_states if setting.is_eight_bit else static.states
    gradients = static.gradients / ranks
    moving = passes.most(setting.num, static.gradients, setting.accumulate) - static.gradients
    kept = min(moving, passes.kept(setting.num))
    parts = {
        "weights": static.weights / ranks,
        "gradients": gradients,
        "optimizer states": states / ranks,
        "averages": 0.0 if setting.average_on_cpu else static.averages / ranks,
        "frozen networks": float(static.frozen),
        "text encoder": float(static.encoder),
        "activations kept": kept,
        "passes' peak beyond": moving - kept,
    }
    if num_processes > 1 and not setting.is_sharded:
        parts["DDP's buckets"] = float(static.gradients)
    if setting.is_sharded:
        parts["gathered blocks"] = 3.0 * static.block  # two in use, and a gradient
    if not on_cpu:
        parts["CUDA and fragmentation"] = CONTEXT_BYTES + FRAGMENTATION * (moving + gradients)
    return parts


def size_of(module: nn.Module, only_trained: bool = False) -> int:
    """Bytes of a module's parameters and buffers, or of its trained parameters."""
    if only_trained:
        return sum(p.nbytes for p in module.parameters() if p.requires_grad)
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
