"""Which images to draw."""

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from pixelhdm.data.prompt_fields import Prompt
from pixelhdm.data.prompts import Layout
from pixelhdm.data.start_files import Asked, StartFiles
from pixelhdm.errors import UserError, check_at_least


@dataclass(frozen=True)
class Draws:
    """The images that `predict` and the sample grids draw, each from its own seed.

    Args:
        classes: class numbers, one or a list; empty where data.prompts says what to draw.
        num_images: images of each class or prompt; empty takes 10 for a class, 1 for a prompt, 4
            for a benchmark's.
        seed: seed of the first image of each class or prompt; the next ones count up. Seeds belong
            to images: the same seed and class or prompt give the same picture in any batch. A
            benchmark's images have a seed each, which count up through all prompts.
        height: height in pixels, where a prompt has none of its own; the image_size of the data
            when empty.
        width: width in pixels, where a prompt has none of its own; the image_size of the data when
            empty.
        image: file of an image to begin from in the place of noise, where a prompt has none of its
            own; it is resized and cut from its centre to the drawn size.
        mask: file as large as image: white is drawn anew, black stays.
        strength: 0 gives the image back, 1 ignores it; empty takes 0.66 with a source, 1 with a
            mask, else 0.7.
        source: prompt or class number of what the image shows, to edit it by FlowEdit
            (arXiv:2412.08629), which keeps more of it; empty draws over its noise (SDEdit,
            arXiv:2108.01073).
        source_scale: strength of the guidance towards the source.
    """

    classes: int | list[int] | None = None
    num_images: int | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    source: int | str | None = None
    source_scale: float | None = None

    def __post_init__(self) -> None:
        check_at_least(0, seed=self.seed)
        for name in ("num_images", "height", "width"):
            given = getattr(self, name)
            check_at_least(1, **{name: 1 if given is None else given})
        self.start.check("data.draw")
        is_empty = self.classes is not None and not self.class_list
        if is_empty or len(set(self.class_list)) < len(self.class_list):
            raise UserError(f"classes must be different class numbers, got {self.classes}.")

    @property
    def class_list(self) -> list[int]:
        """The classes, always as a list."""
        if self.classes is None:
            return []
        return [self.classes] if isinstance(self.classes, int) else list(self.classes)

    @property
    def start(self) -> Asked:
        """What images begin from."""
        return Asked(self.image, self.mask, self.strength, self.source, self.source_scale)


class Kind(NamedTuple):
    """What all images of a batch share: size, guidance, solver, steps and kind of start."""

    height: int
    width: int
    scale: float | None
    sampler: str
    num_steps: int | None
    start: tuple[float, bool, bool, float] | None


class DrawItem(NamedTuple):
    """One image to draw, and nothing that depends on the others.

    Attributes:
        condition: class number or prompt.
        seed: seed of its noise.
        height: height in pixels.
        width: width in pixels.
        file: where it is saved, relative to the folder.
        group: place of its class or prompt among all.
        place: where its class or prompt is written, for errors.
        negative: what is not to be seen; empty for nothing.
        scale: strength of its guidance; None takes the run's.
        start: what it begins from; None for noise.
        sampler: name of its solver; empty takes the run's.
        num_steps: steps of its solver; None takes the run's.
        sheet: name of the comparison that it belongs to; empty for none.
    """

    condition: int | str
    seed: int
    height: int
    width: int
    file: str
    group: int
    place: str
    negative: str = ""
    scale: float | None = None
    start: StartFiles | None = None
    sampler: str = ""
    num_steps: int | None = None
    sheet: str = ""

    @property
    def label(self) -> str:
        """What it shows, in words."""
        return self.condition if isinstance(self.condition, str) else f"class {self.condition}"

    @property
    def texts(self) -> list[str]:
        """All that a text encoder reads for it."""
        source = None if self.start is None else self.start.source
        return [text for text in (self.condition, self.negative, source) if isinstance(text, str)]

    @property
    def kind(self) -> Kind:
        """What all images of a batch share."""
        start = None if self.start is None else self.start.kind
        return Kind(self.height, self.width, self.scale, self.sampler, self.num_steps, start)


class DrawList(NamedTuple):
    """All images to draw.

    Attributes:
        items: the images.
        layout: how their files lie in folders.
        name: name of the prompts' file; empty where there is none.
        prompts: the prompts, by group; none for classes.
    """

    items: list[DrawItem]
    layout: Layout
    name: str
    prompts: list[Prompt]


def by_group(items: list[DrawItem]) -> list[list[DrawItem]]:
    """The images of each class or prompt."""
    return [list(group) for _, group in groupby(items, key=lambda item: item.group)]
