"""A line for whatever torch.compile compiles, while it does it."""

import sys
import time
from typing import Any

import torch
import torch.distributed
from torch import nn

from pixelhdm.models.conditioners.context import Context


class CompileReport:
    """Says for which images torch.compile compiles, at once, and then how many seconds it took.

    Attributes:
        case: what runs in a network now, or ran there last.
        since: when the compilation began that runs now.
        count: lines so far.
        is_silent: whether somebody else tells of it.
    """

    def __init__(self) -> None:
        self.case, self.since, self.count = "", None, 0
        self.is_inside = self.is_silent = False

    def watch(self, network: nn.Module) -> None:
        """Tell of a network whose forward pass takes image, time and context."""
        # Here and not above, as it takes a second, which --help should not.
        from torch._dynamo.callback import callback_handler

        if self.start not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self.start)
            callback_handler.register_end_callback(self.end)
        network.register_forward_pre_hook(self.enter)
        network.register_forward_hook(self.leave, always_call=True)

    def enter(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Forward hook: note what comes."""
        image, _, context = inputs
        self.case, self.is_inside = described(*image.shape[:3], context), True

    def leave(self, network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Forward hook: what was compiled inside is done."""
        self.is_inside = False
        self.finish()

    def start(self, args: Any) -> None:
        """Callback of torch: a compilation begins, one of several of a forward pass."""
        if self.is_silent or self.since is not None:
            return
        self.since, self.count = time.perf_counter(), self.count + 1
        case = self.case if self.is_inside else f"the backward pass of {self.case}"
        show(f"{process()}Compiling for {case} … ")

    def end(self, args: Any) -> None:
        """Callback of torch: it ends."""
        if not self.is_inside:
            self.finish()

    def finish(self) -> None:
        """End the line that was begun."""
        if self.since is not None:
            show(f"{time.perf_counter() - self.since:.1f} s\n", begins=False)
            self.since = None


REPORT = CompileReport()  # one, as torch has one list of callbacks


def described(batch: int, height: int, width: int, context: Context) -> str:
    """A batch in words."""
    tokens = context.tokens.shape[1]
    text = f"{height}x{width}, batch {batch}, {tokens} context token{'s' * (tokens != 1)}"
    text += "" if context.mask is None else ", masked"
    text += "" if context.route is None else ", routed"
    return text + ("" if torch.is_grad_enabled() else ", without gradients")


def process() -> str:
    """Which process speaks, where there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return f"Process {torch.distributed.get_rank()}: "
    return ""


def show(text: str, begins: bool = True) -> None:
    """Print at once; on a terminal in the place of the progress line."""
    is_over_bar = begins and sys.stderr.isatty()
    print(f"\r\033[K{text}" if is_over_bar else text, end="", file=sys.stderr, flush=True)
