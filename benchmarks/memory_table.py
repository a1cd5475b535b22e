"""Predict README's table: the largest batch of the default network, and images a second with it.

    python benchmarks/memory_table.py                   # 256, 512, 1024 px; 16 to 141 GB

Nothing is measured: see pixelhdm/planning. bf16-mixed, AdamW, an average, the loss without REPA, 8
class tokens. A row is a GPU and a size, a column a grad_checkpoint; each cell has the largest batch
and the images a second with it.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.planning.forecast import Forecast
from pixelhdm.planning.gpus import USUAL, find_gpu
from pixelhdm.planning.parts import Job, Parts, Shape
from pixelhdm.planning.report import largest
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.frequency import FrequencyLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss


def forecast(side: int, compiled: bool) -> Forecast:
    with torch.device("meta"):
        network = PixelHDM()
        parts = Parts(
            network,
            ClassConditioner(network.hidden_dim, 1000),
            FlowMatching(),
            TripleLoss(VelocityLoss(), FrequencyLoss()),
            partial(torch.optim.AdamW, lr=1e-4, fused=True),
        )
    shape = Shape(1, side, side, 0)
    job = Job(
        parts,
        (shape,),
        num_sizes=1,
        dtype=torch.bfloat16,
        accumulate=1,
        max_steps=None,
        num_averages=1,
        average_on_cpu=False,
        optimizer_name="torch.optim.AdamW",
        is_compiled=compiled,
        is_sharded=False,
        can_shard=False,
        num_processes=1,
        encoder=None,
        on_cpu=False,
        repa_steps=None,
    )
    return Forecast(job, on_cpu=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--gpus", nargs="+", default=list(USUAL))
    parser.add_argument("--modes", nargs="+", default=["none", "selective", "all"])
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    print("Predicted, largest batch: images a second.\n")
    print("| GPU | px |", " | ".join(args.modes), "|")
    print("|---|---|", "|".join("---" for _ in args.modes), "|", sep="")
    for side in args.sizes:
        own = forecast(side, args.compile)
        for gpu in map(find_gpu, args.gpus):
            cells = []
            for mode in args.modes:
                most = largest(own, gpu, own.own._replace(mode=mode))
                cell = f"{most['images']}: {most['images_per_second']:.3g}"
                cells.append(cell if most["images"] else "–")
            row = " | ".join(cells)
            print(f"| {gpu.name}, {gpu.gib:.0f} GiB | {side} | {row} |", flush=True)


if __name__ == "__main__":
    main()
