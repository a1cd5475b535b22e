"""What turns images into the features that scores are computed from."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pixelhdm.models.encoders.frozen import Frozen

Kind = Literal["inception", "plain", "clip"]


class Features(NamedTuple):
    """What an extractor says of a batch of images, in float32 on the CPU.

    Attributes:
        pool: one vector of each image.
        spatial: of Inception, 7 channels of its 17x17 map `mixed_6/conv`, row by row.
        logits: of Inception, class logits without bias, where the weights have them.
    """

    pool: Float[Tensor, "B D"]
    spatial: Float[Tensor, "B S"] | None = None
    logits: Float[Tensor, "B C"] | None = None


class Extractor(Frozen):
    """Base of frozen networks that turn images into features for scores.

    `read` gives a network from pixels (B H W 3, uint8, of any size) to Features. It computes in
    float32 on every device, so that a score is the same on each to rounding.

    Attributes:
        label: its name in tables.
        key: its name in files, lower case without spaces.
        kind: what decides which scores its features allow.
        dim: width of `Features.pool`.
        resize: in words, how images reach the network.
    """

    gpu_dtype = torch.float32
    label: str
    key: str
    kind: Kind = "plain"
    dim: int
    resize: str

    def __init__(self) -> None:
        super().__init__()
        self.known_digest: str | None = None

    @property
    def is_official(self) -> bool:
        """Whether these are known to be the weights of the published FID."""
        return False

    def __call__(self, pixels: UInt8[Tensor, "B H W 3"]) -> Features:
        """The features of images.

        Raises:
            UserError: the weights are missing or do not fit.
        """
        network = self.load(pixels.device)
        with exact(pixels.device):
            features = network(pixels)
        return Features(*(None if x is None else x.float().cpu() for x in features))

    def digest(self) -> str:
        """16 hexadecimal digits that differ when its weights or its preprocessing do.

        Raises:
            UserError: the weights are missing or do not fit.
        """
        if self.known_digest is None:
            network = self.network or self.load(torch.device("cpu"))
            hashed = hashlib.sha256(f"{type(self).__name__} {self.key} {self.resize}".encode())
            for name, values in sorted(network.state_dict().items()):
                hashed.update(f"{name} {tuple(values.shape)}".encode())
                hashed.update(values.float().contiguous().cpu().numpy().tobytes())
            self.known_digest = hashed.hexdigest()[:16]
        return self.known_digest


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Without gradients, autocast and, on a GPU, the shorter multiplications of TF32."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), no_tf32():
        yield


@contextmanager
def no_tf32() -> Iterator[None]:
    """Float32 products in full, in this block alone."""
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision = products.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before
