"""Small real parts that many tests need."""

import zlib

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pixelhdm.data.source import BadSample, ImageSource, Record
from pixelhdm.errors import UserError
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.network import Network, Prediction
from pixelhdm.models.pixelhdm import PixelHDM

TINY = {
    "hidden_dim": 32,
    "pixel_dim": 4,
    "patch_size": 2,
    "patch_depth": 3,
    "pixel_depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "rope_dims": (2, 2, 4),
    "bottleneck_dim": 8,
    "feature_block": 2,
}


def tiny_network(**changes: object) -> PixelHDM:
    """A new PixelHDM of a few thousand parameters, always the same one."""
    torch.manual_seed(0)
    return PixelHDM(**(TINY | changes))


class Sized(Network):
    """A network of any width and patch size without a layer, for what only asks those."""

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Prediction:
        raise AssertionError("nobody asks it to predict")


def perturb(module: nn.Module, std: float = 0.1) -> nn.Module:
    """Add noise to every parameter, as training does: no gate stays closed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return module


def randn(*shape: int, seed: int = 2) -> Tensor:
    """Normal numbers that do not depend on what was drawn before."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(batch: int, length: int, dim: int = TINY["hidden_dim"], seed: int = 3) -> Context:
    """A random context without a mask."""
    return Context(randn(batch, length, dim, seed=seed), None, randn(batch, dim, seed=seed + 100))


class Numbers(ImageSource):
    """Images whose pixels tell their index and the seed that they were loaded with.

    Args:
        num: how many.
        bad: those that cannot be read.
    """

    def __init__(self, num: int, bad: tuple[int, ...] = ()):
        self.num, self.bad = num, bad

    def open(self) -> None:
        """Do nothing: there is no file."""

    def sizes(self) -> np.ndarray:
        return np.full((self.num, 2), 2, dtype=np.uint16)

    def __len__(self) -> int:
        return self.num

    def load(self, index: int, seed: int, height: int, width: int) -> Record:
        if index in self.bad:
            raise BadSample("decode", "it is bad")
        image = np.full((height, width, 3), index % 251, dtype=np.uint8)
        image[0, 0] = seed % 251
        return Record(image, index % 10)

    def fingerprint(self) -> str:
        return f"numbers-{self.num}"


class HashConditioner(Conditioner):
    """Text without a language model: a learned vector for each word, by its hash; "" is the null.

    Args:
        dim: width of the context.
        num_words: words that are told apart.
        null_prob: probability of training on the null.
    """

    def __init__(self, dim: int, num_words: int = 64, null_prob: float = 0.1):
        super().__init__(dim, null_prob)
        self.words = nn.Embedding(num_words + 1, dim)

    def check(self, condition: Tensor | list[str]) -> None:
        if isinstance(condition, Tensor):
            raise UserError("conditions must be captions for HashConditioner, got class numbers.")

    def forward(self, condition: list[str], null: Bool[Tensor, "B"] | None = None) -> Context:
        dropped = [False] * len(condition) if null is None else null.tolist()
        texts = ["" if drop else text for text, drop in zip(condition, dropped, strict=True)]
        num = self.words.num_embeddings - 1
        hashes = [[zlib.crc32(w.encode()) % num for w in text.split()] or [num] for text in texts]
        longest = max(map(len, hashes))
        rows = torch.tensor([own + [num] * (longest - len(own)) for own in hashes])
        lengths = torch.tensor([[len(own)] for own in hashes])
        mask = (torch.arange(longest) < lengths).to(self.words.weight.device)
        tokens = self.words(rows.to(mask.device))
        pooled = (tokens * mask[..., None]).sum(dim=1)
        return Context(tokens, None if mask.all() else mask, pooled)

    def empty(self, batch_size: int) -> Context:
        return self([""] * batch_size)


class Colours(nn.Module):
    """Means and spreads of the colours of an image and of its four quarters: 30 numbers.

    Args:
        has_more: whether the first 6 of them come as `spatial` too and 4 sums as `logits`.
    """

    def __init__(self, has_more: bool):
        super().__init__()
        self.has_more = has_more

    def forward(self, pixels: Tensor) -> Features:
        values = pixels.movedim(-1, 1).float() / 255
        height, width = values.shape[-2] // 2, values.shape[-1] // 2
        quarters = values.unfold(2, height, height).unfold(3, width, width).flatten(2, 3)
        parts = [values.flatten(2)[:, :, None], quarters.flatten(3)]
        pooled = [torch.cat([p.mean(-1), p.std(-1)], dim=1).flatten(1) for p in parts]
        pool = torch.cat(pooled, dim=1)
        return Features(pool, pool[:, :6], 8 * pool[:, :4]) if self.has_more else Features(pool)


class ColourFeatures(Extractor):
    """An extractor without weights that looks at colours.

    Args:
        kind: which scores it is for: inception (with spatial features and logits), plain or clip.
        key: its name in files.
        is_published: whether its weights count as those of the published FID.
    """

    label, dim, resize = "Colours", 30, "none"

    def __init__(self, kind: str = "plain", key: str = "colours", is_published: bool = False):
        super().__init__()
        self.kind, self.key, self.is_published = kind, key, is_published

    @property
    def is_official(self) -> bool:
        return self.is_published

    def read(self) -> nn.Module:
        return Colours(self.kind == "inception")
