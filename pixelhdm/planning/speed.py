"""How long operations take: a roofline for each."""

from typing import NamedTuple

from pixelhdm.planning.gpus import Gpu
from pixelhdm.planning.recording import Work

# What training reaches of a data sheet's peaks of products and bandwidth; of peaks measured on a
# GPU; and of those measured on a CPU, whose products here are smaller than the peak's.
PRODUCT_SHARE, BANDWIDTH_SHARE = 0.7, 0.8
MEASURED_SHARES, CPU_SHARES = (0.85, 0.9), (0.6, 0.5)


class Line(NamedTuple):
    """A number that grows with the images of a batch: constant + slope n."""

    constant: float
    slope: float

    @classmethod
    def through(cls, n: int, value: float, other_n: int, other: float) -> "Line":
        """The line through two points."""
        slope = (other - value) / (other_n - n)
        return cls(value - slope * n, slope)

    def __call__(self, n: float) -> float:
        return max(0.0, self.constant + self.slope * n)

    def __add__(self, constant: float) -> "Line":
        return Line(self.constant + constant, self.slope)


def seconds(works: list[Work], gpu: Gpu, is_compiled: bool = False) -> float:
    """Time of operations, each the longer of its arithmetic and its way to memory and back.

    A GPU works while the next operations are called, so that the longer of both counts. A compiled
    network has its chains fused, see `fused`.
    """
    works = fused(works) if is_compiled else works
    device = sum(work_seconds(work, gpu) for work in works)
    host = len(works) * gpu.host_seconds
    return device + host if gpu.is_cpu else max(device, host)


def work_seconds(work: Work, gpu: Gpu) -> float:
    """Time of one operation on the device."""
    peak = 1e12 * (gpu.half_tflops if work.itemsize < 4 else gpu.float32_tflops)
    product, memory = shares(gpu)
    return max(work.flop / (product * peak), work.moved / (memory * gpu.bandwidth(work.moved)))


def moving_seconds(num_bytes: float, gpu: Gpu) -> float:
    """Time to read or write so many bytes of memory."""
    return num_bytes / (shares(gpu)[1] * gpu.slowest)


def shares(gpu: Gpu) -> tuple[float, float]:
    """What training reaches of a device's peak of products and of its bandwidth."""
    if gpu.is_measured:
        return CPU_SHARES if gpu.is_cpu else MEASURED_SHARES
    return PRODUCT_SHARE, BANDWIDTH_SHARE


def fused(works: list[Work]) -> list[Work]:
    """The operations as a compiler leaves them: what lies between two products is one.

    It reads what it did not make itself, once, and writes what is used after it. So an estimate: a
    real compiler splits chains at reductions over many numbers, and computes again in the backward
    pass what it would have to keep.
    """
    last_read = {n: at for at, work in enumerate(works) for n in work.read}
    found: list[Work] = []
    chain: list[tuple[int, Work]] = []
    for at, work in enumerate(works):
        if work.is_product:
            found += [*joined(chain, last_read), work]
            chain = []
        else:
            chain.append((at, work))
    return found + joined(chain, last_read)


def joined(chain: list[tuple[int, Work]], last_read: dict[int, int]) -> list[Work]:
    """The operations of a chain as one; none of none."""
    if not chain:
        return []
    end = chain[-1][0]
    read: dict[int, int] = {}
    made: dict[int, int] = {}
    for _, work in chain:
        read |= {n: size for n, size in work.read.items() if n not in made}
        made |= work.written
    written = {n: size for n, size in made.items() if n in read or last_read.get(n, -1) > end}
    return [Work(0, read, written, chain[-1][1].itemsize)]
