"""CLIP's network, and the score of its embeddings."""

import torch
from einops import einsum
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.evaluation.extractors.extractor import Features
from pixelhdm.evaluation.extractors.pixels import centre_square, like_pil, normalised

# Of colours in [0, 1], as OpenAI's models were trained.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipNetwork(nn.Module):
    """A CLIP of the library transformers.

    Args:
        source: Hub name or folder.
        size: side in pixels of the squares that it reads.
    """

    def __init__(self, source: str, size: int):
        super().__init__()
        from transformers import CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # seconds long, once
        self.network, report = CLIPModel.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
        # The library fills what is missing with random numbers.
        if keys := sorted(
            {*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])}
        ):
            raise ValueError(f"{len(keys)} missing or mismatched tensors, such as {keys[0]}")
        self.size = size

    def forward(self, pixels: UInt8[Tensor, "B H W 3"]) -> Features:
        planes = normalised(like_pil(centre_square(pixels), self.size), MEAN, STD)
        seen = self.network.vision_model(pixel_values=planes).pooler_output
        return Features(F.normalize(self.network.visual_projection(seen), dim=-1))

    def of_texts(self, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """The embeddings of token rows, scaled to length 1."""
        read = self.network.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(self.network.text_projection(read), dim=-1)


def clip_score(images: Float[Tensor, "B D"], texts: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
    """100 max(cos(image, text), 0) of embeddings of length 1 (arXiv:2104.08718, eq. 1, 100 for
    2.5, as is usual).
    """
    return 100 * einsum(images, texts, "b d, b d -> b").clamp(min=0)
