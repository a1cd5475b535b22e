"""Sample grids while training."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image

from pixelhdm.checkpoints import Weights
from pixelhdm.data.draws import DrawLoader
from pixelhdm.errors import check_at_least
from pixelhdm.files import replacing
from pixelhdm.inference.grid import labelled_grid
from pixelhdm.loggers import log_image
from pixelhdm.module import PixelHDMModule

FOLDER = "samples"


class SampleImages(Callback):
    """Draw the images of data.draw now and then into <run folder>/samples and the loggers.

    The seeds are always the same. One row a class. step_….png shows the weights of model.weights
    (the EMA by default), step_…_raw.png the other ones.

    Args:
        every_n_steps: optimizer steps between grids, also drawn at the end of the run; 0 draws
            none.
    """

    def __init__(self, every_n_steps: int = 500):
        check_at_least(0, every_n_steps=every_n_steps)
        self.every_n_steps, self.drawn_at = every_n_steps, 0
        self.latest: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        self.drawn_at = trainer.global_step
        pl_module.network.check_size(*trainer.datamodule.draw_size)
        pl_module.conditioner.check(torch.tensor(trainer.datamodule.draw.class_list))

    def on_train_batch_end(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        if self.every_n_steps:
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        """Write the grid of this step, once."""
        done = trainer.global_step == self.drawn_at or trainer.fast_dev_run
        if done or not trainer.is_global_zero:
            return
        self.drawn_at = trainer.global_step
        chosen = pl_module.weights
        for weights in ("raw", "ema") if pl_module.ema is not None else (chosen,):
            ending = "" if weights == chosen else f"_{weights}"
            grid = self.grid(trainer, pl_module, weights)
            file = Path(trainer.default_root_dir) / FOLDER / f"step_{self.drawn_at:08d}{ending}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                grid.save(temporary, "png")
            log_image(trainer, f"samples{ending}", grid)
            if not ending:
                self.latest = file

    def grid(self, trainer: Trainer, pl_module: PixelHDMModule, weights: Weights) -> Image.Image:
        """Draw with the averaged or the raw weights."""
        data, rows = trainer.datamodule, defaultdict(list)
        with trainer.precision_plugin.forward_context():
            for batch in DrawLoader(data.draw, data.batch_size):
                drawn = pl_module.draw(batch["condition"], batch["seed"], *data.draw_size, weights)
                for condition, image in zip(
                    drawn.condition.tolist(), drawn.images.numpy(), strict=True
                ):
                    rows[f"class {condition}"].append(image)
        return labelled_grid({label: np.stack(images) for label, images in rows.items()})
