"""DINO teachers."""

from abc import abstractmethod
from typing import ClassVar, Literal

from torch import nn

from pixelhdm.errors import UserError, check_one_of, reason_of
from pixelhdm.models.encoders.frozen import expanded, is_missing_folder
from pixelhdm.models.encoders.teacher import Teacher
from pixelhdm.models.encoders.vit import TimmViT, TransformersViT

Library = Literal["transformers", "timm"]


class Dino(Teacher):
    """Base of the DINO teachers: final-norm patch tokens, without CLS and register tokens."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What both libraries' names of the architecture contain."""

    def __init__(self, source: str | None, dim: int, patch_size: int, library: Library):
        super().__init__(dim, patch_size)
        check_one_of(Library, library=library)
        source = self.defaults[library] if source is None else source
        self.source, self.library = expanded(source), library

    @property
    @abstractmethod
    def defaults(self) -> dict[Library, str]:
        """The source of the ViT-B in each library."""

    def read(self) -> nn.Module:
        if is_missing_folder(self.source):
            raise UserError(
                f"source of a teacher must be a folder with config.json and model.safetensors, or "
                f"a name to download, got {self.source}, which does not exist."
            )
        try:
            network = (TimmViT if self.library == "timm" else TransformersViT)(self.source)
        except Exception as error:  # an offline Hub or a damaged file can fail in any way
            raise UserError(
                f"teacher {self.source} must be readable by {self.library}, {self.ways()}, got "
                f"{reason_of(error)}."
            ) from error
        if self.kind not in network.kind:
            raise UserError(
                f"teacher {self.source} must be a {self.kind} model, got {network.kind}."
            )
        for name in ("dim", "patch_size"):
            if getattr(self, name) != getattr(network, name):
                raise UserError(
                    f"{name} of teacher {self.source} must be {getattr(network, name)}, as its "
                    f"files say, got {getattr(self, name)}."
                )
        return network

    def ways(self) -> str:
        """Where the library reads from."""
        if self.library == "timm":
            return (
                "from a folder with its config.json and model.safetensors as timm saves them, or "
                f"from the Hub by timm's name of model and weights ({self.defaults['timm']})"
            )
        return (
            "from a folder with its config.json and model.safetensors or from the Hub, where "
            "DINOv3 also needs its licence accepted and a login"
        )


class DINOv3(Dino):
    """DINOv3 vision transformer with patches of 16 pixels (arXiv:2508.10104).

    Args:
        source: Hub name or a folder with config.json and weights; with timm, timm's name of model
            and weights, or a folder that timm saved. Empty takes the ViT-B,
            facebook/dinov3-vitb16-pretrain-lvd1689m or vit_base_patch16_dinov3.lvd1689m.
        dim: width of its features: S 384, B 768, L 1024, H+ 1280, 7B 4096.
        library: what reads it, transformers or timm.
    """

    kind = "dinov3"
    defaults: ClassVar[dict[Library, str]] = {
        "transformers": "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "timm": "vit_base_patch16_dinov3.lvd1689m",
    }

    def __init__(
        self,
        source: str | None = None,
        dim: int = 768,
        library: Library = "transformers",
    ):
        super().__init__(source, dim, 16, library)


class DINOv2(Dino):
    """DINOv2 vision transformer with patches of 14 pixels (arXiv:2304.07193).

    Args:
        source: Hub name or a folder with config.json and weights; with timm, timm's name of model
            and weights, or a folder that timm saved. Empty takes the ViT-B,
            facebook/dinov2-base or vit_base_patch14_dinov2.lvd142m.
        dim: width of its features: S 384, B 768, L 1024, g 1536.
        library: what reads it, transformers or timm.
    """

    kind = "dinov2"
    defaults: ClassVar[dict[Library, str]] = {
        "transformers": "facebook/dinov2-base",
        "timm": "vit_base_patch14_dinov2.lvd142m",
    }

    def __init__(
        self,
        source: str | None = None,
        dim: int = 768,
        library: Library = "transformers",
    ):
        super().__init__(source, dim, 14, library)
