"""Equal CPU time on CIFAR-10: a tiny model of ours, and the public framework's model of that name.

    python main.py prepare …    # the shards of CIFAR-10, see configs_c2i/cifar10.yaml
    python benchmarks/tiny.py --name pixeldit --seconds 240
    python benchmarks/tiny.py --ours 1e-3 2e-3 --theirs 5e-4 1e-3 --seconds 90   # learning rates
    python benchmarks/tiny.py --name dit --variant= --variant=--model.network.depth=3

Ours is the config's network, flow, loss, optimizer and schedule, with the command line's own
clipping and average; theirs is benchmarks/tiny_reference.py with its truncated times. Both see the
same images in the same order, in batches of the same size. Contestants take turns of a few
CPU-seconds, so that other work on the machine disturbs all alike, until each has trained for
--seconds of time.process_time, on one thread. The data lie in memory; a step of ours includes
drawing, clipping and the average.

Then the mean squared error of the clean image, in [-1, 1], that each predicts of --images held-out
images at fixed times, with the same noise for all. Raw weights or average: whichever has the lower
geometric mean over the times on other held-out images. Beneath: parameters, FLOP of a forward pass
and of a training step of one image (matrix products, convolutions and attention, and what Muon
multiplies, shared by the batch), steps taken.
Unknown flags go to the command line of ours, those of a --variant to that one's.
"""

import argparse
import copy
import itertools
import math
import shlex
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny_reference import KINDS, SIZE, ReferenceTraining

from pixelhdm.callbacks.ema import EMA
from pixelhdm.callbacks.non_finite import SkipNonFinite
from pixelhdm.callbacks.zclip import ZClip
from pixelhdm.cli import run_cli
from pixelhdm.data.shards import Shards
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.cpu import keep_heap
from pixelhdm.models.flops import count_flop
from pixelhdm.models.network import Network
from pixelhdm.module import PixelHDMModule
from pixelhdm.trainer_cli import PixelHDMCLI

ROOT = Path(__file__).parent.parent
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CHOICE = 256  # held-out images that decide between raw weights and average


class Built(PixelHDMCLI):
    """The command line, which builds what a config says and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""


class OurTraining:
    """Training as the command line does it, without Lightning's loop and without workers."""

    def __init__(self, name: str, lr: float, args: argparse.Namespace, flags: list[str]):
        files = ("base", "cifar10", f"{name}_cifar10")
        words = [word for file in files for word in ("-c", str(ROOT / f"configs_c2i/{file}.yaml"))]
        words += [
            "--trainer.accelerator=cpu",
            "--trainer.precision=32-true",
            "--trainer.logger=false",
        ]
        words += [f"--seed_everything={args.seed}", f"--model.optimizer.lr={lr}", *flags]
        sys.argv = ["main.py", "fit", *words]
        built = run_cli(Built)
        self.module, callbacks = built.model.train(), built.trainer.callbacks
        self.skip, self.clip, self.average = (
            next(each for each in callbacks if isinstance(each, kind))
            for kind in (SkipNonFinite, ZClip, EMA)
        )
        self.trainer = SimpleNamespace(
            global_step=0,
            gradient_clip_val=None,
            precision_plugin=None,
            strategy=SingleDeviceStrategy(torch.device("cpu")),
        )
        self.average.setup(self.trainer, self.module, "fit")
        self.optimizer = self.module.configure_optimizers()
        self.generator = torch.Generator().manual_seed(args.seed)

    @property
    def steps(self) -> int:
        return self.trainer.global_step

    def step(self, image: Tensor, label: Tensor) -> None:
        """Train on images B H W 3, uint8."""
        module, trainer = self.module, self.trainer
        seed = torch.randint(2**62, (len(image),), generator=self.generator)
        weight = torch.ones(len(image))
        batch = {"image": image, "condition": label, "seed": seed, "weight": weight}
        values, _ = module.losses(batch, module.network, module.conditioner)
        loss = values["total"].mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.skip.loss, module.norm, module.step_skipped = loss.detach(), None, False
        factor = module.schedule.factor(trainer.global_step, None)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        for callback in (self.skip, self.clip):
            callback.on_before_optimizer_step(trainer, module, self.optimizer)
        self.optimizer.step()
        trainer.global_step += 1
        self.average.on_train_batch_end(trainer, module)

    @torch.no_grad()
    def clean(self, z: Tensor, t: Tensor, label: Tensor, weights: str) -> Tensor:
        """Its clean images of noisy images."""
        network, conditioner = parts(self.module, weights)
        return network(z, t, conditioner(label)).output


def parts(module: PixelHDMModule, weights: str) -> tuple[Network, Conditioner]:
    """Network and conditioner, raw or averaged."""
    if weights == "ema":
        return module.ema["network"], module.ema["conditioner"]
    return module.network, module.conditioner


Training = OurTraining | ReferenceTraining


# Data and training --------------------------------------------------------------------------------


def load(path: str, num: int | None = None) -> tuple[Tensor, Tensor]:
    """Images, uint8, and labels of shards."""
    source = Shards(path)
    source.open()
    records = [source.load(i, 0, SIZE, SIZE) for i in range(min(num or len(source), len(source)))]
    images = torch.stack([torch.from_numpy(record.image.copy()) for record in records])
    return images, torch.tensor([record.condition for record in records])


def train(trainings: dict[str, Training], data: tuple[Tensor, Tensor], args) -> None:
    """Let all take turns until each has had its CPU-seconds."""
    images, labels = data
    spent = dict.fromkeys(trainings, 0.0)
    orders = {name: torch.Generator().manual_seed(args.seed) for name in trainings}
    while min(spent.values()) < args.seconds:
        for name, training in trainings.items():
            start, goal = time.process_time(), min(args.turn, args.seconds - spent[name])
            while time.process_time() - start < goal:
                index = torch.randint(len(images), (args.batch,), generator=orders[name])
                image = images[index]
                if isinstance(training, ReferenceTraining):
                    image = image.float() / 127.5 - 1
                training.step(image, labels[index])
            spent[name] += time.process_time() - start


# Measuring ----------------------------------------------------------------------------------------


def errors(training: Training, data: tuple[Tensor, Tensor], weights: str) -> list[float]:
    """Mean squared error of the clean image at each time."""
    images, labels = data
    x, found = images.float() / 127.5 - 1, []
    for number, t in enumerate(TIMES):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1000 + number))
        total = 0.0
        for own, rest, label in zip(x.split(64), noise.split(64), labels.split(64), strict=True):
            z, at = t * own + (1 - t) * rest, torch.full((len(own),), t)
            total += (training.clean(z, at, label, weights) - own).square().sum().item()
        found.append(total / x.numel())
    return found


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def flop(training: Training, batch_size: int) -> tuple[float, float]:
    """Of one image: a forward pass, and its share of a training step, the optimizer's included.

    The optimizer takes a step for it.
    """
    with torch.device("meta"):
        z, t, label = torch.empty(1, SIZE, SIZE, 3), torch.empty(1), torch.zeros(1).long()
    if isinstance(training, ReferenceTraining):
        z = z.permute(0, 3, 1, 2)
        model = copy.deepcopy(training.model).to("meta")
    else:
        module = training.module
        model = torch.nn.ModuleList([module.network, module.conditioner])
        model = copy.deepcopy(model).to("meta")

    def run() -> Tensor:
        if isinstance(training, ReferenceTraining):
            return model(z, t, label)
        network, conditioner = model
        return network(z, t, conditioner(label)).output

    both = count_flop(lambda: run().sum().backward())
    model.requires_grad_(False)
    return count_flop(run), both + count_flop(training.optimizer.step) / batch_size


def num_parameters(training: Training) -> int:
    model = training.model if isinstance(training, ReferenceTraining) else training.module
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("ema."))


def shorter(flags: str) -> list[str]:
    """Flags without the way to them."""
    return [word.rsplit(".", 1)[-1] for word in shlex.split(flags)]


def best(results: dict[str, list[float]], start: str) -> str:
    """The contestant of a side with the least geometric mean."""
    own = [name for name in results if name.startswith(start)]
    return min(own, key=lambda name: geometric_mean(results[name]))


def report(trainings: dict[str, Training], held_out: tuple[Tensor, Tensor], args) -> None:
    """Print the errors of all, and those of the best of each side beside each other."""
    images, labels = held_out
    results = {}
    print("\n" + " " * 34 + "".join(f"{t:>8}" for t in TIMES))
    for name, training in trainings.items():
        chosen = images[-CHOICE:], labels[-CHOICE:]
        choice = {weights: errors(training, chosen, weights) for weights in ("raw", "ema")}
        weights = min(choice, key=lambda key: geometric_mean(choice[key]))
        results[name] = choice[weights]
        if args.images:
            tested = images[: args.images], labels[: args.images]
            results[name] = errors(training, tested, weights)
        cells = "".join(f"{error:8.4f}" for error in results[name])
        print(f"{name + ' ' + weights:34}{cells}", flush=True)
    ours, theirs = best(results, "ours"), best(results, "theirs")
    ratios = [a / b for a, b in zip(results[ours], results[theirs], strict=True)]
    print(f"{'ours / theirs':34}" + "".join(f"{ratio:8.3f}" for ratio in ratios))
    counts = {name: flop(trainings[name], args.batch) for name in (ours, theirs)}
    print(f"\n{'':34}{'parameters':>12}{'forward':>10}{'step':>10}{'steps':>8}   (GFLOP an image)")
    for name in (ours, theirs):
        forward, step = (count / 1e9 for count in counts[name])
        training = trainings[name]
        print(
            f"{name:34}{num_parameters(training):12,}{forward:10.4f}{step:10.4f}{training.steps:8}"
        )
    shares = [a / b for a, b in zip(counts[ours], counts[theirs], strict=True)]
    print(f"{'ours / theirs':34}{'':12}{shares[0]:10.3f}{shares[1]:10.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", choices=list(KINDS), default="pixeldit")
    parser.add_argument("--seconds", type=float, default=240, help="CPU-seconds of each")
    parser.add_argument("--turn", type=float, default=10, help="CPU-seconds of a turn")
    parser.add_argument("--ours", type=float, nargs="+", default=[2e-3], help="learning rates")
    parser.add_argument("--theirs", type=float, nargs="+", default=[1e-3])
    parser.add_argument(
        "--variant",
        action="append",
        help="further flags of one more contestant of ours; repeatable",
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=1024, help="0: those of the choice alone")
    parser.add_argument("--ema", type=float, default=0.99, help="decay of both averages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_images", type=int, help="empty: all")
    parser.add_argument("--data", default="data/cifar10", help="folder of the shards train and val")
    args, flags = parser.parse_known_args()
    args.variant = args.variant or [""]
    torch.set_num_threads(1)
    keep_heap()
    warnings.filterwarnings("ignore")
    held_out = load(f"{args.data}/val", args.images + CHOICE)
    data = load(f"{args.data}/train", args.train_images)
    flags = [f"--ema.decay={args.ema}", *flags]
    trainings: dict[str, Training] = {}
    for lr, variant in itertools.product(args.ours, args.variant):
        own = OurTraining(args.name, lr, args, [*flags, *shlex.split(variant)])
        trainings[" ".join(["ours", args.name, f"{lr:g}", *shorter(variant)])] = own
    for lr in args.theirs:
        training = ReferenceTraining(args.name, lr, args.seed, args.ema)
        trainings[f"theirs {args.name} {lr:g}"] = training
    print(f"{args.seconds:g} CPU-seconds each, batch {args.batch}, average {args.ema}", flush=True)
    train(trainings, data, args)
    report(trainings, held_out, args)


if __name__ == "__main__":
    main()
