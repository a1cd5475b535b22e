"""What a pipeline's caller sees of a drawing under way, and how it is stopped."""

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from pixelhdm.inference.samplers import Image, Step

Callback = Callable[[int, float, dict[str, Any]], dict[str, Any] | None]


class Stopped(Exception):
    """A drawing was stopped."""


class Watch:
    """Counts the steps of a call, shows them to a callback, and stops it.

    Args:
        bar: progress bar.
        num_batches: batches of the call.
        callback: called with the step's number from 0, the time reached and the state: latents,
            clean, num_steps and first. Latents that it returns take the place of the image.

    Attributes:
        first: place of the batch's first image among all.
        is_stopping: set from anywhere to stop after the step under way.
        latest: the clean image that the network has last seen.
    """

    def __init__(self, bar: tqdm, num_batches: int, callback: Callback | None):
        self.bar, self.num_batches, self.callback = bar, num_batches, callback
        self.first, self.is_stopping = 0, False
        self.latest: Image | None = None

    def on_step(self, step: Step) -> Image:
        """See a step; step 0, the beginning, is no step of the caller's.

        Raises:
            Stopped: somebody asks for it.
        """
        self.latest = step.clean
        if step.number == 0:
            return step.z
        self.bar.total = self.num_batches * step.num_steps
        self.bar.update()
        changed = None
        if self.callback is not None:
            state = {
                "latents": step.z,
                "clean": step.clean,
                "num_steps": step.num_steps,
                "first": self.first,
            }
            changed = self.callback(step.number - 1, step.t, state)
        if self.is_stopping:
            raise Stopped
        return (changed or {}).get("latents", step.z)
