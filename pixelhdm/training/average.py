"""Where the average of a model's weights lies, and with what it draws."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Average(nn.ModuleDict):
    """A float32 copy of what draws, not trained: beside the weights, or always in CPU memory.

    In CPU memory nothing that moves or casts the module around it reaches it. It draws by a copy on
    the device that lives until `rest`.

    Args:
        parts: what is copied.
        on_cpu: whether it stays in CPU memory.
    """

    def __init__(self, parts: Mapping[str, nn.Module], on_cpu: bool = False):
        super().__init__(copy.deepcopy(dict(parts)))
        self.stays = False
        self.float().requires_grad_(False).eval()
        if on_cpu:
            self.cpu()
        self.stays = on_cpu
        self.copies: dict[torch.device, nn.ModuleDict] = {}
        self.staging: list[Tensor] = []

    def _apply(self, fn, recurse: bool = True) -> "Average":
        return self if self.stays else super()._apply(fn, recurse)

    def is_away(self, device: torch.device) -> bool:
        """Whether it can't compute with what lies on a device."""
        return self.stays and device.type != "cpu"

    def taken(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights in float32, where the average lies."""
        device = weights[0].device
        if self.is_away(device):
            pin = device.type == "cuda"
            if not self.staging:
                self.staging = [
                    torch.empty_like(weight, device="cpu", pin_memory=pin) for weight in weights
                ]
            for own, weight in zip(self.staging, weights, strict=True):
                own.copy_(weight, non_blocking=True)
            if pin:
                torch.cuda.current_stream(device).synchronize()
            weights = self.staging
        return [weight.float() for weight in weights]

    def on(self, device: torch.device) -> nn.ModuleDict:
        """The parts on a device: themselves, or a copy."""
        if not self.is_away(device):
            return self
        if device not in self.copies:
            self.copies[device] = self.copied(device)
        return self.copies[device]

    def copied(self, device: torch.device) -> nn.ModuleDict:
        """A copy on a device, of which nothing lies in CPU memory in the meantime."""
        moved: dict[int, object] = {
            id(own): nn.Parameter(own.to(device, copy=True), requires_grad=False)
            for own in self.parameters()
        }
        moved |= {id(own): own.to(device, copy=True) for own in self.buffers()}
        return nn.ModuleDict(copy.deepcopy(dict(self.items()), moved)).eval()

    def rest(self) -> None:
        """Free the copies on devices: it has changed, or nothing will be drawn for a while."""
        self.copies.clear()
