"""LPIPS: how different two images look."""

from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError, reason_of
from pixelhdm.models.encoders.frozen import Frozen, expanded

# Both of colours in [-1, 1].
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# A stage ends behind relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.
STAGES = ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))
LEAST_SIDE = 16  # pixels, which four poolings halve to one
EPS = 1e-8  # under the root, whose slope at 0 is infinite


class Lpips(Frozen):
    """LPIPS, the distance of two images in the features of a VGG16 (arXiv:1801.03924, eq. 1).

    d(x, y) = sum over five layers l of the mean over positions of w_l · (f_l(x) - f_l(y))², with
    every feature vector f scaled to length 1 and the weights w_l of version 0.1, which
    torchmetrics brings.

    Args:
        source: file with torchvision's weights of VGG16, .pth or .safetensors (features.* is
            enough; timm's vgg16.tv_in1k has the same); empty downloads torchvision's, 528 MB.
    """

    def __init__(self, source: str | None = None):
        super().__init__()
        self.source = None if source is None else expanded(source)

    def read(self) -> nn.Module:
        if self.source is not None and not Path(self.source).is_file():
            raise UserError(
                "source of LPIPS must be a file with torchvision's weights of VGG16, .pth or "
                f".safetensors, got {self.source}, which does not exist."
            )
        try:
            return VggDistance(read_backbone(self.source), read_heads())
        except Exception as error:  # no network or a damaged file can fail in any way
            raise UserError(
                "weights of LPIPS must be readable, torchvision's of VGG16 from "
                f"{self.source or 'the internet'}, got {reason_of(error)}. Fetch "
                "https://download.pytorch.org/models/vgg16-397923af.pth and set source to the file."
            ) from error

    def __call__(
        self, image: Float[Tensor, "B H W 3"], target: Float[Tensor, "B H W 3"]
    ) -> Float[Tensor, "B"]:
        """The distance of each image from its target, in float32; gradients flow to both.

        Raises:
            UserError: the images are too small, or the weights cannot be read.
        """
        if min(image.shape[1:3]) < LEAST_SIDE:
            raise UserError(
                f"images for LPIPS must have sides of at least {LEAST_SIDE} pixels, got "
                f"{image.shape[1]}x{image.shape[2]}."
            )
        network = self.load(image.device)
        with torch.autocast(image.device.type, enabled=False):
            return network(image.float(), target.float())


class VggDistance(nn.Module):
    """What Lpips computes.

    Args:
        backbone: weights of VGG16's convolutions.
        heads: w_l, one weight per channel. They are buffers, which keep float32.
    """

    def __init__(self, backbone: dict[str, Tensor], heads: list[Float[Tensor, "_"]]):
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        with torch.device("meta"):
            layers = make_layers(cfgs["D"])
        layers.load_state_dict(backbone, assign=True)
        self.stages = nn.ModuleList(layers[first:last] for first, last in STAGES).float()
        self.register_buffer("mean", rearrange(torch.tensor(MEAN), "c -> c 1 1"))
        self.register_buffer("std", rearrange(torch.tensor(STD), "c -> c 1 1"))
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head.float())

    def forward(
        self, image: Float[Tensor, "B H W 3"], target: Float[Tensor, "B H W 3"]
    ) -> Float[Tensor, "B"]:
        pairs = zip(self.features(image), self.features(target), strict=True)
        distances = [
            einsum(self.get_buffer(f"head{i}"), (a - b).square(), "d, b d h w -> b h w")
            for i, (a, b) in enumerate(pairs)
        ]
        return sum(reduce(distance, "b h w -> b", "mean") for distance in distances)

    def features(self, image: Float[Tensor, "B H W 3"]) -> Iterator[Float[Tensor, "B d h w"]]:
        """Each stage's features in float32, scaled to length 1."""
        planes = (rearrange(image, "b h w c -> b c h w") - self.mean) / self.std
        planes = planes.to(next(self.stages.parameters()).dtype)
        for stage in self.stages:
            planes = stage(planes)
            features = planes.float()
            length = (reduce(features.square(), "b d h w -> b 1 h w", "sum") + EPS).sqrt()
            yield features / length


def read_backbone(source: str | None) -> dict[str, Tensor]:
    """The weights of VGG16's convolutions, named as in torchvision without `features.`."""
    if source is None:
        from torchvision.models import VGG16_Weights

        state = VGG16_Weights.IMAGENET1K_V1.get_state_dict(
            check_hash=True, map_location="cpu", weights_only=True
        )
    elif source.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(source)
    else:
        state = torch.load(source, map_location="cpu", weights_only=True)
    part = "features."
    return {key.removeprefix(part): x for key, x in state.items() if key.startswith(part)}


def read_heads() -> list[Float[Tensor, "_"]]:
    """LPIPS's weights w_l of version 0.1, from torchmetrics."""
    with as_file(files("torchmetrics") / "functional/image/lpips_models/vgg.pth") as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(STAGES))]
