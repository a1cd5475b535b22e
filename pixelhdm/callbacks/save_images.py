"""What predict draws, as files."""

from collections.abc import Callable
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
    folder_name,
    write_class_grid,
    write_dpg_grids,
    write_geneval_metadata,
    write_npz,
    write_sheets,
)
from pixelhdm.data.draws import DrawItem
from pixelhdm.evaluation.draws import one_size
from pixelhdm.files import TEMPORARY, replacing
from pixelhdm.inference.drawable import check_drawable, check_solvers, check_weaker
from pixelhdm.inference.listed import num_calls
from pixelhdm.inference.sweep import MANY, described
from pixelhdm.module import PixelHDMModule
from pixelhdm.processes import gather_objects

PAGE = "index.html"


class SaveImages(Callback):
    """Write one PNG for each image that predict draws, and index.html, which shows all of them.

    Each PNG carries prompt or class, seed, settings, checkpoint and config as text; calls is how
    often the network was asked for it, with guidance for two predictions at once. Images that are
    already there with the same facts are not drawn again, so that an interrupted call goes on where
    it stopped. For classes there is a grid.png too, of the first 20 classes and 20 images of each;
    for GenEval and DPG the folders that their scorers read; for a sweep a labelled sheet of each
    image in sweep/.

    Args:
        folder: where to write; empty makes <run folder>/predict/<settings>.

    Attributes:
        config: the resolved config as YAML; the command line sets it.
        writes_npz: whether to write all images as one array too, for the evaluators of others; the
            command line sets it.
        is_whole: whether all is there that is to lie beside an image; SaveTrajectory sets it.
        way_of: the file that shows how an image came to be, if there is one; SaveTrajectory too.
    """

    def __init__(self, folder: str | None = None):
        self.folder, self.config, self.writes_npz = folder, "", False
        self.shared: dict[str, str] = {}
        self.target = Path()
        self.told: dict[DrawItem, dict[str, str]] = {}
        self.written: set[str] = set()
        self.is_whole: Callable[[DrawItem], bool] = lambda item: True
        self.way_of: Callable[[DrawItem], str | None] = lambda item: None

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        if stage != "predict":
            return
        data = trainer.datamodule
        items, guidance = data.draw_list.items, pl_module.guidance
        check_drawable(items, pl_module.network, pl_module.conditioner, guidance)
        check_solvers(items, pl_module.drawing, pl_module.samplers)
        check_weaker(items, pl_module.model(), guidance)
        if data.draw_list.layout == "sweep" and len(items) > MANY:
            rank_zero_info(f"The sweep has {len(items):,} pictures.")
        if self.writes_npz:
            one_size(items)
        data.find_drawn = partial(self.find_drawn, trainer, pl_module)

    def find_drawn(self, trainer: Trainer, pl_module: PixelHDMModule) -> set[str]:
        """The files that are already there with the same facts, once the checkpoint is known; all
        processes look at a share of them.
        """
        items = trainer.datamodule.draw_list.items
        self.shared = shared_facts(trainer, pl_module, self.config)
        self.told = {item: self.facts_of(item, pl_module) for item in items}
        self.target = Path(self.folder) if self.folder else self.default_folder(trainer, pl_module)
        check_folder(self.target, trainer.datamodule.draw_list)
        own = [
            item.file
            for item in items[trainer.global_rank :: trainer.world_size]
            if has_facts(self.target / item.file, self.facts(item)) and self.is_whole(item)
        ]
        found = {file for part in gather_objects(own) for file in part}
        if found:
            rank_zero_info(
                f"{len(found)} of {len(items)} images are already in {self.target}, with the same "
                "settings and checkpoint; they are not drawn again."
            )
        return found

    def default_folder(self, trainer: Trainer, pl_module: PixelHDMModule) -> Path:
        """A folder named after the settings."""
        data, own = trainer.datamodule, pl_module.drawing
        named = {"prompts": data.draw_list.name} if data.draw_list.name else {}
        named["checkpoint"] = Path(self.shared["checkpoint"]).stem
        named["weights"] = self.shared["weights"]
        is_sweep = data.draw_list.layout == "sweep"
        if not is_sweep:
            named["sampler"] = described(own.sampler)
            named |= {"steps": own.sampler.num_steps, "scale": f"{own.guidance.scale:g}"}
        named["size"] = "{}x{}".format(*data.draw_size)
        start = data.draw_list.items[0].start
        if data.draw.image and start is not None:
            named |= {"image": Path(start.image.name).stem, "strength": f"{start.strength:g}"}
            named |= {} if start.source is None else {"source": str(start.source)[:30]}
        words = ["sweep"] * is_sweep + [f"{name}={value}" for name, value in named.items()]
        return Path(trainer.default_root_dir) / "predict" / folder_name(words)

    def facts_of(self, item: DrawItem, pl_module: PixelHDMModule) -> dict[str, str]:
        """What the file of an image tells."""
        drawing = pl_module.drawing_of(item)
        calls = num_calls(item, drawing, pl_module.flow)
        return own_facts(item, drawing, calls) | self.shared

    def facts(self, item: DrawItem) -> dict[str, str]:
        """The same, once it is known."""
        return self.told[item]

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
        sheets = []
        if drawn.layout == "sweep":
            sheets = write_sheets(self.target, items, drawn, self.told)
        with replacing(self.target / PAGE) as temporary:
            temporary.write_text(
                contact_sheet(items, self.told, sheets, self.way_of), encoding="utf-8"
            )
        left = len(drawn.items) - len(items)
        if self.writes_npz and not left:
            print(f"All images as one array: {write_npz(self.target, items)}")
        elif self.writes_npz:
            print("The array of all images is written once none is left.")
        print(
            f"Drew {len(written)} images, {len(there)} were there already"
            f"{f', {left} are left' if left else ''}. Look at them: {self.target / PAGE}"
        )

    def on_exception(
        self, trainer: Trainer, pl_module: PixelHDMModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.predicting:
            rank_zero_info(
                f"Stopped after {len(self.written)} images: the same command draws those that are "
                "left."
            )

    def remove_leftovers(self, items: list[DrawItem]) -> None:
        """Delete the unfinished files that a killed call left behind."""
        folders = {self.target, self.target / DPG_FOLDER}
        for folder in folders | {(self.target / item.file).parent for item in items}:
            for file in folder.glob(f".*{TEMPORARY}"):
                file.unlink()
