"""Networks that are used and never trained."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Frozen(ABC):
    """Base of pretrained networks that are used and never trained.

    Not an nn.Module: the network is in no checkpoint, optimizer, average or DDP wrapper, and stays
    in eval mode. It is read at first use, its parameters in `gpu_dtype` on a GPU and in float32
    elsewhere; its buffers keep their type, for rotary frequencies do not bear bfloat16.

    Attributes:
        gpu_dtype: type of its parameters on a GPU.
    """

    gpu_dtype = torch.bfloat16

    def __init__(self) -> None:
        self.network: nn.Module | None = None
        self.device: torch.device | None = None
        self.is_resting = False

    @abstractmethod
    def read(self) -> nn.Module:
        """The network from its files, in float32 on the CPU.

        Raises:
            UserError: the files are missing or do not fit.
        """

    def load(self, device: torch.device) -> nn.Module:
        """The network on `device`, read now if it is not there yet."""
        if self.network is None or self.device != device:
            self.free()
            # Neither the run's random numbers nor validation's inference mode may notice.
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
                network = self.read().eval().requires_grad_(False).to(device)
                dtype = self.gpu_dtype if device.type == "cuda" else torch.float32
                for parameter in network.parameters():
                    parameter.data = parameter.data.to(dtype)
            self.network, self.device = network, device
        if self.is_resting:
            self.network.to(device)
            self.is_resting = False
        return self.network

    def rest(self) -> None:
        """Move the network to the CPU's memory, as it is; the next use brings it back."""
        if self.network is None or self.is_resting or self.device.type == "cpu":
            return
        self.network.to("cpu")
        self.is_resting = True
        torch.cuda.empty_cache()

    def free(self) -> None:
        """Drop the network; the next use reads it again."""
        self.network, self.device, self.is_resting = None, None, False
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        return self  # the copy of a module that holds one, as EMA makes it, shares the network


def expanded(source: str) -> str:
    """A source of weights, ~ written out."""
    return str(Path(source).expanduser()) if source.startswith("~") else source


def is_missing_folder(source: str) -> bool:
    """Whether a source of weights means a folder, not a name of the Hub, and is not there."""
    is_path = source.startswith((".", "/")) or source.count("/") > 1
    return is_path and not Path(source).is_dir()
