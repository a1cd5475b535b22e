"""What the page sees of a drawing under way."""

import time
from queue import Queue
from threading import Event
from typing import Any, NamedTuple

from PIL import Image

from pixelhdm.inference.pixels import to_pixels
from pixelhdm.inference.samplers import Step
from pixelhdm.inference.showing.frames import Frames

PREVIEW_SECONDS = 0.3


class Progress(NamedTuple):
    """How far a drawing is.

    Attributes:
        part: of the steps that are done, 0 … 1.
        text: the same in words.
        images: the clean images that the network sees now.
    """

    part: float
    text: str
    images: list[Image.Image]


class Stopped(Exception):
    """Somebody has stopped the drawing."""


class Watcher:
    """Called after each step: tells the page of it now and then, and ends the drawing if it shall.

    Args:
        news: gets the progress.
        stop: set by whoever wants the drawing to end.
        frames: keeps images of some steps; None keeps none.
    """

    def __init__(self, news: Queue, stop: Event, frames: Frames | None):
        self.news, self.stop, self.frames = news, stop, frames
        self.shown = time.monotonic()

    def __call__(self, _: Any, index: int, t: float, state: dict[str, Any]) -> None:
        """See a step, as a pipeline's callback does.

        Raises:
            Stopped: the drawing is to end.
        """
        if self.stop.is_set():
            raise Stopped
        step = Step(index + 1, state["num_steps"], t, state["latents"], state["clean"])
        if self.frames is not None:
            self.frames(step)
        if time.monotonic() - self.shown >= PREVIEW_SECONDS and self.news.empty():
            pixels = to_pixels(step.clean.clamp(-1, 1)).cpu().numpy()
            images = [Image.fromarray(image) for image in pixels]
            text = f"Step {step.number} of {step.num_steps}"
            self.news.put(Progress(step.number / step.num_steps, text, images))
            self.shown = time.monotonic()
