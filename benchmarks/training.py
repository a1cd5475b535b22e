"""Time the parts of a training step, side by side.

    python benchmarks/training.py --threads 1           # default network, 256x256
    python benchmarks/training.py -c configs_c2i/base.yaml -c configs_c2i/imagenet_256.yaml
    python benchmarks/training.py --parts optimizers checkpointing --network.patch_depth 8
    python benchmarks/training.py --device cuda --batch 32      # bf16, eager

Parts, each a table:
    losses          the step's forward and backward with one term more at a time, and every term
                    alone: its own forward and backward, down to the network's output and features.
                    The teacher is a DINOv3-B with random weights, read from files as a real one.
    checkpointing   forward and backward by grad_checkpoint, without REPA. Kept: the storages that
                    autograd keeps for the backward pass, parameters left out (with bf16 their
                    copies are among them); a block that is computed again comes on top, one at a
                    time. What selective keeps is counted from torch 2.14 on. CUDA: also the highest
                    torch.cuda.max_memory_allocated, and every mode with activation_offload.
    optimizers      a step of each on the same gradients, its state, and the GFLOP of its matrix
                    products beside those of forward and backward (three forwards); 8-bit AdamW
                    where bitsandbytes is installed.
    callbacks       SkipNonFinite (the gradient norm, and the one read of a step), ZClip (clipping
                    every time) and EMA, beside a step without them and REPA, fused AdamW included.
Cases of a table take turns, so that other work on the machine disturbs all alike; only optimizers
follow each other, for the memory of their states. Times are of `--repeats` runs, after a first one.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import get_args

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import AdamW

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.callbacks.ema import EMA
from pixelhdm.callbacks.non_finite import SkipNonFinite
from pixelhdm.callbacks.zclip import ZClip
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.cpu import keep_heap
from pixelhdm.models.encoders.dino import DINOv3
from pixelhdm.models.flops import ForwardFlop, count_flop, synchronize
from pixelhdm.models.network import GradCheckpoint, Network, Prediction
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.frequency import FrequencyLoss
from pixelhdm.training.losses.loss import LossTerm
from pixelhdm.training.losses.repa import RepaLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from pixelhdm.training.optim.groups import parameter_groups
from pixelhdm.training.optim.muon import MuonAdamW

LR, NUM_CLASSES = 1e-6, 1000
Cases = dict[str, Callable[[], object]]


def network_parser(description: str, **init_args: int) -> ArgumentParser:
    """Flags that choose a network, its images and where it runs; without a file, `init_args` are
    the default's.
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("-c", "--config", action="append", default=[])
    files = first.parse_known_args()[0].config
    network = {"class_path": f"{PixelHDM.__module__}.{PixelHDM.__name__}"}
    network["init_args"] = {} if files else init_args
    for file in files:
        model = (yaml.safe_load(Path(file).read_text()) or {}).get("model") or {}
        found = model.get("network") or {}
        network["class_path"] = found.get("class_path", network["class_path"])
        network["init_args"] |= found.get("init_args", {})

    parser = ArgumentParser(description=description)
    parser.add_argument(
        "-c", "--config", action="append", type=str, help="project YAML; its model.network is timed"
    )
    parser.add_subclass_arguments(Network, "network", default=network)
    parser.add_argument("--size", nargs=2, type=int, default=[256, 256], metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def arguments() -> tuple[ArgumentParser, Namespace]:
    parser = network_parser(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    return parser, parser.parse_args()


class Bench:
    """A module with a loss, a batch for it, and a clock."""

    def __init__(self, parser: ArgumentParser, args: Namespace, *terms: LossTerm):
        torch.manual_seed(0)
        self.repeats, self.device = args.repeats, torch.device(args.device)
        self.module = PixelHDMModule(
            parser.instantiate(args).network,
            partial(ClassConditioner, num_classes=NUM_CLASSES),
            EulerSampler(1),
            Guidance(),
            loss=TripleLoss(extra=list(terms)),
        ).to(self.device)
        with torch.no_grad():  # a new network's output is zero, and so are most gradients
            for parameter in self.module.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        numbers = torch.arange(args.batch)
        image = torch.randint(0, 256, (args.batch, *args.size, 3), dtype=torch.uint8)
        batch = {"image": image, "index": numbers, "seed": numbers, "condition": numbers}
        batch |= {"weight": torch.ones(args.batch)}
        self.batch = {key: value.to(self.device) for key, value in batch.items()}

    def autocast(self) -> torch.autocast:
        """As Lightning's bf16-mixed; off on a CPU."""
        on = self.device.type != "cpu"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on, cache_enabled=False)

    def forward(self) -> Tensor:
        module = self.module
        module.zero_grad(set_to_none=True)
        with self.autocast():
            values, _ = module.losses(self.batch, module.network, module.conditioner)
        return values["total"].mean()

    def step(self) -> Tensor:
        """Forward and backward; the loss."""
        loss = self.forward()
        loss.backward()
        return loss.detach()

    def seconds(self, cases: Cases) -> dict[str, list[float]]:
        """Of every case, which take turns."""
        seconds = defaultdict(list)
        for _ in range(self.repeats + 1):
            for name, run in cases.items():
                synchronize(self.device)
                start = time.perf_counter()
                run()
                synchronize(self.device)
                seconds[name].append(time.perf_counter() - start)
        return {name: values[1:] for name, values in seconds.items()}


def print_table(
    title: str, seconds: dict[str, list[float]], whole: str, **further: list[str]
) -> None:
    """A row a case, with its share of the case `whole`, and further columns."""
    wide = max(map(len, [title, *seconds]))
    widths = {key: max(len(key), 9) for key in further}
    print(f"\n{title:{wide}} {'best ms':>9} {'median ms':>9} {'share':>7}", end="")
    print("".join(f" {header:>{widths[header]}}" for header in further))
    for number, (name, values) in enumerate(seconds.items()):
        best, share = min(values), min(values) / min(seconds[whole])
        print(f"{name:{wide}} {1e3 * best:9.1f} {1e3 * median(values):9.1f} {share:7.1%}", end="")
        print("".join(f" {cells[number]:>{widths[key]}}" for key, cells in further.items()))
    print(f"share: of {whole}", flush=True)


def time_losses(parser: ArgumentParser, args: Namespace) -> None:
    velocity, frequency = VelocityLoss(), FrequencyLoss()
    with tempfile.TemporaryDirectory() as folder:
        save_teacher(folder)
        repa, stopped = RepaLoss(DINOv3(folder)), RepaLoss(DINOv3(folder))
        stopped.stop()
        bench = Bench(parser, args, velocity, frequency, repa)
        bench.module.loss.start(bench.device)
    stopped.connect(bench.module.network)

    def run(*terms: LossTerm) -> None:
        bench.module.loss = TripleLoss(extra=list(terms)).to(bench.device)
        bench.step()

    whole = "velocity + frequency + repa"
    cases = {
        "velocity": partial(run, velocity),
        "velocity + frequency": partial(run, velocity, frequency),
        whole: partial(run, velocity, frequency, repa),
        "the same, repa stopped": partial(run, velocity, frequency, stopped),
    }
    alone = terms_alone(bench, velocity, frequency, repa)
    print_table("losses", bench.seconds(cases | alone), whole)


def save_teacher(folder: str) -> None:
    """Write a random DINOv3-B (arXiv:2508.10104) as transformers saves a real one."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes, num_register_tokens=4)).save_pretrained(folder)


def terms_alone(bench: Bench, *terms: LossTerm) -> Cases:
    """Forward and backward of each term on a prediction that is there already."""
    module, image = bench.module, bench.batch["image"].float() / 127.5 - 1
    sample = module.flow.sample(image, torch.randn_like(image), torch.rand_like(image[:, 0, 0, 0]))
    with torch.no_grad(), bench.autocast():
        context = module.conditioner(bench.batch["condition"])
        prediction = module.network(sample.z_t, sample.t, context)
    leaves = Prediction(*(part.clone().requires_grad_() for part in prediction))

    def run(term: LossTerm) -> None:
        leaves.output.grad = leaves.features.grad = None
        term.zero_grad(set_to_none=True)
        with bench.autocast():
            value = term(leaves, sample)
        value.mean().backward()

    alone = {f"{term.name} alone": partial(run, term) for term in terms}
    return alone | {"of it the teacher": partial(terms[-1].target, sample.x)}


def time_checkpointing(parser: ArgumentParser, args: Namespace) -> None:
    bench = Bench(parser, args, VelocityLoss(), FrequencyLoss())
    network, on_cuda = bench.module.network, bench.device.type == "cuda"

    def choose(mode: str, offload: bool) -> None:
        network.grad_checkpoint, network.activation_offload = mode, offload

    def run(mode: str, offload: bool) -> None:
        choose(mode, offload)
        bench.step()

    modes = {mode: (mode, False) for mode in get_args(GradCheckpoint)}
    if on_cuda:  # kept is then what stays on the device, the last block's apart
        modes |= {f"{mode}, offloaded": (mode, True) for mode in get_args(GradCheckpoint)}
    cases = {name: partial(run, *chosen) for name, chosen in modes.items()}
    columns, first = defaultdict(list), None
    for chosen in modes.values():
        choose(*chosen)
        kept, peak, numbers = measure(bench)
        first = first or (kept, numbers)
        columns["kept MiB"].append(f"{kept / 2**20:.1f}")
        columns["saved"].append(f"{1 - kept / first[0]:.1%}")
        columns["loss and gradient norm"].append("equal" if numbers == first[1] else "differ")
        if on_cuda:
            columns["peak MiB"].append(f"{peak / 2**20:.1f}")
    print_table("checkpointing", bench.seconds(cases), "none", **columns)


def measure(bench: Bench) -> tuple[int, int, tuple[float, float]]:
    """Bytes that a step keeps, CUDA's peak, and the step's loss and gradient norm."""
    on_cuda, kept = bench.device.type == "cuda", {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = bench.forward()
    loss.backward()
    weights = list(bench.module.parameters())
    norm = torch.nn.utils.get_total_norm(p.grad for p in weights if p.grad is not None)
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    peak = torch.cuda.max_memory_allocated() if on_cuda else 0
    return sum(kept.values()), peak, (loss.item(), norm.item())


def time_optimizers(parser: ArgumentParser, args: Namespace) -> None:
    bench = Bench(parser, args, VelocityLoss(), FrequencyLoss())
    classes = {"AdamW": AdamW, "fused AdamW": partial(AdamW, fused=True), "MuonAdamW": MuonAdamW}
    if importlib.util.find_spec("bitsandbytes"):
        from bitsandbytes.optim import AdamW8bit

        classes["bitsandbytes' AdamW8bit"] = AdamW8bit
    seconds = bench.seconds({"forward and backward": bench.step})
    flop = ForwardFlop(bench.module.network)(*args.size, bench.module.conditioner.num_tokens)
    states, gflop = [""], [f"{3 * args.batch * flop / 1e9:.1f}"]
    for name, new in classes.items():
        optimizer = new(parameter_groups(bench.module), lr=LR)
        gflop.append(f"{count_flop(optimizer.step) / 1e9:.1f}")
        seconds |= bench.seconds({name: optimizer.step})
        values = (value for state in optimizer.state.values() for value in state.values())
        size = sum(value.nbytes for value in values if isinstance(value, Tensor))
        states.append(f"{size / 2**20:.1f}")
    columns = {"state MiB": states, "GFLOP": gflop}
    print_table("optimizers", seconds, "forward and backward", **columns)


def time_callbacks(parser: ArgumentParser, args: Namespace) -> None:
    bench = Bench(parser, args, VelocityLoss(), FrequencyLoss())
    module, skip, zclip, ema = bench.module, SkipNonFinite(), ZClip(max_norm=1e-6), EMA()
    optimizer = AdamW(parameter_groups(module), lr=LR, fused=True)
    strategy = SingleDeviceStrategy(bench.device)
    trainer = SimpleNamespace(global_step=0, precision_plugin=None, strategy=strategy)
    ema.setup(trainer, module, "fit")
    ema.on_train_start(trainer, module)
    warnings.filterwarnings("ignore", ".*`self.log")  # nobody listens

    def step() -> None:
        skip.loss, module.norm = bench.step(), None
        optimizer.step()
        trainer.global_step += 1

    cases = {
        "step": step,
        "SkipNonFinite": lambda: skip.on_before_optimizer_step(trainer, module, optimizer),
        "ZClip": lambda: zclip.on_before_optimizer_step(trainer, module, optimizer),
        "EMA": lambda: ema.on_train_batch_end(trainer, module),
    }
    print_table("callbacks", bench.seconds(cases), "step")


PARTS = {
    "losses": time_losses,
    "checkpointing": time_checkpointing,
    "optimizers": time_optimizers,
    "callbacks": time_callbacks,
}


def main() -> None:
    parser, args = arguments()
    torch.set_num_threads(args.threads)
    on_cpu = torch.device(args.device).type == "cpu"
    if on_cpu:
        keep_heap()
    print("CPU, float32" if on_cpu else f"{torch.cuda.get_device_name()}, bf16", end="")
    print(f", {args.threads} threads, batch {args.batch} of {args.size[0]}x{args.size[1]}", end="")
    print(f", load average at the start {os.getloadavg()[0]:.1f}", flush=True)
    for part in args.parts:
        PARTS[part](parser, args)


if __name__ == "__main__":
    main()
