"""How fast training runs."""

import sys
import time
from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.flops import ForwardFlop, quick_peak, synchronize
from pixelhdm.models.precision import training_dtype
from pixelhdm.module import PixelHDMModule

# Forward pass, gradients of the activations, gradients of the weights.
PASSES = 3


class Throughput(Callback):
    """Measure speed and log it every trainer.log_every_n_steps optimizer steps.

    throughput/images_per_s, throughput/tokens_per_s: of all processes; tokens are image patches
        and context tokens.
    throughput/data_share: share of the time in which training waited for data.
    throughput/mfu: model FLOP utilisation, 3 x FLOP of the network's forward pass x images/s of
        one device / its peak (arXiv:2204.02311, appendix B). The peak is that of square matrix
        products at the training precision, measured at the start; the network alone counts, no
        teacher, optimizer or recomputation, and no work on tokens that go around its blocks.
    throughput/peak_memory_gib: highest memory so far, of the device's tensors or, on a CPU, of
        the process.

    The time is that of training alone, from asking for a batch to the end of its step with the
    average; validation, sampling and checkpoints are left out, and so is the first batch, which
    compiles and allocates. The device is waited for at the end of each window only.
    """

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if stage == "fit":
            self.flop: ForwardFlop | None = ForwardFlop(pl_module.network, is_training=True)

    def on_train_start(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        dtype, device = training_dtype(trainer.precision), pl_module.device
        self.peak, self.num_tokens = quick_peak(device, dtype), 0
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        self.hook = pl_module.conditioner.register_forward_hook(self.note_context)
        self.seen, self.is_first = trainer.global_step, True

    def note_context(self, module: nn.Module, inputs: Any, context: Context) -> None:
        """Remember how many context tokens a batch has; text of any length is known here alone."""
        self.num_tokens = context.tokens.shape[1]

    def begin(self) -> None:
        """Start a window."""
        self.images: Counter[tuple[int, int, int]] = Counter()
        self.seconds = self.waited = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: PixelHDMModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, loader = time.perf_counter(), trainer.datamodule.loader
        stepped, self.seen = trainer.global_step != self.seen, trainer.global_step
        shape = (*batch["image"].shape[1:3], self.num_tokens)
        if self.is_first:
            self.is_first = False
            synchronize(pl_module.device)
            self.announce(shape, training_dtype(trainer.precision))
            self.begin()
            return
        self.images[shape] += len(batch["seed"])
        self.seconds += now - loader.asked
        self.waited += loader.given - loader.asked
        every = trainer.log_every_n_steps
        if stepped and every and self.seen % every == 0:
            synchronize(pl_module.device)
            self.seconds += time.perf_counter() - now
            pl_module.log_dict(self.measured(trainer, pl_module))
            self.begin()

    def announce(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        """Say what the utilisation is measured against."""
        (height, width, _), name = shape, str(dtype).removeprefix("torch.")
        try:
            flop = f"{PASSES * self.flop(*shape) / 1e9:.3g} GFLOP"
        except RuntimeError as error:  # a network that reads values, which the meta device lacks
            self.flop, flop = None, f"an unknown number of FLOP ({str(error).splitlines()[0]})"
        rank_zero_info(
            f"Device peak {self.peak / 1e12:.3g} TFLOP/s ({name} products, measured); the network "
            f"takes {flop} per training image of {height}x{width}."
        )

    def measured(self, trainer: Trainer, pl_module: PixelHDMModule) -> dict[str, float]:
        """The numbers of the window."""
        patch = pl_module.network.patch_size**2
        tokens = sum(n * (h * w // patch + extra) for (h, w, extra), n in self.images.items())
        rate = trainer.world_size / self.seconds
        values = {
            "images_per_s": self.images.total() * rate,
            "tokens_per_s": tokens * rate,
            "data_share": self.waited / self.seconds,
            **peak_memory(pl_module.device),
        }
        if self.flop is not None:
            flop = PASSES * sum(n * self.flop(*shape) for shape, n in self.images.items())
            values["mfu"] = flop / self.seconds / self.peak
        return {f"throughput/{name}": value for name, value in values.items()}

    def on_train_end(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        self.hook.remove()


def peak_memory(device: torch.device) -> dict[str, float]:
    """The highest memory so far in GiB, where the system tells it."""
    if device.type == "cuda":
        return {"peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    if sys.platform == "linux":
        import resource  # not on every system

        return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    return {}
