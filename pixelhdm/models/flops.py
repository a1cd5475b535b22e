"""How much arithmetic a network takes, and how much a device does in a second."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.linear import HAS_ONEDNN
from pixelhdm.models.network import Network
from pixelhdm.models.routing import Route


def count_flop(run: Callable[[], object]) -> int:
    """Multiplications and additions of the matrix products that `run` does, attention included.

    Nothing is counted for norms and activations. On the meta device nothing is computed either.
    """
    # Imported here: it brings 80 MB of torch._dynamo that must not count in a benchmark's memory.
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


class ForwardFlop:
    """FLOP of a network's forward pass of one image, by image size and number of context tokens.

    It copies the network without its weights, so it must be built before the network is sharded.
    At most three numbers of tokens are counted for each image size. The others follow from them:
    the FLOP of linear layers and attention are a polynomial of degree 2 in the sequence's length.

    Args:
        network: the network to count.
        is_training: count as in training, where tokens go around blocks if the network has routing.
    """

    def __init__(self, network: Network, is_training: bool = False):
        tensors = (*network.parameters(), *network.buffers())
        without_weights = {id(tensor): tensor.detach().to("meta") for tensor in tensors}
        self.network = copy.deepcopy(network, without_weights)
        self.is_training = is_training
        self.counted: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)

    def __call__(self, height: int, width: int, num_tokens: int) -> int:
        """FLOP of an image of this size with this many context tokens."""
        known = self.counted[height, width]
        if num_tokens not in known and len(known) < 3:
            known[num_tokens] = self.count(height, width, num_tokens)
        return known[num_tokens] if num_tokens in known else interpolated(known, num_tokens)

    def count(self, height: int, width: int, num_tokens: int) -> int:
        """The same, counted."""
        dim = self.network.hidden_dim
        with torch.no_grad(), torch.device("meta"):
            image, time_ = torch.empty(1, height, width, 3), torch.empty(1)
            num_kept = self.network.num_kept(height, width) if self.is_training else None
            route = None if num_kept is None else Route(torch.empty(1, num_kept, dtype=torch.long))
            context = Context(torch.empty(1, num_tokens, dim), None, torch.empty(1, dim), route)
            return count_flop(lambda: self.network(image, time_, context))


def interpolated(known: dict[int, int], at: int) -> int:
    """The value at `at` of the polynomial through the points of `known` (Lagrange's form)."""
    total = Fraction()
    for x, y in known.items():
        term = Fraction(y)
        for other in known.keys() - {x}:
            term *= Fraction(at - other, x - other)
        total += term
    return int(total)


def matmul_peak(
    device: torch.device,
    dtype: torch.dtype,
    sides: Sequence[int],
    repeats: int = 8,
    onednn: bool = False,
) -> float:
    """Best FLOP/s of products of square matrices, 2 n³ each: four in a row, `repeats` times.

    Args:
        device: where to multiply.
        dtype: type of the matrices.
        sides: sides n to try.
        repeats: measurements of each side.
        onednn: multiply by oneDNN instead of torch.mm; CPU only.
    """
    generator, best = torch.Generator(device).manual_seed(0), 0.0
    for n in sides:
        a, b = torch.randn(2, n, n, device=device, generator=generator).to(dtype)
        out = torch.empty_like(a)
        for _ in range(repeats):
            synchronize(device)
            start = time.perf_counter()
            for _ in range(4):
                if onednn:
                    torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
                else:
                    torch.mm(a, b, out=out)
            synchronize(device)
            best = max(best, 8 * n**3 / (time.perf_counter() - start))
    return best


def quick_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The device's matmul_peak, measured in a fraction of a second."""
    if device.type != "cpu":
        return matmul_peak(device, dtype, (4096, 8192), repeats=2)
    ways = (False, True) if dtype == torch.float32 and HAS_ONEDNN else (False,)
    return max(matmul_peak(device, dtype, (512, 1024), 1, onednn) for onednn in ways)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
