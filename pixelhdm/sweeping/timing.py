"""How long drawing takes."""

import time
from typing import Any

from jaxtyping import UInt8
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from pixelhdm.module import PixelHDMModule


class DrawingTime(Callback):
    """Measures the time in which this process draws, without what becomes of the images; it must
    come before the callbacks that take them.

    Attributes:
        seconds: all of it.
        num_images: how many images.
    """

    def __init__(self):
        self.seconds, self.num_images, self.began = 0.0, 0, 0.0

    def restart(self) -> None:
        """Forget all."""
        self.seconds, self.num_images = 0.0, 0

    @property
    def per_image(self) -> float | None:
        """Seconds for an image; None where none was drawn."""
        return self.seconds / self.num_images if self.num_images else None

    def on_test_batch_start(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        self.began = time.monotonic()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: PixelHDMModule,
        outputs: UInt8[Tensor, "B H W 3"],
        *_: Any,
    ) -> None:
        self.seconds += time.monotonic() - self.began
        self.num_images += len(outputs)
