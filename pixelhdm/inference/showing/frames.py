"""What a solver passes on its way, kept as pixels."""

from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from pixelhdm.errors import check_at_least, check_one_of
from pixelhdm.inference.pixels import to_pixels
from pixelhdm.inference.samplers import Image, Step
from pixelhdm.inference.showing.grid import Pixels

NUM_FRAMES = 30
Show = Literal["noisy", "clean"]


class Frames:
    """Watches a solver, as draw_images' on_step, and keeps images of some of its steps on the CPU:
    the beginning, which is pure noise for images from noise, the end, which is the drawn image, and
    steps evenly chosen in between. A new drawing takes the place of the last one.

    Args:
        num_frames: how many at most; fewer where there are not as many steps.
        show: noisy: the image z_t on its way. clean: the clean image that the network sees in it.

    Attributes:
        times: the time of each image: for noisy that of z_t, for clean that of what the network
            saw.
    """

    def __init__(self, num_frames: int = NUM_FRAMES, show: Show = "noisy"):
        check_at_least(2, num_frames=num_frames)
        check_one_of(Show, show=show)
        self.num_frames, self.show = num_frames, show
        self.times: list[float] = []
        self.kept: list[UInt8[Tensor, "B H W 3"]] = []
        self.t = 0.0

    def __call__(self, step: Step) -> Image:
        """See a step and leave its image as it is."""
        if step.number == 0:
            self.times, self.kept = [], []
        if step.number in chosen(step.num_steps, self.num_frames):
            is_inside = 0 < step.number < step.num_steps
            shows_clean = self.show == "clean" and is_inside
            image = step.clean if shows_clean else step.z
            self.kept.append(to_pixels(image.clamp(-1, 1).float()).cpu())
            self.times.append(self.t if shows_clean else step.t)
        self.t = step.t
        return step.z

    def images(self, place: int) -> list[Pixels]:
        """The images of one of a batch, from the first to the last."""
        return [batch[place].numpy() for batch in self.kept]


def chosen(num_steps: int, num_frames: int) -> set[int]:
    """At most num_frames of the steps 0 … num_steps, both among them, evenly spread."""
    places = torch.linspace(0, num_steps, min(num_frames, num_steps + 1), dtype=torch.float64)
    return set(places.round().int().tolist())
