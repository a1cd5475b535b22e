"""The same images drawn with several settings, to compare them."""

from typing import NamedTuple

from pixelhdm.data.draws import DrawList
from pixelhdm.data.prompt_fields import IMAGE_ENDING
from pixelhdm.errors import UserError


class Variant(NamedTuple):
    """Settings that an image is drawn with.

    Attributes:
        sampler: name of the solver.
        num_steps: its steps.
        scale: strength of the guidance; None takes the image's own.
    """

    sampler: str
    num_steps: int
    scale: float | None

    @property
    def file_name(self) -> str:
        """The settings, as the name of a file."""
        scale = "" if self.scale is None else f"_scale{self.scale:g}"
        return f"{self.sampler.replace(' ', '_')}_steps{self.num_steps:03d}{scale}{IMAGE_ENDING}"


def varied(drawn: DrawList, variants: list[Variant]) -> DrawList:
    """Each image with all variants, in a folder of its own.

    Raises:
        UserError: the images are a benchmark's, whose scorer would not find them.
    """
    if drawn.layout in ("geneval", "dpg"):
        raise UserError(
            "sweep must draw classes or prompts of one's own, got a benchmark's, whose folders "
            "have no place for it. Leave --sweep out, or give other data.prompts."
        )
    items = [
        item._replace(
            file=f"{sheet}/{variant.file_name}",
            scale=item.scale if variant.scale is None else variant.scale,
            sampler=variant.sampler,
            num_steps=variant.num_steps,
            sheet=sheet,
        )
        for item in drawn.items
        for sheet in [item.file.removesuffix(IMAGE_ENDING)]
        for variant in variants
    ]
    return drawn._replace(items=items, layout="sweep")
