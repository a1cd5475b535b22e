"""What does sampling cost beside the network's calls?

    python benchmarks/sampling.py                                 # default network, 256x256, CPU
    python benchmarks/sampling.py --device cuda --dtype bfloat16 --num_steps 20

Draws one image of random weights with each solver, without and with guidance, and calls the network
alone with the very inputs of these calls, by turns in one process. Columns:
    calls       calls of the network for the image
    draw s      median of draw_images: noise, contexts, solver, guidance, clamp
    bare s      median of the bare calls
    overhead    median over the turns of draw s / bare s - 1; the machine's noise is in it
    outside     share of draw_images' own time that passes outside of the network, median: the
                same, measured within each run and so without that noise
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.inference.draw import Drawing, draw_images
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.request import Request
from pixelhdm.inference.samplers import AdamsSampler, EulerSampler, HeunSampler, Sampler
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.cpu import keep_heap
from pixelhdm.models.flops import synchronize
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.training.flow import FlowMatching

SOLVERS = (EulerSampler(), HeunSampler(), AdamsSampler())


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long something takes."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def row(model: Model, sampler: Sampler, scale: float, arguments: argparse.Namespace) -> None:
    """Time and print one solver at one scale."""
    drawing = Drawing(sampler.with_steps(arguments.num_steps), Guidance(scale), TimeGrid())
    seeds = list(range(arguments.batch_size))
    condition = torch.zeros(arguments.batch_size, dtype=torch.long)
    request = Request(condition, seeds, *arguments.size)
    inputs, inside = [], []

    def before(_, given):
        inputs.append(given)
        synchronize(model.device)
        inside.append(-time.perf_counter())

    def after(*_):
        synchronize(model.device)
        inside[-1] += time.perf_counter()

    @torch.no_grad()
    def bare() -> None:
        for own in known:
            model.network(*own)

    draw_images(model, drawing, request)  # not counted
    turns, outside, drawn, alone = [], [], [], []
    for _ in range(arguments.repeats):
        inputs.clear(), inside.clear()
        hooks = [
            model.network.register_forward_pre_hook(before),
            model.network.register_forward_hook(after),
        ]
        whole = seconds(lambda: draw_images(model, drawing, request), model.device)
        for hook in hooks:
            hook.remove()
        known = list(inputs)
        outside.append(1 - sum(inside) / whole)
        drawn.append(seconds(lambda: draw_images(model, drawing, request), model.device))
        alone.append(seconds(bare, model.device))
        turns.append(drawn[-1] / alone[-1] - 1)
    print(
        f"{sampler.name:8}{scale:>6}{len(known):>8}{median(drawn):>10.3f}{median(alone):>10.3f}"
        f"{median(turns):>11.2%}{median(outside):>10.3%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="the network's weights and computation")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], metavar=("H", "W"))
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--solver", nargs="+", default=[own.name for own in SOLVERS])
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    if device.type == "cpu":
        keep_heap()
    torch.manual_seed(0)
    network = PixelHDM().to(device, dtype).eval().requires_grad_(False)
    conditioner = ClassConditioner(network.hidden_dim, 1000).to(device, dtype).eval()
    model = Model(network, conditioner, FlowMatching())
    num = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    print(
        f"{num:.0f} M parameters, {arguments.size}, batch {arguments.batch_size}, {device}, {dtype}"
    )
    print("solver   scale   calls    draw s    bare s   overhead   outside", flush=True)
    for sampler in SOLVERS:
        for scale in arguments.scale if sampler.name in arguments.solver else []:
            row(model, sampler, scale, arguments)


if __name__ == "__main__":
    main()
