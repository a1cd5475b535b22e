"""The way from noise to image, beside what predict draws."""

from dataclasses import asdict
from hashlib import sha256
from typing import Any, NamedTuple

from jaxtyping import UInt8
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from pixelhdm.callbacks.save_images import SaveImages
from pixelhdm.data.draws import DrawItem, DrawList
from pixelhdm.errors import UserError
from pixelhdm.inference.showing.animation import has_note, mp4_package, write_animation, write_strip
from pixelhdm.inference.showing.frames import Frames
from pixelhdm.inference.showing.grid import Pixels
from pixelhdm.inference.showing.side_by_side import fitted, side_by_side
from pixelhdm.inference.showing.trajectory import Trajectory
from pixelhdm.module import PixelHDMModule
from pixelhdm.processes import gather_objects

GRID_IMAGES = 36


class Way(NamedTuple):
    """The way of one image.

    Attributes:
        frames: images from the first to the last.
        times: their times.
    """

    frames: list[Pixels]
    times: list[float]


class SaveTrajectory(Callback):
    """Write how each image came to be, as a file beside it, a grid of many, or both.

    A file carries a text that differs when a setting, the checkpoint or its picture does; pictures
    whose file is missing or another one are drawn again.

    Args:
        settings: what is written.

    Attributes:
        images: the callback that writes the images.
    """

    def __init__(self, settings: Trajectory):
        self.settings, self.images = settings, SaveImages()
        self.frames = Frames(settings.most_frames, settings.show)
        self.shown: list[DrawItem] = []
        self.ways: dict[str, Way] = {}

    def setup(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        drawn = trainer.datamodule.draw_list
        self.check_files(drawn)
        if self.settings.format == "mp4":
            mp4_package()
        if self.settings.layout != "image":
            self.shown = drawn.items[:GRID_IMAGES]
        pl_module.on_step = self.frames
        self.images = next(c for c in trainer.callbacks if isinstance(c, SaveImages))
        self.images.is_whole = self.is_there
        if self.settings.layout != "grid":
            self.images.way_of = self.settings.file_of

    def check_files(self, drawn: DrawList) -> None:
        """Raise a UserError where a file would stand in the way of a picture or of a benchmark."""
        layout = self.settings.layout
        if layout != "grid" and drawn.layout in ("geneval", "dpg"):
            raise UserError(
                f"trajectory.layout must be grid for a benchmark, got {layout}. Its scorer reads "
                "the folders of the images."
            )
        own = {self.settings.file_of(item) for item in drawn.items} | {self.settings.grid_file}
        for item in drawn.items:
            if item.file in own:
                raise UserError(
                    f"{item.place}: file_name must be another one than a trajectory's, got "
                    f"{item.file}. Choose another file_name or trajectory.format."
                )

    def is_there(self, item: DrawItem) -> bool:
        """Whether all of an image is there that lies beside it."""
        target = self.images.target
        if item in self.shown and not has_note(
            target / self.settings.grid_file, self.note(self.shown)
        ):
            return False
        if self.settings.layout == "grid":
            return True
        return has_note(target / self.settings.file_of(item), self.note([item]))

    def note(self, items: list[DrawItem]) -> str:
        """The text that a file of these images carries."""
        told = [asdict(self.settings), *(self.images.facts(item) for item in items)]
        return f"pixelhdm.trajectory={sha256(repr(told).encode()).hexdigest()[:16]}"

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: PixelHDMModule,
        outputs: UInt8[Tensor, "B H W 3"],
        batch: dict[str, Any],
        *_: Any,
    ) -> None:
        for place, item in enumerate(batch["items"]):
            way = Way(self.frames.images(place), self.frames.times)
            if item in self.shown:
                self.ways[item.file] = way._replace(frames=[fitted(f) for f in way.frames])
            if self.settings.layout != "grid":
                self.write(self.settings.file_of(item), [item], [way])

    def write(self, name: str, items: list[DrawItem], ways: list[Way]) -> None:
        """Write the ways of images as one file."""
        file, note, form = self.images.target / name, self.note(items), self.settings.format
        file.parent.mkdir(parents=True, exist_ok=True)
        if form == "strip":
            rows = [(i.label, way.frames) for i, way in zip(items, ways, strict=True)]
            are_alike = all(way.times == ways[0].times for way in ways)
            write_strip(file, rows, ways[0].times if are_alike else [], note)
            return
        frames, zoom = ways[0].frames, None
        if len(ways) > 1:
            frames, zoom = side_by_side([way.frames for way in ways])
        write_animation(file, frames, form, self.settings.duration, zoom, note)

    def teardown(self, trainer: Trainer, pl_module: PixelHDMModule, stage: str) -> None:
        """Write the grid of what was drawn by all processes."""
        parts = gather_objects(self.ways)
        ways = {file: way for part in parts for file, way in part.items()}
        items = [item for item in self.shown if item.file in ways]
        file = self.images.target / self.settings.grid_file
        if trainer.is_global_zero and items and not has_note(file, self.note(self.shown)):
            self.write(self.settings.grid_file, items, [ways[item.file] for item in items])
