"""Is it fast? A training step, its pixel path, and sampling, beside what the device can do.

    python benchmarks/speed.py --threads 1          # CPU: the default network's width, 256x256
    python benchmarks/speed.py --threads 1 --clock cpu      # on a machine that others use too
    python benchmarks/speed.py --device cuda        # bf16 and fp32, batches 8, 16, 32, … that fit
    python benchmarks/speed.py -c configs_c2i/base.yaml -c configs_c2i/imagenet_256.yaml
    python benchmarks/speed.py --parts pixels --modes eager compiled --batches 64 --device cuda

First the device: its matmul peak, the best of large square products (measured again after every
row, the best so far counts), and its memory bandwidth, the best of large copies and triads
a = b + s c (a CPU reads a line before it writes it, which is not counted). Parts, each a table:
    modes       a whole training step without text and teacher, forward, backward, fused AdamW and
                average: eager, with PyTorch's attention where flash-attn is there, with the
                Triton kernel (CUDA), by grad_checkpoint, with activation_offload (CUDA), in another
                precision, and compiled block by block. ratio: images per second over those of the
                first row. peak: share of the matmul peak, three forwards counted, nothing for
                recomputation, optimizer, norms and activations. GiB: CUDA: the highest
                torch.cuda.max_memory_allocated; CPU: what autograd keeps.
    pixels      the pixel path alone, forward and backward. products: its matrix products with long
                sums and its attention, alone. rest: the path less its products, that is its
                element-wise work. floor: the time of the fewest bytes that this work can move, see
                pixel_floor.py, at the measured bandwidth; x floor: rest over floor; share: of the
                bandwidth, its inverse. bound: the whole path over products + floor.
    sampling    drawing over the bare calls of the network, see sampling.py.
Goals (issue 9): on an H200 in bf16 at 256x256 with the default network a step at 45 % of the matmul
peak, the pixel path within 1.5 times its bandwidth floor, sampling within 5 % of the bare calls; on
a CPU a step at 70 % of the peak.

So that a run on a CPU takes two minutes, the network there has 4 patch blocks and 1 pixel block,
not 16 and 4, unless a flag or a file says otherwise: --network.patch_depth 16
--network.pixel_depth 4.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn
from torch.optim import AdamW

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixel_floor import floor_bytes
from sampling import row as sampling_row
from sampling import seconds
from training import LR, NUM_CLASSES, Bench, measure, network_parser

from pixelhdm.inference.model import Model
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.attention import Attention, attend
from pixelhdm.models.attention_kernels import AttentionKernel
from pixelhdm.models.attention_report import attention_report
from pixelhdm.models.blocks import PixelBlock
from pixelhdm.models.compiling import compile_blocks
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.cpu import keep_heap
from pixelhdm.models.flops import ForwardFlop, quick_peak
from pixelhdm.models.network import Network
from pixelhdm.models.pixel_kernel import choose_pixel_kernel
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.selective import MIN_PRODUCTS
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.frequency import FrequencyLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from pixelhdm.training.optim.groups import parameter_groups

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMALL = {"patch_depth": 4, "pixel_depth": 1, "feature_block": 2}  # on a CPU
GOALS = {"cuda": "45 % on an H200", "cpu": "70 %"}


class Mode(NamedTuple):
    """How a training step is computed."""

    precision: str = ""  # the device's own
    checkpoint: str = "none"
    offload: bool = False
    triton: bool = False
    compiled: bool = False
    attention: AttentionKernel = "auto"


MODES = {
    "eager": Mode(),
    "sdpa": Mode(attention="sdpa"),
    "triton": Mode(triton=True),
    "other precision": Mode("other"),
    "pixel": Mode(checkpoint="pixel"),
    "selective": Mode(checkpoint="selective"),
    "all": Mode(checkpoint="all"),
    "offload": Mode(offload=True),
    "compiled": Mode(compiled=True),
    "compiled, other precision": Mode("other", compiled=True),
    "compiled, triton": Mode(compiled=True, triton=True),
    "compiled, pixel": Mode(compiled=True, checkpoint="pixel"),
    "compiled, all": Mode(compiled=True, checkpoint="all"),
    "compiled, offload": Mode(compiled=True, offload=True),
}
ON_CPU = ("eager", "other precision", "pixel", "selective", "all", "compiled")


class Device:
    """What the device does at best, as measured so far."""

    def __init__(self, name: str):
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"
        self.own, self.other = ("bf16", "fp32") if self.is_cuda else ("fp32", "bf16")
        self.peaks = dict.fromkeys(DTYPES, 0.0)
        self.bandwidth = measured_bandwidth(self.device)
        for precision in DTYPES:
            self.measure(precision)

    def precision(self, mode: Mode) -> str:
        return self.other if mode.precision == "other" else self.own

    def measure(self, precision: str) -> float:
        """The matmul peak, once more."""
        now = quick_peak(self.device, DTYPES[precision])
        self.peaks[precision] = max(self.peaks[precision], now)
        return self.peaks[precision]

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU"
        peaks = ", ".join(f"{key} {peak / 1e12:.4g}" for key, peak in self.peaks.items())
        return (
            f"{name}, torch {torch.__version__}: {peaks} TFLOP/s, {self.bandwidth / 1e9:.4g} GB/s"
        )


def measured_bandwidth(device: torch.device, repeats: int = 8) -> float:
    """Bytes per second of large copies and triads."""
    numbers = 2**28 if device.type == "cuda" else 2**25
    a, b, c = (torch.zeros(numbers, device=device) for _ in range(3))
    best = 0.0
    for moved, run in ((2, lambda: a.copy_(b)), (3, lambda: torch.add(b, c, alpha=2.0, out=a))):
        for _ in range(repeats):
            best = max(best, moved * numbers * a.itemsize / seconds(run, device))
    return best


class SpeedBench(Bench):
    """A training step whose way of computing changes."""

    def __init__(self, parser: ArgumentParser, args: Namespace, device: Device):
        one = args.clone()
        one.batch = 1
        super().__init__(parser, one, VelocityLoss(), FrequencyLoss())
        self.known, self.optimizer, self.whole = device, None, self.batch
        self.weights = [value.detach() for value in self.module.parameters()]
        self.average: list[Tensor] = []
        self.is_compiled = False
        self.flop = ForwardFlop(self.network)(*args.size, self.module.conditioner.num_tokens)
        self.use(Mode())

    @property
    def network(self) -> Network:
        return self.module.network

    def use(self, mode: Mode) -> None:
        """Compute so from now on; what is compiled stays compiled."""
        self.precision = self.known.precision(mode)
        network = self.network
        network.grad_checkpoint, network.activation_offload = mode.checkpoint, mode.offload
        network.choose_attention(mode.attention)
        choose_pixel_kernel(network, "triton" if mode.triton else "plain")
        if mode.compiled and not self.is_compiled:
            compile_blocks(network)
            self.is_compiled = True

    def take(self, batch: int) -> None:
        """Work on so many images."""
        parts = self.whole.items()
        self.batch = {key: torch.cat([value] * batch)[:batch] for key, value in parts}

    def autocast(self) -> AbstractContextManager:
        on, kind = self.precision == "bf16", self.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=on, cache_enabled=False)

    def train(self) -> None:
        """A whole training step."""
        if self.optimizer is None:
            self.optimizer = AdamW(parameter_groups(self.module), lr=LR, fused=True)
            self.average = [value.clone() for value in self.weights]
        self.step()
        self.optimizer.step()
        torch._foreach_lerp_(self.average, self.weights, 1e-4)

    def memory(self) -> float:
        """GiB that a step takes, which warms up too."""
        if self.device.type == "cpu":
            return measure(self)[0] / 2**30
        self.train()
        torch.cuda.reset_peak_memory_stats()
        self.train()
        return torch.cuda.max_memory_allocated() / 2**30

    def free(self) -> None:
        """Give back what a step has left."""
        self.module.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says so, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Row(NamedTuple):
    """What a table tells of a case; nothing where memory did not suffice."""

    name: str
    batch: int
    precision: str
    seconds: list[float]
    memory: float


def time_modes(parser: ArgumentParser, args: Namespace, device: Device) -> None:
    bench, rows = SpeedBench(parser, args, device), []
    print(attention_report(bench.network, device.device, DTYPES[device.own]), flush=True)
    for name in sorted(args.modes, key=lambda name: MODES[name].compiled):
        bench.use(MODES[name])
        for batch in batches(args):
            print(f"  {name}, batch {batch} …", file=sys.stderr, flush=True)
            found = fitting(partial(timed, bench, name, batch))
            bench.free()
            times, memory = found or ([], 0.0)
            rows.append(Row(name, batch, bench.precision, times, memory))
            device.measure(bench.precision)
            if found is None:
                break
    print_modes(rows, bench.flop, device)


def timed(bench: SpeedBench, name: str, batch: int) -> tuple[list[float], float]:
    """Seconds of training steps, and their memory."""
    bench.take(batch)
    memory = bench.memory()
    return bench.seconds({name: bench.train})[name], memory


def fitting(run: Callable[[], Any]) -> Any:
    """What something gives; None where memory does not suffice."""
    try:
        return run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def print_modes(rows: list[Row], flop: int, device: Device) -> None:
    """The table of the modes, whose shares are of the best peak measured."""
    print(f"\n{'modes':26} {'batch':>5} {'best ms':>9} {'median ms':>9} {'img/s':>9}", end="")
    print(f" {'ratio':>6} {'TFLOP/s':>8} {'peak':>6} {'GiB':>7}")
    speeds = [row.batch / min(row.seconds) if row.seconds else 0.0 for row in rows]
    for row, speed in zip(rows, speeds, strict=True):
        print(f"{label(row.name, row.precision)} {row.batch:5}", end="")
        if not row.seconds:
            print(" out of memory")
            continue
        best, done = min(row.seconds), 3 * flop * speed
        print(f" {1e3 * best:9.1f} {1e3 * median(row.seconds):9.1f} {speed:9.3f}", end="")
        ratio = speed / speeds[0] if speeds[0] else float("nan")
        print(f" {ratio:6.2f} {done / 1e12:8.4g}", end="")
        print(f" {done / device.peaks[row.precision]:6.1%} {row.memory:7.2f}")
    print(f"goal: peak {GOALS[device.device.type]}", flush=True)


def label(name: str, precision: str) -> str:
    return (
        f"{name.replace('other precision', precision):26.26}" if "other" in name else f"{name:26}"
    )


def batches(args: Namespace) -> list[int]:
    """The batch sizes to try, until one does not fit."""
    on_cpu = torch.device(args.device).type == "cpu"
    return args.batches or ([1, 2] if on_cpu else [2**power for power in range(3, 12)])


def pixel_path(bench: SpeedBench, batch: int, size: list[int]) -> Callable[[], object] | None:
    """Forward and backward pass of the path of pixels; None where the network has none."""
    network, (height, width) = bench.network, size
    p = network.patch_size
    num, device = height * width // p**2, bench.device
    patches = torch.randn(batch, num, 3 * p**2, device=device)
    s = torch.randn(batch, num, network.hidden_dim, device=device, requires_grad=True)
    if isinstance(network, PixelHDM) and len(network.pixel_blocks):
        run = partial(network.run_pixel_blocks, patches, s, height, width)
    elif getattr(network, "pixel_path", None) is not None:
        block = partial(network.run_block, again=network.grad_checkpoint != "none")
        run = partial(network.pixel_path, patches, s, (height // p, width // p), block)
    else:
        return None
    grad = torch.randn_like(patches)

    def call() -> None:
        network.zero_grad(set_to_none=True)
        with bench.autocast():
            out = run()
        out.backward(grad.to(out.dtype))

    return call


def long_products(bench: SpeedBench, path: Callable[[], object]) -> Callable[[], object]:
    """Forward and backward passes of the path's long matrix products and attention, alone."""
    seen: list[tuple[Callable[..., Tensor], list[Tensor], Tensor]] = []

    def rows(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, device=bench.device, dtype=dtype, requires_grad=True)

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        x = inputs[0]
        if isinstance(layer, Attention):
            form, length = (len(x), layer.num_heads, x.shape[1], layer.head_dim), x.shape[1]
            keys = (len(x), layer.num_kv_heads, length, layer.head_dim)
            heads = [rows(*own, dtype=out.dtype) for own in (form, keys, keys)]
            call = partial(attend, mask=None, kernel=layer.kernel)
            seen.append((call, heads, torch.randn(form, device=x.device, dtype=out.dtype)))
        elif layer.in_features >= MIN_PRODUCTS:
            own = rows(*x.shape, dtype=out.dtype)
            seen.append((layer, [own], torch.randn_like(out)))

    parts = [part for block in pixel_blocks(bench.network) for part in block.modules()]
    parts = [part for part in parts if isinstance(part, Attention | nn.Linear)]
    hooks = [part.register_forward_hook(note) for part in parts]
    path()
    for hook in hooks:
        hook.remove()
    leaves = [value for _, inputs, _ in seen for value in inputs]

    def call() -> None:
        bench.network.zero_grad(set_to_none=True)
        with bench.autocast():
            outs = [own(*inputs) for own, inputs, _ in seen]
        torch.autograd.backward(outs, [grad for *_, grad in seen])
        for value in leaves:
            value.grad = None

    return call


def pixel_blocks(network: Network) -> list[PixelBlock]:
    return [part for part in network.modules() if isinstance(part, PixelBlock)]


def time_pixels(parser: ArgumentParser, args: Namespace, device: Device) -> None:
    bench = SpeedBench(parser, args, device)
    batch = max(args.batches or [32 if device.is_cuda else 1])
    path = pixel_path(bench, batch, args.size)
    if path is None:
        print("\npixels: the network has no path of pixels")
        return
    products = fitting(partial(long_products, bench, path))
    num_pixels = batch * args.size[0] * args.size[1]
    item = DTYPES[device.own].itemsize
    moved = floor_bytes(pixel_blocks(bench.network), num_pixels, item)
    floor = moved / device.bandwidth
    print(
        f"\n{'pixels, batch ' + str(batch):26} {'path ms':>9} {'products':>9} {'rest':>9}", end=""
    )
    print(f" {'floor':>9} {'x floor':>8} {'share':>6} {'bound':>6}")
    for name in sorted(args.modes, key=lambda name: MODES[name].compiled):
        mode = MODES[name]
        if mode.precision or mode.checkpoint != "none" or mode.offload:
            continue
        bench.use(mode)
        found = products and fitting(partial(bench.seconds, {"path": path, "products": products}))
        if found is None:
            print(f"{name:26} out of memory")
            continue
        whole, alone = (min(found[key]) for key in ("path", "products"))
        print(f"{name:26}", end="")
        cells = (whole, alone, whole - alone, floor)
        print("".join(f" {1e3 * value:9.2f}" for value in cells), end="")
        rest, bound = whole - alone, whole / (alone + floor)
        print(f" {rest / floor:8.2f} {floor / rest:6.1%} {bound:6.2f}", flush=True)
    print(f"floor: {moved / 2**20:.0f} MiB; goal: x floor 1.5", flush=True)


def time_sampling(parser: ArgumentParser, args: Namespace, device: Device) -> None:
    dtype = DTYPES[device.own]
    network = parser.instantiate(args).network.to(device.device, dtype).eval()
    conditioner = ClassConditioner(network.hidden_dim, NUM_CLASSES).to(device.device, dtype).eval()
    model = Model(network.requires_grad_(False), conditioner, FlowMatching())
    print("\nsampling scale   calls    draw s    bare s   overhead   outside")
    settings = Namespace(num_steps=2 if not device.is_cuda else 20, batch_size=1, size=args.size)
    settings.repeats = args.repeats
    sampling_row(model, EulerSampler(), 1.0, settings)
    print("goal: overhead 5 %")


PARTS = {"modes": time_modes, "pixels": time_pixels, "sampling": time_sampling}


def arguments() -> tuple[ArgumentParser, Namespace]:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = torch.device(first.parse_known_args()[0].device).type == "cpu"
    parser = network_parser(__doc__.splitlines()[0], **(SMALL if on_cpu else {}))
    parser.add_argument("--batches", nargs="+", type=int, help="CPU: 1 2, CUDA: 8, 16, … that fit")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    modes = [*ON_CPU] if on_cpu else [*MODES]
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: seconds of the processor, for a CPU that others use too, with one thread",
    )
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=modes)
    return parser, parser.parse_args()


def main() -> None:
    parser, args = arguments()
    torch.set_num_threads(args.threads)
    if args.clock == "cpu":
        time.perf_counter = time.process_time  # what all benchmarks read
    if torch.device(args.device).type == "cpu":
        keep_heap()
    device = Device(args.device)
    print(f"{device}, {args.threads} threads, {args.size[0]}x{args.size[1]}, ", end="")
    print(f"load average at the start {os.getloadavg()[0]:.1f}")
    for part in args.parts:
        PARTS[part](parser, args, device)
    print(f"\n{device}")


if __name__ == "__main__":
    main()
