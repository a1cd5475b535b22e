import re
import sys
from types import ModuleType

import jaxtyping
import pytest
import torch
from torch import nn

from pixelhdm.errors import UserError
from pixelhdm.models import attention_kernels
from pixelhdm.models.attention import GatedAttention, attend
from pixelhdm.models.attention_report import attention_report
from pixelhdm.models.packing import packing
from tests.flash import VERSION, pretend_flash
from tests.models.test_packing import pretend
from tests.stubs import context, perturb, randn, tiny_network

CUDA, CPU, BF16 = torch.device("cuda"), torch.device("cpu"), torch.bfloat16
T = torch.tensor([0.2, 0.7])


@pytest.fixture(autouse=True)
def forget():
    """What is installed is looked for once; here it changes."""
    known = (attention_kernels.flash_obstacle, attention_kernels.flash_version)
    for function in known:
        function.cache_clear()
    yield
    for function in known:
        function.cache_clear()


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_queries", [6, 2])
def test_flash_attention_is_pytorchs(monkeypatch, num_kv_heads, num_queries):
    pretend_flash(monkeypatch)
    k, v = randn(2, num_kv_heads, 6, 8, seed=5), randn(2, num_kv_heads, 6, 8, seed=6)
    parts = [part.requires_grad_() for part in (randn(2, 4, num_queries, 8), k, v)]
    outs = [attend(*parts, None, kernel) for kernel in ("flash", "sdpa")]
    torch.testing.assert_close(*outs)
    weight = randn(*outs[0].shape, seed=7)
    grads = (torch.autograd.grad((out * weight).sum(), parts) for out in outs)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", ["none", "selective", "all"])
@pytest.mark.parametrize("kernel", ["flash", "torch"])
def test_a_network_learns_the_same_with_its_blocks_computed_again(monkeypatch, kernel, mode):
    network, given, z = perturb(tiny_network()), context(2, 4), randn(2, 4, 6, 3)
    given = given._replace(mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool())

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        network(z, T, given).output.square().mean().backward()
        return [weight.grad for weight in network.parameters()]

    expected = gradients()
    pretend(kernel, monkeypatch)
    network.grad_checkpoint = mode
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_a_choice_holds_in_every_layer(monkeypatch):
    network = perturb(tiny_network())
    given, z = context(2, 0), randn(2, 4, 6, 3)
    expected = network(z, T, given).output
    module = pretend_flash(monkeypatch)
    network.choose_attention("sdpa")
    calls, own = [], module.flash_attn_func

    def counted(*heads: torch.Tensor, deterministic: bool) -> torch.Tensor:
        calls.append((heads[1].shape, deterministic))
        return own(*heads)

    module.flash_attn_func = counted
    assert torch.equal(network(z, T, given).output, expected)
    assert not calls
    network.choose_attention("flash")
    torch.testing.assert_close(network(z, T, given).output, expected, rtol=1e-4, atol=1e-5)
    # Three blocks on patches, two on pixels; keys are not copied.
    assert calls == [((2, 6, 2, 8), False)] * 5


@pytest.mark.parametrize("kernel", ["flash", "torch"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_compiled_layer_is_one_graph(monkeypatch, kernel, masked):
    pretend(kernel, monkeypatch)
    layer, graphs = perturb(GatedAttention(24, 4, 2, 8)), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch cannot look into it
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for last in (True, False):  # another number of valid tokens
        mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, last]]).bool()
        given = packing(mask) if masked else None
        x = randn(2, 5, 24)
        torch.testing.assert_close(compiled(x, None, given), layer(x, None, given))
    assert len(graphs) == 1


# Which kernel can be had ------------------------------------------------------------------------


class Finder:
    """Raises an error when flash_attn is imported."""

    def __init__(self, error: Exception):
        self.error = error

    def find_spec(self, name: str, *_: object) -> None:
        if name == "flash_attn":
            raise self.error


def install(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Let the import of flash_attn end in an error, or give flash-attn 2."""
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    if error is None:
        obstacle = attention_kernels.flash_obstacle
        pretend_flash(monkeypatch)
        monkeypatch.setattr(attention_kernels, "flash_obstacle", obstacle)
    else:
        monkeypatch.setattr(sys, "meta_path", [Finder(error), *sys.meta_path])


ABSENT = ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn")
UNFIT = {
    "absent": (ABSENT, CUDA, BF16, 64, "where flash-attn is not installed, got flash. Install it"),
    "torch": (
        ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda"),
        *(CUDA, BF16, 64),
        "undefined symbol: _ZN3c104cuda), got flash. It was probably built for another PyTorch",
    ),
    "library": (OSError("libcudart.so.12: cannot open"), CUDA, BF16, 64, "libcudart.so.12"),
    "part": (
        ModuleNotFoundError("No module named 'flash_attn_2_cuda'", name="flash_attn_2_cuda"),
        *(CUDA, BF16, 64),
        "cannot be loaded (ModuleNotFoundError: No module named 'flash_attn_2_cuda')",
    ),
    "CPU": (None, CPU, BF16, 64, "where the device is cpu, not CUDA, got flash."),
    "float32": (None, CUDA, torch.float32, 64, "multiplied in float32, not in half precision"),
    "odd": (None, CUDA, BF16, 36, "a head has 36 channels, not a multiple of 8 up to 256"),
    "wide": (None, CUDA, BF16, 264, "a head has 264 channels"),
    "old": (None, CUDA, BF16, 64, "the GPU has compute capability 7.5, below 8.0, got flash."),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_missing_is_named_and_auto_goes_without(monkeypatch, case):
    error, device, dtype, head_dim, message = UNFIT[case]
    install(monkeypatch, error)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(UserError, match=re.escape(message)):
        attention_kernels.takes_flash("flash", device, dtype, head_dim)
    assert not attention_kernels.takes_flash("auto", device, dtype, head_dim)


def test_the_package_of_flash_attn_4_is_not_taken_for_flash_attn_2(monkeypatch, tmp_path):
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="only flash-attn-4 is installed, which has other"):
        attention_kernels.takes_flash("flash", CUDA, BF16, 64)
    for name in ("flash_attn", "flash_attn.cute"):
        sys.modules.pop(name, None)


def test_a_fitting_card_takes_it(monkeypatch):
    install(monkeypatch, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert attention_kernels.takes_flash("flash", CUDA, BF16, 256)
    assert not attention_kernels.takes_flash("sdpa", CUDA, BF16, 256)
    assert not attention_kernels.takes_flash("flash", torch.device("meta"), BF16, 64)


def test_a_cpu_never_imports_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setattr(attention_kernels, "flash_version", lambda: pytest.fail("imported"))
    attention_report(tiny_network(), CPU, BF16)
    tiny_network()(randn(2, 4, 6, 3), T, context(2, 0))


# What is said of it -----------------------------------------------------------------------------


def report(kernel: str, device: torch.device, dtype: torch.dtype) -> str | None:
    network = tiny_network()
    network.choose_attention(kernel)
    return attention_report(network, device, dtype)


def test_the_report_names_both_kernels(monkeypatch):
    assert report("auto", CPU, torch.float32) == (
        "Attention: PyTorch's SDPA (the device is cpu, not CUDA), with a mask for padded batches."
    )
    plain = "Attention: PyTorch's SDPA, with a mask for padded batches."
    assert report("sdpa", CUDA, BF16) == plain
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    install(monkeypatch, ABSENT)
    assert report("auto", CUDA, BF16) == (
        "Attention: PyTorch's SDPA (flash-attn is not installed), with its varlen_attn for padded "
        "batches."
    )


def test_the_report_of_flash_attn(monkeypatch):
    install(monkeypatch, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    line = f"Attention: flash-attn {VERSION}, also for padded batches."
    assert report("auto", CUDA, BF16) == report("flash", CUDA, BF16) == line
    with pytest.raises(UserError, match=r"got flash\. Use --trainer\.precision bf16-mixed"):
        report("flash", CUDA, torch.float32)
    assert attention_report(nn.Linear(1, 1), CPU, BF16) is None
