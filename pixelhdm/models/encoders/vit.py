"""Pretrained vision transformers of two libraries, both giving their patch tokens alone."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TransformersViT(nn.Module):
    """A vision transformer of the library transformers, without its CLS and register tokens.

    Args:
        source: Hub name, or a folder with config.json and weights.

    Attributes:
        kind: the library's name of the architecture.
        dim: width of a token.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, source: str):
        super().__init__()
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # seconds long, once
        self.network, report = AutoModel.from_pretrained(
            source,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
        # The library fills what is missing with random numbers and drops what is left over.
        for what in ("missing", "unexpected", "mismatched"):
            if keys := sorted(report[f"{what}_keys"]):
                raise ValueError(f"{len(keys)} {what} tensors, such as {keys[0]}")
        config = self.network.config
        self.kind, self.dim = config.model_type, config.hidden_size
        self.patch_size = config.patch_size
        self.num_prefix = 1 + getattr(config, "num_register_tokens", 0)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        pixels = pixels.to(self.network.dtype)
        return self.network(pixel_values=pixels).last_hidden_state[:, self.num_prefix :]


class TimmViT(nn.Module):
    """A vision transformer of the library timm, without its CLS and register tokens.

    Args:
        source: timm's name of model and weights, or a folder with config.json and weights as timm
            saves them.

    Attributes:
        kind: the library's name of the architecture.
        dim: width of a token.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, source: str):
        super().__init__()
        import timm

        name = f"local-dir:{source}" if Path(source).is_dir() else source
        self.network = timm.create_model(name, pretrained=True, dynamic_img_size=True)
        self.kind = self.network.pretrained_cfg["architecture"]
        self.dim = self.network.embed_dim
        self.patch_size = self.network.patch_embed.patch_size[0]

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        pixels = pixels.to(self.network.patch_embed.proj.weight.dtype)
        return self.network.forward_features(pixels)[:, self.network.num_prefix_tokens :]
