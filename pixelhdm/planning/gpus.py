"""What GPUs can do, by name, and what the device at hand can do, measured."""

import os
import re
import time
from typing import NamedTuple

import torch
from torch import nn

from pixelhdm.errors import UserError
from pixelhdm.models.flops import quick_peak, synchronize

GIB = 2**30
# Between an operation's call and the next, forward and backward, PyTorch eager on a usual CPU.
HOST_SECONDS = 8e-6
COPIED = (2**18, 2**24, 2**27)  # bytes of the vectors with which a bandwidth is measured
REPEATS = 5  # of a measurement, of which the best counts
NOISE_WORDS = re.compile(r"nvidia|geforce|tesla|rtx|gib|gb|[^a-z0-9]")


class Gpu(NamedTuple):
    """A device that trains.

    Attributes:
        name: what it is called.
        gib: memory that programs find, in GiB.
        half_tflops: peak of its dense bfloat16 products with float32 sums, in TFLOP/s.
        float32_tflops: peak of its float32 arithmetic, in TFLOP/s.
        bandwidths: bytes a second of its memory, each with the most bytes that it holds for.
        host_seconds: time that a single operation takes to be called.
        is_cpu: whether it is a CPU, which computes and calls by itself.
        is_measured: whether the numbers were measured here, not read from a data sheet.
    """

    name: str
    gib: float
    half_tflops: float
    float32_tflops: float
    bandwidths: tuple[tuple[float, float], ...]
    host_seconds: float = HOST_SECONDS
    is_cpu: bool = False
    is_measured: bool = False

    @property
    def bytes(self) -> float:
        """Bytes of its memory."""
        return GIB * self.gib

    def peak(self, dtype: torch.dtype) -> float:
        """FLOP/s of products of this type."""
        return 1e12 * (self.float32_tflops if dtype.itemsize > 2 else self.half_tflops)

    def bandwidth(self, num_bytes: float = float("inf")) -> float:
        """Bytes a second for an operation that moves so many: those in a cache are faster."""
        return next((rate for most, rate in self.bandwidths if num_bytes <= most), self.slowest)

    @property
    def slowest(self) -> float:
        """Bytes a second of the memory itself."""
        return self.bandwidths[-1][1]


def sheet(name: str, gib: float, half: float, single: float, gb_per_s: float) -> Gpu:
    """A GPU of a data sheet, whose memory bandwidth is given in GB/s."""
    return Gpu(name, gib, half, single, ((float("inf"), 1e9 * gb_per_s),))


# Memory as nvidia-smi tells it. TFLOP/s without sparsity and GB/s: NVIDIA's architecture papers
# "Ampere GA102", "Ada" and "RTX Blackwell" (appendices) for GeForce and RTX cards, its data sheets
# of T4, L4, L40S, A100, H100, H200 and HGX B200 for the others. T4 has no bfloat16: float16's.
GPUS = (
    sheet("T4", 15.0, 65, 8.1, 320),
    sheet("RTX 3060 12 GB", 12.0, 25.5, 12.7, 360),
    sheet("RTX 3090", 24.0, 71, 35.6, 936),
    sheet("RTX 4060 Ti 16 GB", 16.0, 44.1, 22.1, 288),
    sheet("RTX 4080", 16.0, 97.5, 48.7, 717),
    sheet("RTX 4090", 24.0, 165.2, 82.6, 1008),
    sheet("RTX 5070 Ti", 15.9, 87.9, 43.9, 896),
    sheet("RTX 5080", 15.9, 112.6, 56.3, 960),
    sheet("RTX 5090", 31.8, 209.5, 104.8, 1792),
    sheet("L4", 22.5, 121, 30.3, 300),
    sheet("L40S", 45.0, 362, 91.6, 864),
    sheet("A6000", 48.0, 154.8, 38.7, 768),
    sheet("RTX PRO 6000", 95.6, 503.8, 126, 1792),
    sheet("A100-40", 40.0, 312, 19.5, 1555),
    sheet("A100-80", 80.0, 312, 19.5, 2039),
    sheet("H100", 79.6, 989.4, 66.9, 3350),
    sheet("H200", 140.4, 989.4, 66.9, 4800),
    sheet("B200", 179.1, 2250, 75, 7700),
)
USUAL = ("RTX 5080", "RTX 4090", "L40S", "H100", "H200")  # of 16, 24, 48, 80 and 141 GB
THIS = "this"


def short(name: str) -> str:
    """A name without maker, spaces, case and GB."""
    return NOISE_WORDS.sub("", name.lower())


def find_gpu(name: str) -> Gpu:
    """The GPU that a person calls by a name, of which the beginning is enough.

    Raises:
        UserError: none or several are called so.
    """
    asked = short(name)
    same = [gpu for gpu in GPUS if short(gpu.name) == asked]
    begun = same or [gpu for gpu in GPUS if asked and short(gpu.name).startswith(asked)]
    if len(begun) != 1:
        known = ", ".join(gpu.name for gpu in begun or GPUS)
        raise UserError(
            f"gpu must be {THIS} or one of {known}, got {name!r}. With --gpu {THIS} the device at "
            "hand is measured."
        )
    return begun[0]


def this_device(device: torch.device, dtype: torch.dtype) -> Gpu:
    """The device at hand, measured for products of this type."""
    peak = max(quick_peak(device, dtype) for _ in range(REPEATS)) / 1e12
    rates = tuple((size, copy_rate(device, size)) for size in COPIED)
    return Gpu(
        device_name(device),
        memory_gib(device),
        half_tflops=peak,
        float32_tflops=peak,
        bandwidths=rates,
        host_seconds=call_seconds(),
        is_cpu=device.type == "cpu",
        is_measured=True,
    )


def device_name(device: torch.device) -> str:
    """What the device is called, a CPU with the threads that compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()}, {torch.get_num_threads()} threads"


def memory_gib(device: torch.device) -> float:
    """Memory of the device, all of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def copy_rate(device: torch.device, num_bytes: int, repeats: int = REPEATS) -> float:
    """Bytes a second, read and written, of y = x + y, which moves `num_bytes` a time."""
    x = torch.zeros(num_bytes // 12, device=device)
    y, best, times = x.clone(), 0.0, max(1, 2**24 // num_bytes)
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            y.add_(x)
        synchronize(device)
        best = max(best, times * num_bytes / (time.perf_counter() - start))
    return best


def call_seconds(repeats: int = 200) -> float:
    """Time that an operation on a few numbers takes, forward and backward, inside a module."""
    layer, x = nn.Linear(4, 4), torch.zeros(4, 4)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(repeats):
            (layer(x) * x).sum().backward()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best / NUM_CALLS


# Operations that a recorder sees in a step of call_seconds.
NUM_CALLS = 9
