"""Sample grids while training."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from PIL import Image

from pixelhdm.checkpoints import Weights
from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import by_group
from pixelhdm.errors import check_at_least
from pixelhdm.files import replacing
from pixelhdm.inference.drawable import check_drawable, check_solvers, check_weaker
from pixelhdm.inference.showing.grid import labelled_grid
from pixelhdm.loggers import log_image
from pixelhdm.module import PixelHDMModule

FOLDER = "samples"


class SampleImages(Callback):
    """Draw the images of data.prompts or data.draw now and then into <run folder>/samples and the
    loggers.

    The seeds are always the same. One row a class or prompt. step_….png shows the weights of
    model.weights (the EMA by default), step_…_raw.png the other ones.

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
        if self.every_n_steps:
            items = trainer.datamodule.draw_list.items
            check_drawable(items, pl_module.network, pl_module.conditioner, pl_module.guidance)
            check_solvers(items, pl_module.drawing, pl_module.samplers)
            check_weaker(items, pl_module.model(), pl_module.guidance)

    def on_train_batch_end(self, trainer: Trainer, pl_module: PixelHDMModule, *_: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        if self.every_n_steps:
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        """Write the grid of this step, once."""
        done = trainer.global_step == self.drawn_at or trainer.fast_dev_run
        if done or not (trainer.is_global_zero or pl_module.is_sharded):
            return
        self.drawn_at = trainer.global_step
        chosen = pl_module.weights
        for weights in ("raw", "ema") if pl_module.ema is not None else (chosen,):
            ending = "" if weights == chosen else f"_{weights}"
            grid = self.grid(trainer, pl_module, weights)
            if not trainer.is_global_zero:  # it has lent its part of the weights
                continue
            file = Path(trainer.default_root_dir) / FOLDER / f"step_{self.drawn_at:08d}{ending}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                grid.save(temporary, "png")
            log_image(trainer, f"samples{ending}", grid)
            if not ending:
                self.latest = file

    def grid(self, trainer: Trainer, pl_module: PixelHDMModule, weights: Weights) -> Image.Image:
        """Draw with the averaged or the raw weights."""
        data, drawn = trainer.datamodule, {}
        with trainer.precision_plugin.forward_context():
            for batch in DrawLoader(data.draw_list.items, data.batch_size):
                images = pl_module.draw_batch(batch, weights).numpy()
                drawn |= zip(batch["items"], images, strict=True)
        return labelled_grid(
            [
                (group[0].label, [drawn[item] for item in group])
                for group in by_group(data.draw_list.items)
            ]
        )
