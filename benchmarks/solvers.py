"""Which solver comes nearest to the exact way with the fewest calls of the network?

    python benchmarks/solvers.py --ckpt_path runs/quickstart/checkpoints/step_….ckpt

Draws the same seeds with every solver at 10, 25 and 50 calls of the network (a guided call is one,
the opening step of the trained span is counted) and prints the root mean square distance of the
images, in [-1, 1], to those of Heun's method in 1,000 steps on the same kind of times: once without
guidance and once with the config's. Solvers of two calls a step take as many steps as fit. Beneath:
whether multistep solvers at 25 calls come nearer than Euler at 50. Averaged weights; only the
solver differs, so that a distance says nothing about how good the images are.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.checkpoints import choose_weights, read_checkpoint
from pixelhdm.cli import run_cli
from pixelhdm.data.draw_loader import conditions
from pixelhdm.inference.draw import Drawing, draw_images
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.request import Request
from pixelhdm.inference.samplers import (
    AdamsSampler,
    DPM2MSampler,
    DPM2SSampler,
    EulerSampler,
    HeunSampler,
    Sampler,
)
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.initial_weights import fitting
from pixelhdm.module import PixelHDMModule
from pixelhdm.trainer_cli import PixelHDMCLI

MULTISTEP = (AdamsSampler(order=2), DPM2MSampler(), AdamsSampler(order=3), AdamsSampler(order=4))
SOLVERS = (EulerSampler(), *MULTISTEP, HeunSampler(), DPM2SSampler())
FEW, MANY = 25, 50


class Built(PixelHDMCLI):
    """The command line, which builds what a config says and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""


def trained(arguments: argparse.Namespace) -> tuple[PixelHDMModule, list]:
    """The module with its averaged weights, and what its config draws."""
    file = arguments.ckpt_path
    config = arguments.config or str(Path(file).parent.parent / "config.yaml")
    sys.argv = ["main.py", "predict", "-c", config, "--ckpt_path", file]
    built = run_cli(Built)
    module, data = built.model.eval(), built.datamodule
    state = choose_weights(read_checkpoint(file)["state_dict"], "ema", file)
    module.load_state_dict(fitting(module.state_dict(), state, file))
    return module, data.to_draw().items


def with_calls(sampler: Sampler, calls: int, grid: TimeGrid) -> Drawing:
    """A solver with the most steps that take no more than these calls; guidance is set later."""
    drawing = Drawing(sampler.with_steps(calls), Guidance(1.0), grid)
    while drawing.num_calls > calls:
        drawing = drawing._replace(sampler=sampler.with_steps(drawing.sampler.num_steps - 1))
    return drawing


def counted(model: Model, drawing: Drawing, request: Request) -> tuple[torch.Tensor, int]:
    """Images, and how often the network was called for them."""
    calls = []
    hook = model.network.register_forward_hook(lambda *_: calls.append(1))
    images = draw_images(model, drawing, request)
    hook.remove()
    return images, len(calls)


def table(
    model: Model, requests: list[Request], guidance: Guidance, grid: TimeGrid, arguments
) -> dict[tuple[str, int], float]:
    """Print the distances of all solvers; give them by solver and calls."""
    reference = Drawing(HeunSampler(arguments.reference), guidance, grid)
    exact = [draw_images(model, reference, own) for own in tqdm(requests, leave=False)]
    print(f"\nspan {grid.span}, shift {grid.shift}, guidance scale {guidance.scale}")
    print("calls   " + "".join(f"{calls:>16}" for calls in arguments.calls))
    found = {}
    for sampler in SOLVERS:
        cells = []
        for calls in arguments.calls:
            drawing = with_calls(sampler, calls, grid)._replace(guidance=guidance)
            squares = []
            for own, wanted in zip(requests, exact, strict=True):
                images, true = counted(model, drawing, own)
                if true != drawing.num_calls:
                    raise AssertionError(f"{sampler.name}: {true} calls, not {drawing.num_calls}")
                squares.append((images - wanted).square().mean(dim=(1, 2, 3)))
            found[sampler.name, calls] = torch.cat(squares).mean().sqrt().item()
            steps = f"({drawing.sampler.num_steps} steps)"
            cells.append(f"{found[sampler.name, calls]:>7.4f}{steps:>11}"[-18:].rjust(16))
        print(f"{sampler.name:8}" + "".join(cells), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the trained quickstart")
    parser.add_argument("-c", "--config", help="its config; empty takes the run's config.yaml")
    parser.add_argument("--calls", type=int, nargs="+", default=[10, FEW, MANY])
    parser.add_argument("--reference", type=int, default=1000, help="steps of Heun's method")
    parser.add_argument("--span", nargs="+", default=["trained"], help="trained, full")
    parser.add_argument("--shift", type=float, nargs="+", default=[1.0], help="of the times")
    parser.add_argument(
        "--num_images", type=int, default=100, help="of those that the config draws"
    )
    parser.add_argument("--batch_size", type=int, default=100)
    arguments = parser.parse_args()
    module, items = trained(arguments)
    items = items[:: max(1, len(items) // arguments.num_images)][: arguments.num_images]
    requests = []
    for size in dict.fromkeys((item.height, item.width) for item in items):
        own = [item for item in items if (item.height, item.width) == size]
        for start in range(0, len(own), arguments.batch_size):
            part = own[start : start + arguments.batch_size]
            requests.append(Request(conditions(part), [item.seed for item in part], *size))
    model = Model(module.network, module.conditioner, module.flow)
    for span in arguments.span:
        for shift in arguments.shift:
            for guidance in (Guidance(1.0), module.guidance):
                found = table(model, requests, guidance, TimeGrid(span, shift), arguments)
                if not {FEW, MANY} <= set(arguments.calls):
                    continue
                limit = found["Euler", MANY]
                for sampler in MULTISTEP:
                    own = found[sampler.name, FEW]
                    verdict = "nearer" if own < limit else "NOT nearer"
                    share = f"{own / limit:.2f} of its distance"
                    print(f"{sampler.name} at {FEW}: {verdict} than Euler at {MANY}, {share}")


if __name__ == "__main__":
    main()
