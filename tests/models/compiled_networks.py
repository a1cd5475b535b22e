"""Compiled networks beside eager ones, as a script: under pytest the type checks of every function
would be compiled too.
"""

from functools import partial

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pixelhdm.compiling import warm_up
from pixelhdm.models.compile_report import REPORT
from pixelhdm.models.compiling import compile_blocks
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.dit import PixelDiT
from pixelhdm.models.mmdit import MMDiT
from pixelhdm.models.network import Network
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.text_jit import TextJiT
from tests.models.networks import DIM, small


def pixelhdm(**changes: object) -> PixelHDM:
    sizes = {"head_dim": 16, "rope_dims": (4, 6, 6), "bottleneck_dim": 8, "feature_block": 1}
    return PixelHDM(DIM, 8, 4, 3, 2, 2, 1, **sizes, **changes)


def batch(num: int, height: int, width: int, tokens: int, masked: bool) -> tuple:
    source = torch.Generator().manual_seed(num * height + tokens)
    valid = torch.randint(1, tokens + 1, (num, 1), generator=source)
    mask = torch.arange(tokens) < valid if masked else None
    pooled = torch.randn(num, DIM, generator=source)
    context = Context(torch.randn(num, tokens, DIM, generator=source), mask, pooled)
    image = torch.randn(num, height, width, 3, generator=source)
    return image, torch.rand(num, generator=source), context


def results(network: Network, inputs: tuple) -> list[Tensor | None]:
    """Output, features and gradients."""
    network.zero_grad()
    output, features, *_ = network(*inputs)
    (output.sin().sum() + features.square().sum()).backward()
    return [output.detach(), features.detach(), *(own.grad for own in network.parameters())]


def compare(network: Network, inputs: list[tuple], num_graphs: int, backend: str) -> None:
    """Compiled equals eager within rounding, in the given number of graphs without breaks."""
    for own in network.parameters():
        nn.init.normal_(own, std=0.05)
    expected, names = [results(network, one) for one in inputs], list(network.state_dict())
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(network, backend=backend)
    for block in network.all_blocks:
        block.compile(backend=backend, dynamic=False, fullgraph=True)
    for one, plain in zip(inputs, expected, strict=True):
        for ours, theirs in zip(results(network, one), plain, strict=True):
            if theirs is None:
                assert ours is None
                continue
            size = float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * size + 1e-7)
    assert list(network.state_dict()) == names
    assert counters["stats"]["unique_graphs"] == num_graphs, counters["stats"]


def check_kinds() -> None:
    inputs = [batch(2, 16, 16, 5, True), batch(3, 16, 8, 7, True)]
    # A class, not a block, is compiled, and for all sizes.
    compare(pixelhdm(grad_checkpoint="all"), inputs, 2, "aot_eager")
    compare(small(PixelDiT, post_modulation=True), inputs, 2, "eager")
    compare(small(MMDiT), inputs, 2, "eager")  # its last block is of another form
    compare(small(TextJiT), inputs, 2, "eager")


def check_warm_up() -> None:
    """It leaves no trace, and afterwards texts of any length compile nothing, but drawing does."""
    torch._dynamo.reset()
    network, conditioner = pixelhdm(), TextConditioner(DIM, "nowhere", width=8, max_length=20)
    weights = [own.detach().clone() for own in network.parameters()]
    compile_blocks(network, backend="eager")
    before, random = REPORT.count, torch.get_rng_state()
    precise = partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=False)
    warm_up(network, conditioner, [(2, 16, 16), (3, 8, 16)], precise)
    assert torch.equal(random, torch.get_rng_state())
    for own, old in zip(network.parameters(), weights, strict=True):
        assert torch.equal(own, old)
        assert own.grad is None
    assert all(own.grad is None for own in conditioner.parameters())
    for lengths, *size in (((3, 20), 16, 16), ((9, 9, 9), 8, 16), ((1, 5, 2, 17, 6), 24, 8)):
        image, t, _ = batch(len(lengths), *size, 1, False)
        with precise():
            context = conditioner([torch.randn(length, 8) for length in lengths])
            output = network(image, t, context).output
        output.float().sum().backward()
    assert REPORT.count == before
    with torch.no_grad():
        network(*batch(4, 16, 16, 4, True))
        network(*batch(3, 8, 16, 5, True))
    assert REPORT.count == before + 1


def check_inductor() -> None:
    """The compiler that people use, on a block forwards: it takes a quarter of a minute."""
    torch._dynamo.reset()
    network = PixelHDM(DIM, 8, 4, 1, 0, 2, 1, 16, (4, 6, 6), feature_block=1)
    for own in network.parameters():
        nn.init.normal_(own, std=0.1)
    inputs = batch(2, 16, 16, 3, False)
    with torch.no_grad():
        expected = network(*inputs).output
        compile_blocks(network)
        torch.testing.assert_close(network(*inputs).output, expected, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    check_inductor()
    check_kinds()
    check_warm_up()
