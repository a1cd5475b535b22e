"""CLIP's embeddings of images and of texts."""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pixelhdm.errors import UserError, counted, reason_of
from pixelhdm.evaluation.extractors.clip_network import ClipNetwork, clip_score
from pixelhdm.evaluation.extractors.extractor import Extractor, exact
from pixelhdm.models.encoders.frozen import expanded, is_missing_folder

SIZES = {768: "B", 1024: "L", 1280: "H"}


class ClipFeatures(Extractor):
    """CLIP's image embeddings, scaled to length 1, for CMMD (arXiv:2401.09603) and the CLIP score.

    Args:
        source: Hub name or a folder with config.json, tokenizer and weights of a CLIP, as
            transformers reads it. The default is CMMD's.
    """

    kind = "clip"

    def __init__(self, source: str = "openai/clip-vit-large-patch14-336"):
        super().__init__()
        self.source = expanded(source)
        self.has_warned = False

    @property
    def label(self) -> str:
        vision = self.config.vision_config
        return f"CLIP ViT-{self.size}/{vision.patch_size}-{vision.image_size}"

    @property
    def key(self) -> str:
        vision = self.config.vision_config
        return f"clip-vit{self.size.lower()}{vision.patch_size}-{vision.image_size}"

    @property
    def dim(self) -> int:
        return self.config.projection_dim

    @property
    def resize(self) -> str:
        return f"middle square, PIL bicubic to {self.config.vision_config.image_size}"

    @property
    def size(self) -> str:
        """The letter of its width, or the width where it has none."""
        width = self.config.vision_config.hidden_size
        return SIZES.get(width, str(width))

    @cached_property
    def config(self) -> Any:
        """The configuration of transformers, alone.

        Raises:
            UserError: it is not there or of no CLIP.
        """
        from transformers import AutoConfig

        if is_missing_folder(self.source):
            raise UserError(
                "source of CLIP features must be a folder with config.json, tokenizer and "
                f"model.safetensors, or a name to download, got {self.source}, which does not "
                "exist."
            )
        try:
            config = AutoConfig.from_pretrained(self.source, trust_remote_code=False)
        except Exception as error:  # an offline Hub or a damaged file can fail in any way
            raise self.unreadable(error) from error
        if config.model_type != "clip":
            raise UserError(
                f"source of CLIP features must hold a CLIP, got {config.model_type} in "
                f"{self.source}."
            )
        return config

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers.

        Raises:
            UserError: it is not there.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
            if tokenizer("a")["input_ids"] == tokenizer("b")["input_ids"]:
                raise ValueError("no vocabulary")  # the library makes one up where there is no file
        except Exception as error:  # an offline Hub or a damaged file can fail in any way
            raise self.unreadable(error) from error
        return tokenizer

    def read(self) -> nn.Module:
        size = self.config.vision_config.image_size
        try:
            return ClipNetwork(self.source, size)
        except Exception as error:  # an offline Hub or a damaged file can fail in any way
            raise self.unreadable(error) from error

    def of_texts(self, texts: list[str], device: torch.device) -> Float[Tensor, "B D"]:
        """The embeddings of texts, scaled to length 1, in float32 on the CPU.

        What is longer than CLIP reads loses its end; the first time a note says so.

        Raises:
            UserError: the files are missing or do not fit.
        """
        limit = self.config.text_config.max_position_embeddings
        whole = self.tokenizer(texts, verbose=False)["input_ids"]
        if not self.has_warned and any(len(ids) > limit for ids in whole):
            cut = [text for text, ids in zip(texts, whole, strict=True) if len(ids) > limit]
            rank_zero_warn(
                f"{self.label} reads {limit} tokens of a text: {counted(cut, 'texts')} lose their "
                "end, and their CLIP score does not see it."
            )
            self.has_warned = True
        rows = self.tokenizer(
            texts, truncation=True, max_length=limit, padding=True, return_tensors="pt"
        )
        network = self.load(device)
        with exact(device):
            ids, mask = rows["input_ids"].to(device), rows["attention_mask"].to(device)
            return network.of_texts(ids, mask).float().cpu()

    def score(self, pixels: UInt8[Tensor, "B H W 3"], texts: list[str]) -> Float[Tensor, "B"]:
        """The CLIP score of each image and its text.

        Raises:
            UserError: the files are missing or do not fit.
        """
        return clip_score(self(pixels).pool, self.of_texts(texts, pixels.device))

    def unreadable(self, error: Exception) -> UserError:
        """What to say where a file cannot be read."""
        return UserError(
            f"CLIP {self.source} must be readable by transformers, from a folder with config.json, "
            f"tokenizer.json and model.safetensors or from the Hub, got {reason_of(error)}."
        )
