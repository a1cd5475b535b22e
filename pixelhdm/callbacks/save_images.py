"""What predict draws, as files."""

from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pixelhdm.callbacks.contact_sheet import contact_sheet
from pixelhdm.callbacks.image_facts import has_facts, own_facts, shared_facts, write_png
from pixelhdm.callbacks.layouts import (
    DPG_FOLDER,
    check_folder,
    write_class_grid,
    write_dpg_grids,
    write_geneval_metadata,
)
from pixelhdm.data.draws import DrawItem
from pixelhdm.files import TEMPORARY, replacing
from pixelhdm.inference.drawable import check_drawable
from pixelhdm.module import PixelHDMModule
from pixelhdm.processes import gather_objects

PAGE = "index.html"
IN_NAME = ("checkpoint", "weights", "sampler", "steps")


class SaveImages(Callback):
    """Write one PNG for each image that predict draws, and index.html, which shows all of them.

    Each PNG carries prompt or class, seed, settings, checkpoint and config as text. Images that are
    already there with the same facts are not drawn again, so that an interrupted call goes on where
    it stopped. For classes there is a grid.png too, of the first 20 classes and 20 images of each;
    for GenEval and DPG the folders that their scorers read.

    Args:
        folder: where to write; empty makes <run folder>/predict/<settings>.

    Attributes:
        config: the resolved config as YAML; the command line sets it.
    """

    def __init__(self, folder: str | None = None):
        self.folder, self.config = folder, ""
        self.shared: dict[str, str] = {}
        self.target, self.scale = Path(), 1.0
        self.written: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if stage != "predict":
            return
        data = trainer.datamodule
        check_drawable(data.draw_list.items, pl_module.network, pl_module.conditioner)
        data.find_drawn = partial(self.find_drawn, trainer, pl_module)

    def find_drawn(self, trainer: Trainer, pl_module: PixelHDMModule) -> set[str]:
        """The files that are already there with the same facts, once the checkpoint is known; all
        processes look at a share of them.
        """
        items = trainer.datamodule.draw_list.items
        self.scale = pl_module.guidance.scale
        self.shared = shared_facts(trainer, pl_module, self.config)
        self.target = Path(self.folder) if self.folder else self.default_folder(trainer)
        check_folder(self.target, trainer.datamodule.draw_list)
        own = [
            item.file
            for item in items[trainer.global_rank :: trainer.world_size]
            if has_facts(self.target / item.file, self.facts(item))
        ]
        found = {file for part in gather_objects(own) for file in part}
        if found:
            rank_zero_info(
                f"{len(found)} of {len(items)} images are already in {self.target}, with the same "
                "settings and checkpoint; they are not drawn again."
            )
        return found

    def default_folder(self, trainer: Trainer) -> Path:
        """A folder named after the settings."""
        data = trainer.datamodule
        named = {name: self.shared[name] for name in IN_NAME}
        named["checkpoint"] = Path(self.shared["checkpoint"]).stem
        named |= {"scale": f"{self.scale:g}", "size": "{}x{}".format(*data.draw_size)}
        if data.draw_list.name:
            named = {"prompts": data.draw_list.name} | named
        name = "_".join(f"{name}={value}" for name, value in named.items())
        return Path(trainer.default_root_dir) / "predict" / name.replace(" ", "_").replace("/", "-")

    def facts(self, item: DrawItem) -> dict[str, str]:
        """What the file of an image tells."""
        return own_facts(item, self.scale) | self.shared

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: PixelHDMModule,
        outputs: UInt8[Tensor, "B H W 3"],
        batch: dict[str, Any],
        *_: Any,
    ) -> None:
        for image, item in zip(outputs.numpy(), batch["items"], strict=True):
            write_png(self.target / item.file, image, self.facts(item), self.config)
            self.written.add(item.file)

    def teardown(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        """Write what lies beside the images. on_predict_end would not run on a process without
        images, nor where none is left to draw.
        """
        if stage != "predict":
            return
        written = {file for part in gather_objects(self.written) for file in part}
        drawn, there = trainer.datamodule.draw_list, trainer.datamodule.drawn
        items = [item for item in drawn.items if item.file in there | written]
        if drawn.layout == "dpg":
            own = [item for item in items if item.group % trainer.world_size == trainer.global_rank]
            write_dpg_grids(self.target, own, drawn, {item.file: self.facts(item) for item in own})
            trainer.strategy.barrier()
        if not trainer.is_global_zero or not items:
            return
        self.remove_leftovers(items)
        if drawn.layout == "classes":
            write_class_grid(self.target, items)
        if drawn.layout == "geneval":
            write_geneval_metadata(self.target, drawn)
        with replacing(self.target / PAGE) as temporary:
            temporary.write_text(contact_sheet(items, self.shared, self.scale), encoding="utf-8")
        left = len(drawn.items) - len(items)
        print(
            f"Drew {len(written)} images, {len(there)} were there already"
            f"{f', {left} are left' if left else ''}. Look at them: {self.target / PAGE}"
        )

    def remove_leftovers(self, items: list[DrawItem]) -> None:
        """Delete the unfinished files that a killed call left behind."""
        folders = {self.target, self.target / DPG_FOLDER}
        for folder in folders | {(self.target / item.file).parent for item in items}:
            for file in folder.glob(f".*{TEMPORARY}"):
                file.unlink()
