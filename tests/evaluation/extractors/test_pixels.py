import numpy as np
import pytest
import torch
from PIL import Image

from pixelhdm.evaluation.extractors.pixels import centre_square, like_pil, normalised


def pictures(height: int, width: int) -> torch.Tensor:
    """Two images with hard edges and saturated areas, where resizing overshoots."""
    noise = torch.randint(-300, 556, (2, height, width, 3), generator=torch.manual_seed(0))
    noise[:, : height // 2, : width // 2] = 255
    return noise.clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (300, 500), (224, 100), (96, 96)])
@pytest.mark.parametrize("size", [96, 224])
def test_images_are_resized_as_pil_does(shape, size):
    images = pictures(*shape)
    small = like_pil(images, size)
    for image, own in zip(images, small, strict=True):
        theirs = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BICUBIC)
        error = np.abs(np.asarray(theirs).astype(int) - own.numpy())
        assert error.max() <= 1
        assert (error > 0).mean() < 0.002


def test_colours_are_normalised_channel_by_channel():
    pixels = torch.tensor([0.0, 51.0, 255.0]).expand(1, 2, 3, 3)
    planes = normalised(pixels, (0.5, 0.2, 0.0), (0.5, 0.1, 0.25))
    assert planes.shape == (1, 3, 2, 3)
    torch.testing.assert_close(planes[0, :, 1, 2], torch.tensor([-1.0, 0.0, 4.0]))


def test_the_square_is_taken_from_the_middle():
    pixels = torch.arange(7, dtype=torch.uint8).view(1, 1, 7, 1).expand(1, 3, 7, 3)
    assert centre_square(pixels)[0, 0, :, 0].tolist() == [2, 3, 4]
    assert centre_square(pixels.transpose(1, 2))[0, :, 0, 0].tolist() == [2, 3, 4]
