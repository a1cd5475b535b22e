"""Time a network: forward, forward with backward, and a whole training step.

    python benchmarks/network.py --threads 1            # default network, 256x256
    python benchmarks/network.py -c configs_c2i/base.yaml -c configs_c2i/imagenet_256.yaml
    python benchmarks/network.py --network.patch_depth 8 --size 256 512 --tokens 77 --batch 1 8
    python benchmarks/network.py --device cuda          # bf16, fills the GPU, eager and compiled

Every row is a process of its own. Columns:
    GFLOP   multiplications and additions of the matrix products, forward and backward, as torch's
            FlopCounterMode counts them on the plain network (meta device), attention included;
            nothing for norms and activations, for recomputation, or for the optimizer.
    best s, median s        of `--repeats` runs, after one run that is not counted.
    img/s, TFLOP/s          from the best run.
    torch.mm, oneDNN        TFLOP/s over the peak: the best of large square products at the same
            precision and threads, so far, measured at the start and after every row. float32 on a
            CPU has two: torch.mm's (MKL) and that of oneDNN, on which the network's large products
            run; the higher one is the stricter measure.
    GiB     CPU: highest resident memory of the process (VmHWM), PyTorch's libraries, 0.5 GiB,
            included. CUDA: torch.cuda.max_memory_allocated.
On a CPU a row's process keeps its heap (pixelhdm.models.cpu.keep_heap), as the command line does.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.models.compiling import compile_blocks
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.cpu import keep_heap
from pixelhdm.models.flops import count_flop, matmul_peak, synchronize
from pixelhdm.models.network import Network
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.presets import NETWORKS

CASES = ("forward", "forward+backward", "training step")
DEFAULT = {"class_path": f"{PixelHDM.__module__}.{PixelHDM.__name__}"}


def dotted(name: str) -> str:
    """The class path of a network that a config calls by its bare name."""
    kinds = {kind.__name__: kind for kind in NETWORKS}
    return f"{kinds[name].__module__}.{name}" if name in kinds else name


def arguments() -> tuple[ArgumentParser, Namespace]:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("-c", "--config", action="append", default=[])
    files, _ = first.parse_known_args()
    network = dict(DEFAULT)
    for file in files.config:
        found = ((yaml.safe_load(Path(file).read_text()) or {}).get("model") or {}).get(
            "network"
        ) or {}
        own = dotted(found.get("class_path", network["class_path"]))
        kept = network.get("init_args", {}) if own == network["class_path"] else {}
        network = {"class_path": own, "init_args": {**kept, **found.get("init_args", {})}}

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-c", "--config", action="append", type=str, help="project YAML; its model.network is timed"
    )
    parser.add_subclass_arguments(Network, "network", default=network)
    parser.add_argument("--size", nargs=2, type=int, default=[256, 256], metavar=("H", "W"))
    parser.add_argument(
        "--batch", nargs="+", type=int, help="CPU: 1, CUDA: best of 1, 2, 4, … that fit"
    )
    parser.add_argument("--tokens", type=int, default=0, help="context tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", choices=["32", "bf16"], help="CPU: 32, CUDA: bf16 (autocast)"
    )
    parser.add_argument(
        "--compile",
        type=bool,
        help="torch.compile, block by block; CPU: false, CUDA: one table each",
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--row", type=str, help="(internal) time one row, given as JSON")
    return parser, parser.parse_args()


def inputs(
    network: Network, batch: int, args: Namespace, device: str
) -> tuple[Tensor, Tensor, Context]:
    """Noisy images, times and context."""
    make = {"device": device, "dtype": torch.float32}
    tokens = torch.randn(batch, args.tokens, network.hidden_dim, **make)
    context = Context(tokens, None, torch.randn(batch, network.hidden_dim, **make))
    return torch.randn(batch, *args.size, 3, **make), torch.rand(batch, **make), context


def count(parser: ArgumentParser, args: Namespace, case: str, batch: int) -> int:
    """FLOP of a case, counted without computing anything."""
    with torch.device("meta"):
        network = parser.instantiate(args).network
        z, t, context = inputs(network, batch, args, "meta")

        def run() -> None:
            out = network(z, t, context).output
            if case != "forward":
                out.sum().backward()

        return count_flop(run)


def measured_peak(args: Namespace, onednn: bool = False) -> float:
    """Best FLOP/s of square products."""
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    sides = (1024, 2048) if args.device == "cpu" else (4096, 8192)
    return matmul_peak(torch.device(args.device), dtype, sides, onednn=onednn)


def time_row(
    parser: ArgumentParser, args: Namespace, case: str, batch: int, compiled: bool
) -> dict[str, Any]:
    """Run one case in this process."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_heap()
    network = parser.instantiate(args).network.to(device)
    z, t, context = inputs(network, batch, args, args.device)
    weights, target = list(network.parameters()), torch.randn_like(z)
    training = case == "training step"
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True) if training else None
    average = [p.detach().clone() for p in weights] if training else []
    if compiled:
        compile_blocks(network)

    def run() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            output = network(z, t, context).output
        if case != "forward":
            F.mse_loss(output.float(), target).backward()
        if optimizer is not None:
            optimizer.step()
            torch._foreach_lerp_(average, [p.detach() for p in weights], 1e-4)

    seconds = []
    with torch.set_grad_enabled(case != "forward"):
        for _ in range(args.repeats + 1):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "memory": memory(args.device)}


def memory(device: str) -> float:
    """Peak so far in GiB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 2**20


def spawn(args: Namespace, case: str, batch: int, compiled: bool) -> dict[str, Any] | None:
    """The result of a row from a fresh process, or None where memory does not suffice."""
    row = json.dumps([case, batch, compiled])
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    command = [sys.executable, *sys.argv, "--row", row]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode and "OutOfMemoryError" in done.stderr:
        return None
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def fill(args: Namespace, case: str, compiled: bool) -> tuple[int, dict[str, Any]]:
    """The batch size with most images per second among powers of two that fit."""
    best, batch = None, 1
    while (result := spawn(args, case, batch, compiled)) is not None:
        if best is None or batch / min(result["seconds"]) > best[0] / min(best[1]["seconds"]):
            best = batch, result
        batch *= 2
    if best is None:
        sys.exit(
            f"{case}: the device's memory must hold one sample. Take a smaller --size or network."
        )
    return best


def print_row(
    case: str, batch: int, flop: int, result: dict[str, Any] | None, peaks: dict[str, float]
) -> None:
    if result is None:
        print(f"{case:26} {batch:5} out of memory")
        return
    best, middle = min(result["seconds"]), median(result["seconds"])
    print(f"{case:26} {batch:5} {flop / 1e9:8.1f} {best:8.4f} {middle:8.4f}", end="")
    print(f" {batch / best:8.2f} {flop / best / 1e12:8.4f}", end="")
    print("".join(f" {flop / best / peak:8.1%}" for peak in peaks.values()), end="")
    print(f" {result['memory']:6.2f}", flush=True)


def print_table(parser: ArgumentParser, args: Namespace) -> None:
    """One row a case, batch size and, on CUDA, eager or compiled."""
    on_cpu, (height, width) = args.device == "cpu", args.size
    peaks = {"torch.mm": measured_peak(args)}
    if on_cpu and args.precision == "32":
        peaks["oneDNN"] = measured_peak(args, onednn=True)
    print("CPU" if on_cpu else torch.cuda.get_device_name(), end="")
    print(f", {args.threads} threads, {args.precision}, {height}x{width}, {args.tokens} tokens")
    print(f"{'case':26} {'batch':>5} {'GFLOP':>8} {'best s':>8} {'median s':>8}", end="")
    print(f" {'img/s':>8} {'TFLOP/s':>8}", end="")
    print("".join(f" {name:>8}" for name in peaks), f"{'GiB':>6}")
    both = [False] if on_cpu else [False, True]
    batches = args.batch or ([1] if on_cpu else [0])
    for compiled in both if args.compile is None else [args.compile]:
        for case, batch in product(args.cases, batches):
            if batch:
                result = spawn(args, case, batch, compiled)
            else:
                batch, result = fill(args, case, compiled)
            for name in peaks:
                peaks[name] = max(peaks[name], measured_peak(args, onednn=name == "oneDNN"))
            flop = count(parser, args, case, batch)
            print_row(case + " compiled" * compiled, batch, flop, result, peaks)
    for name, peak in peaks.items():
        print(f"peak of {name:8} {peak / 1e12:.4f} TFLOP/s")


def main() -> None:
    parser, args = arguments()
    args.precision = args.precision or ("32" if args.device == "cpu" else "bf16")
    torch.set_num_threads(args.threads)
    if args.row:
        print(json.dumps(time_row(parser, args, *json.loads(args.row))))
    else:
        print_table(parser, args)


if __name__ == "__main__":
    main()
