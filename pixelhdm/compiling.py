"""Compile before the first training step for the sizes that it will meet."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from pixelhdm.models.compile_report import REPORT, described, show
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.network import Network
from pixelhdm.training.draws import SeededRoutes

Shape = tuple[int, int, int]


def warm_up(
    network: Network,
    conditioner: Conditioner,
    shapes: list[Shape],
    precise: Callable[[], AbstractContextManager],
) -> None:
    """Run a compiled network forwards and backwards on made-up images of every shape.

    Afterwards weights, gradients and random numbers are as before. Each process does it by itself,
    with the network that DDP does not wrap; those of a sharded one do it together.

    Args:
        network: the network; its parameters' gradients are empty.
        conditioner: gives the network's context.
        shapes: batch size, height and width of all batches to come.
        precise: the precision of training.
    """
    with as_before(network, conditioner):
        for number, (batch, *size) in enumerate(shapes, start=1):
            for condition in conditions(conditioner, batch):
                start = time.perf_counter()
                with precise():
                    context = routed(network, *size, embedded(conditioner, condition, batch))
                    case = described(batch, *size, context)
                    say(f"Compiling for {case} ({number} of {len(shapes)}) … ")
                    loss = run(network, batch, *size, context)
                loss.backward()
                say(f"{time.perf_counter() - start:.1f} s\n", begins=False)


@contextmanager
def as_before(network: Network, conditioner: Conditioner) -> Iterator[None]:
    """Train on made-up batches inside, and leave no trace of them."""
    device = next(network.parameters()).device
    devices = [] if device.type == "cpu" else [device]
    was_training, REPORT.is_silent = network.training, True
    network.train()
    try:
        with torch.random.fork_rng(devices, device_type=device.type), torch.enable_grad():
            yield
    finally:
        network.train(was_training)
        REPORT.is_silent = False
        for part in (network, conditioner):
            part.zero_grad(set_to_none=True)


def conditions(conditioner: Conditioner, batch: int) -> list[list[Tensor] | None]:
    """The kinds of condition that training will meet: of texts the states of the longest, in a
    batch that needs a mask and in one that needs none; else the empty condition.

    The lengths of texts differ from batch to batch and share a graph.
    """
    if not isinstance(conditioner, TextConditioner):
        return [None]
    encoder = conditioner.encoder
    longest = [torch.randn(encoder.max_length, encoder.width) for _ in range(batch)]
    if batch == 1 or encoder.max_length == 1 or encoder.attends_padding:  # nothing to fill up
        return [longest]
    return [[longest[0][:1], *longest[1:]], longest]


def embedded(conditioner: Conditioner, condition: list[Tensor] | None, batch: int) -> Context:
    """The context of a condition; of none the empty one."""
    return conditioner.empty(batch) if condition is None else conditioner(condition)


def routed(network: Network, height: int, width: int, context: Context) -> Context:
    """A context with a route, where the network has one in training."""
    if network.routing is None:
        return context
    routes = SeededRoutes(list(range(len(context.pooled))))
    return context._replace(route=routes.fresh(network, height, width, context.pooled.device))


def run(
    network: Network, batch: int, height: int, width: int, context: Context
) -> Float[Tensor, ""]:
    """A forward pass; a number that depends on all of its output."""
    device = context.pooled.device
    image, t = torch.randn(batch, height, width, 3, device=device), torch.rand(batch, device=device)
    return network(image, t, context).output.float().square().mean()


@rank_zero_only
def say(text: str, begins: bool = True) -> None:
    """Print it once for all processes."""
    show(text, begins)
