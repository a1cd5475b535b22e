"""Which images to draw."""

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from pixelhdm.data.prompt_fields import IMAGE_ENDING, Prompt
from pixelhdm.data.prompts import Layout, PromptList
from pixelhdm.errors import UserError, check_at_least

NUM_OF_CLASS, NUM_OF_PROMPT, NUM_OF_BENCHMARK = 10, 1, 4


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
    """

    classes: int | list[int] | None = None
    num_images: int | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        check_at_least(0, seed=self.seed)
        for name in ("num_images", "height", "width"):
            given = getattr(self, name)
            check_at_least(1, **{name: 1 if given is None else given})
        is_empty = self.classes is not None and not self.class_list
        if is_empty or len(set(self.class_list)) < len(self.class_list):
            raise UserError(f"classes must be different class numbers, got {self.classes}.")

    @property
    def class_list(self) -> list[int]:
        """The classes, always as a list."""
        if self.classes is None:
            return []
        return [self.classes] if isinstance(self.classes, int) else list(self.classes)


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

    @property
    def label(self) -> str:
        """What it shows, in words."""
        return self.condition if isinstance(self.condition, str) else f"class {self.condition}"

    @property
    def kind(self) -> tuple[int, int, float | None]:
        """What all images of a batch share."""
        return self.height, self.width, self.scale

    def strength(self, default: float) -> float:
        """The strength of its guidance, where the run's is `default`."""
        return default if self.scale is None else self.scale


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


def class_draws(draws: Draws, size: tuple[int, int]) -> DrawList:
    """The images of draws.classes, of `size` (height, width) where draws has none."""
    num = draws.num_images or NUM_OF_CLASS
    height, width = draws.height or size[0], draws.width or size[1]
    items = [
        DrawItem(
            number,
            seed,
            height,
            width,
            f"class{number:04d}_seed{seed:06d}{IMAGE_ENDING}",
            group,
            "data.draw",
        )
        for group, number in enumerate(draws.class_list)
        for seed in range(draws.seed, draws.seed + num)
    ]
    return DrawList(checked(items), "classes", "", [])


def prompt_draws(listed: PromptList, draws: Draws, size: tuple[int, int]) -> DrawList:
    """The images of prompts; `draws`, then `size`, stand in for what they do not ask for."""
    is_benchmark = listed.layout != "plain"
    num = draws.num_images or (NUM_OF_BENCHMARK if is_benchmark else NUM_OF_PROMPT)
    items = []
    for group, prompt in enumerate(listed.prompts):
        start = draws.seed + num * group * is_benchmark if prompt.seed is None else prompt.seed
        items += [
            DrawItem(
                prompt.text,
                start + number,
                prompt.height or draws.height or size[0],
                prompt.width or draws.width or size[1],
                file_of(listed.layout, prompt, group, number, start + number, num > 1),
                group,
                prompt.place,
                prompt.negative,
                prompt.scale,
            )
            for number in range(num)
        ]
    return DrawList(checked(items), listed.layout, listed.name, listed.prompts)


def file_of(
    layout: Layout, prompt: Prompt, group: int, number: int, seed: int, are_several: bool
) -> str:
    """Where an image of a prompt is saved."""
    if layout == "geneval":
        return f"{group:05d}/samples/{number:05d}{IMAGE_ENDING}"
    if layout == "dpg":
        return f"samples/{prompt.file_name}_seed{seed:06d}{IMAGE_ENDING}"
    if prompt.file_name is None:
        return f"{group:05d}_seed{seed:06d}{IMAGE_ENDING}"
    return prompt.file_name + (f"_seed{seed:06d}" if are_several else "") + IMAGE_ENDING


def checked(items: list[DrawItem]) -> list[DrawItem]:
    """The same images, if each can have its seed and its own file."""
    places: dict[str, str] = {}
    for item in items:
        if item.seed >= 2**63:
            raise UserError(
                f"{item.place}: seed must be below 2^63 for every image, got {item.seed}."
            )
        if item.file in places:
            raise UserError(
                f"{item.place}: every image must have its own file, got {item.file} again, as in "
                f"{places[item.file]}. Choose another file_name."
            )
        places[item.file] = item.place
    return items
