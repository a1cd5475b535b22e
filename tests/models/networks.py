"""Small networks of every kind that is not PixelHDM, all their numbers random."""

from pixelhdm.models.dit import DiT, PixelDiT
from pixelhdm.models.jit import JiT
from pixelhdm.models.mmdit import MMDiT, MMPixelDiT
from pixelhdm.models.network import Network
from pixelhdm.models.text_jit import TextJiT

DIM = 32
PIXELS = {"pixel_dim": 8, "patch_depth": 2, "pixel_depth": 2, "feature_block": 1}
TINY = {
    DiT: {"depth": 2, "feature_block": 1},
    PixelDiT: PIXELS,
    MMDiT: {"depth": 2, "feature_block": 1},
    MMPixelDiT: PIXELS | {"pixel_attention_dim": 16, "pixel_num_heads": 2},
    JiT: {
        "depth": 4,
        "bottleneck_dim": 8,
        "in_context_len": 3,
        "in_context_start": 1,
        "feature_block": 2,
    },
    TextJiT: {"depth": 2, "text_depth": 1, "bottleneck_dim": 8, "feature_block": 1},
}
TAKES_TOKENS = (DiT, PixelDiT, MMDiT, MMPixelDiT, TextJiT)


def small(kind: type[Network], **changes: object) -> Network:
    """A new small network: patches of 4 pixels, 2 heads."""
    sizes = {"hidden_dim": DIM, "patch_size": 4, "num_heads": 2}
    return kind(**(sizes | TINY[kind] | changes))
