"""All networks, and the published ones by name, ready to call with their class table."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.dit import DiT, PixelDiT
from pixelhdm.models.jit import JiT
from pixelhdm.models.mmdit import MMDiT, MMPixelDiT
from pixelhdm.models.network import Network
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.text_jit import TextJiT

# All classes that a config may call by their bare names.
NETWORKS = (PixelHDM, DiT, PixelDiT, MMDiT, MMPixelDiT, JiT, TextJiT)


class Published(NamedTuple):
    """A published network.

    Attributes:
        network: its class.
        settings: its arguments.
    """

    network: type[Network]
    settings: dict[str, Any]


# PixelDiT: arXiv:2511.20645, table 1. DiT: of DeCo, arXiv:2511.19365. JiT: arXiv:2511.13720,
# table 9; L is PixelGen-L too, whose XL and XXL are of arXiv:2602.02493.
PUBLISHED = {
    "PixelDiT-B": Published(
        PixelDiT, {"hidden_dim": 768, "patch_depth": 12, "pixel_depth": 2, "num_heads": 12}
    ),
    "PixelDiT-L": Published(
        PixelDiT, {"hidden_dim": 1024, "patch_depth": 22, "pixel_depth": 4, "num_heads": 16}
    ),
    "PixelDiT-XL": Published(
        PixelDiT, {"hidden_dim": 1152, "patch_depth": 26, "pixel_depth": 4, "num_heads": 16}
    ),
    "PixelDiT-T2I": Published(MMPixelDiT, {"noise_time": True}),
    "DiT-L": Published(DiT, {"hidden_dim": 1024, "depth": 24, "num_heads": 16}),
    "DiT-XL": Published(DiT, {"hidden_dim": 1152, "depth": 28, "num_heads": 16}),
    "JiT-B": Published(
        JiT, {"hidden_dim": 768, "depth": 12, "num_heads": 12, "in_context_start": 4}
    ),
    "JiT-L": Published(JiT, {"hidden_dim": 1024, "depth": 24, "num_heads": 16}),
    "JiT-H": Published(
        JiT,
        {
            "hidden_dim": 1280,
            "depth": 32,
            "num_heads": 16,
            "bottleneck_dim": 256,
            "in_context_start": 10,
            "dropout": 0.2,
        },
    ),
    "JiT-G": Published(
        JiT,
        {
            "hidden_dim": 1664,
            "depth": 40,
            "num_heads": 16,
            "bottleneck_dim": 256,
            "in_context_start": 10,
            "dropout": 0.2,
        },
    ),
    "PixelGen-XL": Published(
        JiT,
        {
            "hidden_dim": 1152,
            "depth": 28,
            "num_heads": 16,
            "bottleneck_dim": None,
            "dropout": 0.1,
        },
    ),
    "PixelGen-XXL": Published(TextJiT, {}),
}


class ClassToImage(nn.Module):
    """A network with its class table, called as the field calls one: model(x, t, y).

    Args:
        network: the network.
        input_size: side of the images in pixels that it is built for; others work too.
        num_classes: number of classes; y = num_classes is the empty condition.

    Attributes:
        conditioner: the class table.
    """

    def __init__(self, network: Network, input_size: int, num_classes: int):
        super().__init__()
        network.check_size(input_size, input_size)
        self.network = network
        self.conditioner = ClassConditioner(network.hidden_dim, num_classes, num_tokens=0)

    def forward(
        self, x: Float[Tensor, "B H W 3"], t: Float[Tensor, "B"], y: Int[Tensor, "B"]
    ) -> Float[Tensor, "B H W 3"]:
        """What the network predicts of images in [-1, 1] at times 0 (noise) … 1 (clean)."""
        return self.network(x, t, self.conditioner.embed(y)).output

    def forward_with_cfg(
        self,
        x: Float[Tensor, "B H W 3"],
        t: Float[Tensor, "B"],
        y: Int[Tensor, "B"],
        cfg_scale: float,
    ) -> Float[Tensor, "B H W 3"]:
        """empty + cfg_scale (conditional - empty), of one call on both (arXiv:2207.12598)."""
        null = torch.full_like(y, self.conditioner.num_classes)
        both = self(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))
        given, empty = both.chunk(2)
        return empty + cfg_scale * (given - empty)


def published_network(name: str) -> Network:
    """A new network of a published size, see PUBLISHED."""
    kind, settings = PUBLISHED[name]
    return kind(**settings)


def PixelDiT_B(input_size: int = 256, num_classes: int = 1000) -> ClassToImage:
    """PixelDiT-B, 184,749,155 parameters, see PixelDiT and ClassToImage."""
    return ClassToImage(published_network("PixelDiT-B"), input_size, num_classes)


def PixelDiT_L(input_size: int = 256, num_classes: int = 1000) -> ClassToImage:
    """PixelDiT-L, 569,648,963 parameters, see PixelDiT and ClassToImage."""
    return ClassToImage(published_network("PixelDiT-L"), input_size, num_classes)


def PixelDiT_XL(input_size: int = 256, num_classes: int = 1000) -> ClassToImage:
    """PixelDiT-XL, 797,383,203 parameters, see PixelDiT and ClassToImage."""
    return ClassToImage(published_network("PixelDiT-XL"), input_size, num_classes)
