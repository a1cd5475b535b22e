"""What a teacher of a representation loss is."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.models.encoders.frozen import Frozen
from pixelhdm.models.encoders.resized import resized

# ImageNet's channel means and standard deviations, of colours in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Teacher(Frozen):
    """Base of frozen networks that turn an image into one feature vector per patch.

    `read` gives a network from pixels (B 3 H W, normalised with ImageNet's mean and standard
    deviation) to patch tokens (B L D, row by row).

    Args:
        dim: width of the features; known without the files, so that what is trained on them can
            be built, saved and resumed alone.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, dim: int, patch_size: int):
        super().__init__()
        check_at_least(1, dim=dim, patch_size=patch_size)
        self.dim, self.patch_size = dim, patch_size

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B h w D"]:
        """Features of the patches, in float32; no gradient flows back to the image.

        Raises:
            UserError: the image cannot be cut into whole patches.
        """
        return self.features(image)

    def features(self, image: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B h w D"]:
        """The same features; gradients flow back to the image."""
        h, w = (side // self.patch_size for side in image.shape[1:3])
        if min(h, w) < 1 or (h * self.patch_size, w * self.patch_size) != image.shape[1:3]:
            raise UserError(
                f"a teacher's image must have sides that are multiples of {self.patch_size}, "
                f"got {image.shape[1]}x{image.shape[2]}."
            )
        colours = zip(image.unbind(-1), MEAN, STD, strict=True)
        pixels = torch.stack([(x / 2 + 0.5 - mean) / std for x, mean, std in colours], dim=1)
        network = self.load(image.device)
        with torch.autocast(image.device.type, enabled=False):
            tokens = network(pixels)
        return rearrange(tokens.float(), "b (h w) d -> b h w d", h=h, w=w)

    def check_teacher_size(self, teacher_size: int | None) -> None:
        """Raise a UserError unless a square of this side holds a patch."""
        if teacher_size is not None and teacher_size < self.patch_size:
            raise UserError(
                f"teacher_size must be at least the teacher's patch_size={self.patch_size}, "
                f"got {teacher_size}."
            )

    def grid(
        self, height: int, width: int, patch_size: int, teacher_size: int | None
    ) -> tuple[int, int]:
        """Rows and columns of its patches on an image of this size.

        They are those of a network with patches of `patch_size`, or fill the area of a square of
        side `teacher_size`.
        """
        if teacher_size is None:
            return height // patch_size, width // patch_size
        scale = teacher_size / math.sqrt(height * width) / self.patch_size
        return max(1, round(height * scale)), max(1, round(width * scale))

    def fitted(
        self, image: Float[Tensor, "B H W 3"], patch_size: int, teacher_size: int | None
    ) -> Float[Tensor, "B h w 3"]:
        """The image resized so that it has the patches of `grid`."""
        h, w = self.grid(*image.shape[1:3], patch_size, teacher_size)
        return resized(image, h * self.patch_size, w * self.patch_size, "bicubic")
