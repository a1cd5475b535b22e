"""How the way from noise to image is stored."""

from dataclasses import dataclass
from typing import Literal

from pixelhdm.data.draws import DrawItem
from pixelhdm.data.prompt_fields import IMAGE_ENDING
from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.inference.showing.animation import DURATION, ENDINGS, Format
from pixelhdm.inference.showing.frames import NUM_FRAMES, Show

GRID, STRIP_FRAMES = "trajectory", 8
Layout = Literal["image", "grid", "both"]


@dataclass(frozen=True)
class Trajectory:
    """How predict stores the way from noise to image.

    Args:
        format: gif, webp, mp4 or strip, a PNG of a few moments side by side.
        layout: image: a file beside each picture. grid: one file trajectory… of the first 36
            pictures. both.
        show: noisy: the image on its way. clean: the clean image that the network sees in it.
        num_frames: the most moments that are stored, evenly chosen; empty takes 30, 8 for a strip.
        duration: seconds from the first moment to the last, 0.1 … 600.
    """

    format: Format = "gif"
    layout: Layout = "image"
    show: Show = "noisy"
    num_frames: int | None = None
    duration: float = DURATION

    def __post_init__(self) -> None:
        check_one_of(Format, format=self.format)
        check_one_of(Layout, layout=self.layout)
        check_one_of(Show, show=self.show)
        if self.num_frames is not None:
            check_at_least(2, num_frames=self.num_frames)
        if not 0.1 <= self.duration <= 600:
            raise UserError(f"duration must lie in 0.1 … 600 seconds, got {self.duration}.")

    @property
    def most_frames(self) -> int:
        """The most moments that are stored."""
        return self.num_frames or (STRIP_FRAMES if self.format == "strip" else NUM_FRAMES)

    def file_of(self, item: DrawItem) -> str:
        """Where the way of an image is saved."""
        return item.file.removesuffix(IMAGE_ENDING) + ENDINGS[self.format]

    @property
    def grid_file(self) -> str:
        """Where the grid is saved."""
        return GRID + ENDINGS[self.format]
