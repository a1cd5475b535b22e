"""What predict draws, as files."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pixelhdm.files import replacing
from pixelhdm.inference.grid import labelled_grid
from pixelhdm.module import Drawn, PixelHDMModule

GRID_ROWS, GRID_COLUMNS = 20, 20


class SaveImages(Callback):
    """Write one PNG for each image that predict draws, and a grid of them.

    Each PNG carries its settings as text. Files are named by class and seed; the grid shows the
    first 20 classes and 20 images of each.

    Args:
        folder: where to write; empty makes <run folder>/predict/<settings>.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder

    def target(self, trainer: Trainer, pl_module: PixelHDMModule) -> Path:
        """The folder to write to."""
        if self.folder:
            return Path(self.folder)
        settings = " ".join(
            f"{name}={value}" for name, value in self.settings(trainer, pl_module).items()
        )
        return (
            Path(trainer.default_root_dir)
            / "predict"
            / settings.replace(" ", "_").replace("/", "-")
        )

    def settings(self, trainer: Trainer, pl_module: PixelHDMModule) -> dict[str, str]:
        """What the images depend on besides class and seed."""
        source = trainer.ckpt_path or pl_module.init_from
        return {
            "checkpoint": Path(source).stem,
            "weights": pl_module.weights,
            "sampler": type(pl_module.sampler).__name__,
            "steps": str(pl_module.sampler.num_steps),
            "scale": f"{pl_module.guidance.scale:g}",
            "size": "{}x{}".format(*trainer.datamodule.draw_size),
        }

    def on_predict_start(self, trainer: Trainer, pl_module: PixelHDMModule) -> None:
        self.target(trainer, pl_module).mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: PixelHDMModule, outputs: Drawn, *_: Any
    ) -> None:
        folder, shared = self.target(trainer, pl_module), self.settings(trainer, pl_module)
        for image, condition, seed in zip(
            outputs.images.numpy(), outputs.condition.tolist(), outputs.seed.tolist(), strict=True
        ):
            facts = PngInfo()
            own = {"class": str(condition), "seed": str(seed)}
            for name, value in (own | shared).items():
                facts.add_text(f"pixelhdm.{name}", value)
            with replacing(folder / image_name(condition, seed)) as temporary:
                Image.fromarray(image).save(temporary, "png", pnginfo=facts)

    def teardown(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if stage != "predict":  # on_predict_end would not run on a process without images
            return
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        folder, draw = self.target(trainer, pl_module), trainer.datamodule.draw
        seeds = range(draw.seed, draw.seed + min(draw.num_per_class, GRID_COLUMNS))
        rows = {
            f"class {c}": np.stack(
                [np.asarray(Image.open(folder / image_name(c, seed))) for seed in seeds]
            )
            for c in draw.class_list[:GRID_ROWS]
        }
        with replacing(folder / "grid.png") as temporary:
            labelled_grid(rows).save(temporary, "png")
        count = len(draw.class_list) * draw.num_per_class
        print(f"Wrote {count} images and grid.png to {folder}")


def image_name(condition: int, seed: int) -> str:
    """File name of an image."""
    return f"class{condition:04d}_seed{seed:06d}.png"
