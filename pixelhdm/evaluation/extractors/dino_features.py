"""DINO's image features."""

from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.errors import UserError, reason_of
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.extractors.pixels import like_pil, normalised
from pixelhdm.models.encoders.frozen import expanded, is_missing_folder
from pixelhdm.models.encoders.teacher import MEAN, STD
from pixelhdm.models.encoders.vit import TransformersViT

SIZE = 224  # pixels, 16x16 patches of DINOv2 and 14x14 of DINOv3
FAMILIES = {"dinov2": "DINOv2", "dinov2_with_registers": "DINOv2-reg", "dinov3_vit": "DINOv3"}
SIZES = {384: "S", 768: "B", 1024: "L", 1280: "H+", 1536: "g", 4096: "7B"}


class DinoFeatures(Extractor):
    """The CLS token of a DINO behind its final norm, as in dgm-eval's FD-DINOv2 (arXiv:2306.04675).

    Its label and key say which DINO it is. A loss with a DINO teacher makes these distances too
    good: look at another extractor as well.

    Args:
        source: Hub name or a folder with config.json and weights of a DINOv2 or DINOv3 vision
            transformer, as transformers reads them. dgm-eval takes facebook/dinov2-large; the
            default costs a quarter.
    """

    resize = f"PIL bicubic to {SIZE}"

    def __init__(self, source: str = "facebook/dinov2-base"):
        super().__init__()
        self.source = expanded(source)

    @property
    def label(self) -> str:
        return f"{self.family} ViT-{self.size}/{self.patch_size}"

    @property
    def key(self) -> str:
        size = self.size.lower().replace("+", "plus")
        return f"{self.family.lower()}-vit{size}{self.patch_size}"

    @property
    def dim(self) -> int:
        return self.config.hidden_size

    @property
    def family(self) -> str:
        """Which kind of DINO it is."""
        return FAMILIES[self.config.model_type]

    @property
    def size(self) -> str:
        """The letter of its width, or the width where it has none."""
        return SIZES.get(self.dim, str(self.dim))

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    @cached_property
    def config(self) -> Any:
        """The configuration of transformers, alone.

        Raises:
            UserError: it is not there or of no DINO.
        """
        from transformers import AutoConfig

        if is_missing_folder(self.source):
            raise UserError(
                "source of DINO features must be a folder with config.json and model.safetensors, "
                f"or a name to download, got {self.source}, which does not exist."
            )
        try:
            config = AutoConfig.from_pretrained(self.source, trust_remote_code=False)
        except Exception as error:  # an offline Hub or a damaged file can fail in any way
            raise self.unreadable(error) from error
        if config.model_type not in FAMILIES:
            raise UserError(
                f"source of DINO features must hold a DINOv2 or a DINOv3 vision transformer, got "
                f"{config.model_type} in {self.source}."
            )
        return config

    def read(self) -> nn.Module:
        kind = self.config.model_type
        try:
            return DinoNetwork(TransformersViT(self.source), kind)
        except Exception as error:  # an offline Hub or a damaged file can fail in any way
            raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> UserError:
        """What to say where a file cannot be read."""
        return UserError(
            f"DINO {self.source} must be readable by transformers, from a folder with config.json "
            "and model.safetensors or from the Hub, where DINOv3 also needs its licence accepted "
            f"and a login, got {reason_of(error)}."
        )


class DinoNetwork(nn.Module):
    """A DINO of transformers, from images to its CLS token.

    Args:
        vit: the vision transformer.
        kind: transformers' name of the architecture.
    """

    def __init__(self, vit: TransformersViT, kind: str):
        super().__init__()
        self.network = vit.network
        if kind == "dinov2":
            side = SIZE // vit.patch_size
            table = self.network.embeddings.position_embeddings
            table.data = as_published(table.data, side)

    def forward(self, pixels: UInt8[Tensor, "B H W 3"]) -> Features:
        planes = normalised(like_pil(pixels, SIZE), MEAN, STD)
        return Features(self.network(pixel_values=planes).last_hidden_state[:, 0])


def as_published(table: Float[Tensor, "1 _ D"], side: int) -> Float[Tensor, "1 _ D"]:
    """DINOv2's positions, 1 L D with the CLS token's first, for a square of `side` patches.

    As the published code resizes them (facebookresearch/dinov2, models/vision_transformer.py): by
    a factor that makes 0.1 patches more. transformers takes the plain factor.
    """
    own = round((table.shape[1] - 1) ** 0.5)
    if own == side:
        return table
    grid = rearrange(table[:, 1:], "1 (h w) d -> 1 d h w", h=own)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / own, mode="bicubic")
    return torch.cat([table[:, :1], rearrange(grid, "1 d h w -> 1 (h w) d")], dim=1)
