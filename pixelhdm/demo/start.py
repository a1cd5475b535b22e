"""A picture to begin with, as the page's editor gives it."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pixelhdm.demo.settings import Settings

EDITED = 384  # pixels: a small picture is enlarged towards it, so that a brush can meet its pixels


class StartPicture(NamedTuple):
    """A picture to begin with.

    Attributes:
        image: the picture, of any size.
        mask: white where it is drawn anew; None draws anew everywhere.
    """

    image: Image.Image
    mask: Image.Image | None

    def asked(self, settings: Settings) -> dict[str, Any]:
        """What the pipeline is asked for because of it."""
        size = settings.width, settings.height
        asked: dict[str, Any] = {"image": unzoomed(self.image, size), "strength": settings.strength}
        if self.mask is not None:
            mask = ImageOps.fit(self.mask, size, Image.Resampling.BOX)
            asked["mask_image"] = mask.point(lambda value: 255 * (value > 127))
        if settings.source:
            asked["source_prompt"] = settings.source
        return asked

    def facts(self, settings: Settings) -> dict[str, str]:
        """What a picture that began with it tells of it."""
        return {
            "strength": f"{settings.strength:g}",
            "source_prompt": settings.source or "",
            "mask": "" if self.mask is None else "painted",
        }


def from_editor(value: dict[str, Any] | None) -> StartPicture | None:
    """What the editor holds: the picture, and a mask where somebody has painted on it."""
    if value is None or value["background"] is None:
        return None
    image = value["background"].convert("RGBA")
    painted = np.zeros((image.height, image.width), dtype=bool)
    for layer in value["layers"]:
        painted |= np.asarray(layer.convert("RGBA").resize(image.size))[..., 3] > 0
    white = Image.new("RGBA", image.size, "white")
    mask = Image.fromarray(255 * painted.astype(np.uint8)) if painted.any() else None
    return StartPicture(Image.alpha_composite(white, image).convert("RGB"), mask)


def unzoomed(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image of a size (width, height) that this one enlarges, as `for_editor` does; any other
    one as it is.
    """
    small = image.resize(size, Image.Resampling.NEAREST)
    large = small.resize(image.size, Image.Resampling.NEAREST)
    return small if np.array_equal(large, image) else image


def for_editor(image: Image.Image) -> Image.Image:
    """An image large enough to paint on."""
    zoom = max(1, EDITED // max(image.size))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
