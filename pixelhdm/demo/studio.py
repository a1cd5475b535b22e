"""Draws what the page asks for, one drawing at a time, and tells how far it is."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread

import numpy as np
from PIL import Image

from pixelhdm.callbacks.image_facts import write_png
from pixelhdm.demo.picture import Picture, own_facts
from pixelhdm.demo.settings import Settings
from pixelhdm.demo.start import StartPicture
from pixelhdm.demo.watcher import Progress, Stopped, Watcher
from pixelhdm.errors import UserError
from pixelhdm.inference.showing.animation import write_animation
from pixelhdm.inference.showing.frames import Frames
from pixelhdm.inference.showing.grid import Pixels
from pixelhdm.models.network import Network
from pixelhdm.pipeline import PixelHDMPipeline

TOLD = ("optimizer steps", "weights")  # of the facts of the training
MOST_TIMES, USUAL_SIDE = 64, 256
MOST_FRAMES, TURN_SECONDS = 40, 0.1


class Studio:
    """Draws for all who have the page open, one after another.

    Args:
        pipe: what draws.
        folder: where the pictures are written.
        model: what the pictures say that they are drawn with.
    """

    def __init__(self, pipe: PixelHDMPipeline, folder: Path, model: str):
        self.pipe, self.folder, self.model = pipe, folder, model
        self.lock, self.num_files = Lock(), 0
        self.stops: dict[str, Event] = {}

    @property
    def network(self) -> Network:
        """The network that draws."""
        return self.pipe.model.network

    def stop(self, session: str) -> None:
        """End a session's drawing after its next step."""
        if session in self.stops:
            self.stops[session].set()

    def draw(
        self, settings: Settings, start: StartPicture | None, session: str
    ) -> Iterator[Progress | list[Picture]]:
        """Draw; give its progress now and then, and the pictures in the end.

        Raises:
            UserError: something cannot be drawn as it was asked for.
            Stopped: `stop` was called.
        """
        stop = self.stops[session] = Event()
        news: Queue[Progress | list[Picture] | Exception] = Queue()

        def work() -> None:
            try:
                with self.turn(news, stop):
                    news.put(self.pictures(settings, start, news, stop))
            except Exception as error:  # it is raised where somebody waits for it
                news.put(error)

        Thread(target=work, daemon=True).start()
        try:
            while isinstance(item := news.get(), Progress):
                yield item
        finally:  # nobody may wait any longer
            stop.set()
            if self.stops.get(session) is stop:
                del self.stops[session]
        if isinstance(item, Exception):
            raise item
        yield item

    @contextmanager
    def turn(self, news: Queue, stop: Event) -> Iterator[None]:
        """Wait until nobody else draws; `news` hears of it.

        Raises:
            Stopped: `stop` was set while it waited.
        """
        if self.lock.locked():
            news.put(Progress(0, "Waiting for somebody else's drawing", []))
        while not self.lock.acquire(timeout=TURN_SECONDS):
            if stop.is_set():
                raise Stopped
        try:
            yield
        finally:
            self.lock.release()

    def pictures(
        self, settings: Settings, start: StartPicture | None, news: Queue, stop: Event
    ) -> list[Picture]:
        """Draw and write the pictures; `news` gets the progress."""
        settings = settings.checked(self.pipe.is_text)
        self.network.check_size(settings.height, settings.width)
        self.check_room(settings)
        drawing = settings.drawing(self.pipe.drawing)
        frames = Frames(MOST_FRAMES) if settings.is_animated else None
        began = copy.copy(self.pipe)
        began.sampler, began.guidance, began.time_grid = drawing
        asked = {"prompt" if self.pipe.is_text else "class_labels": settings.condition}
        if self.pipe.is_text:
            asked["negative_prompt"] = settings.negative
        if start is not None:
            asked |= start.asked(settings)
        output = began(
            **asked,
            height=settings.height,
            width=settings.width,
            num_images_per_prompt=settings.num_images,
            seed=settings.seed,
            callback_on_step_end=Watcher(news, stop, frames),
        )
        facts = own_facts(settings, drawing)
        if start is not None:
            facts |= start.facts(settings)
        facts["model"] = self.model
        known = {name: self.pipe.facts[name] for name in TOLD if name in self.pipe.facts}
        facts["training"] = ", ".join(f"{name} {value}" for name, value in known.items())
        return [
            self.written(
                image,
                settings._replace(seed=seed),
                facts | {"seed": str(seed)},
                [] if frames is None else frames.images(place),
            )
            for place, (image, seed) in enumerate(zip(output.images, output.seeds, strict=True))
        ]

    def check_room(self, settings: Settings) -> None:
        """Raise a UserError for more pixels at once than a page should ask a machine for."""
        most = MOST_TIMES * max(self.pipe.height * self.pipe.width, USUAL_SIDE**2)
        asked = settings.num_images * settings.height * settings.width
        if asked > most:
            raise UserError(
                f"the images must have at most {most:,} pixels together, got {asked:,}. Draw fewer "
                "or smaller ones."
            )

    def written(
        self, image: Image.Image, settings: Settings, facts: dict[str, str], frames: list[Pixels]
    ) -> Picture:
        """Write a picture with its facts, and its way where there are frames."""
        self.num_files += 1
        file = self.folder / f"{self.num_files:05d}_seed{settings.seed:06d}.png"
        write_png(file, np.asarray(image), facts)
        animation = None
        if frames:
            animation = file.with_suffix(".webp")
            write_animation(animation, frames, "webp")
        return Picture(file, animation, settings, facts)
