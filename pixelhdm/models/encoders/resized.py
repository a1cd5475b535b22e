"""Images in the sizes that pretrained networks want."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def resized(
    image: Float[Tensor, "B H W d"], height: int, width: int, mode: str
) -> Float[Tensor, "B h w d"]:
    """The image or map in another size, without aliasing."""
    if image.shape[1:3] == (height, width):
        return image
    planes = rearrange(image, "b h w d -> b d h w")
    planes = F.interpolate(planes, (height, width), mode=mode, antialias=True)
    return rearrange(planes, "b d h w -> b h w d")
