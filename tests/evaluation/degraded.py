"""Real images, and what is done to them to make them worse and worse."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

LABELS = load_digits().target


def digit_images() -> torch.Tensor:
    """scikit-learn's 1,797 handwritten digits in shuffled order, tinted by class: uint8 N 8 8 3."""
    digits = torch.from_numpy(load_digits().images / 16).float()
    angle = torch.from_numpy(LABELS) * 0.6
    tint = torch.stack([0.6 + 0.4 * torch.cos(angle + turn) for turn in (0, 2, 4)], dim=-1)
    images = (255 * digits[..., None] * tint[:, None, None]).round().to(torch.uint8)
    return images[torch.from_numpy(order())]


def order() -> np.ndarray:
    return np.random.default_rng(0).permutation(len(LABELS))


def by_pillow(change: Callable[[Image.Image], Image.Image]) -> Callable:
    def changed(images: torch.Tensor) -> torch.Tensor:
        each = [np.asarray(change(Image.fromarray(image))) for image in images.numpy()]
        return torch.from_numpy(np.stack(each))

    return changed


def jpeg(quality: int) -> Callable:
    def through(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return by_pillow(through)


def noise(std: float) -> Callable:
    def noisy(images: torch.Tensor) -> torch.Tensor:
        random = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return (images + std * random).round().clamp(0, 255).to(torch.uint8)

    return noisy


def blur(radius: float) -> Callable:
    return by_pillow(lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def redder(shift: int) -> Callable:
    return lambda images: (images.int() + torch.tensor([shift, 0, 0])).clamp(0, 255).byte()


DEGRADATIONS = {
    "noise": [noise(std) for std in (6, 12, 24, 48)],
    "blur": [blur(radius) for radius in (0.4, 0.7, 1.2, 2.0)],
    "jpeg": [jpeg(quality) for quality in (60, 25, 10, 3)],
    "colour": [redder(shift) for shift in (4, 8, 16, 32)],
}
