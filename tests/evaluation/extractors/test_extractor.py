import copy

import pytest
import torch
from torch import nn

from pixelhdm.evaluation.extractors.extractor import Extractor, Features, no_tf32

CPU = torch.device("cpu")


class Halves(nn.Module):
    """A network whose product depends on the arithmetic around it."""

    def __init__(self, factor: float):
        super().__init__()
        self.line = nn.Linear(3, 4)
        nn.init.constant_(self.line.weight, factor)
        nn.init.zeros_(self.line.bias)

    def forward(self, pixels: torch.Tensor) -> Features:
        means = pixels.double().mean(dim=(1, 2)).float()
        return Features(self.line(means), logits=means.double())


class Plain(Extractor):
    """An extractor without files."""

    label, key, dim, resize = "Plain", "plain", 4, "none"

    def __init__(self, factor: float = 1 / 3):
        super().__init__()
        self.factor = factor

    def read(self) -> nn.Module:
        return Halves(self.factor)


def test_features_are_float32_without_gradients_whatever_is_around():
    pixels = torch.arange(2 * 3 * 5 * 3, dtype=torch.uint8).view(2, 3, 5, 3)
    extractor = Plain()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = extractor(pixels)
    expected = pixels.double().mean(dim=(1, 2)).sum(dim=-1) / 3
    torch.testing.assert_close(features.pool[:, 0].double(), expected, rtol=1e-6, atol=0)
    assert features.pool.dtype == features.logits.dtype == torch.float32
    assert features.spatial is None
    assert not features.pool.requires_grad
    assert not extractor.is_official


def test_a_gpu_would_keep_its_float32():
    assert Plain.gpu_dtype == torch.float32


def test_the_shorter_products_are_back_after_an_error():
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv

    def fail() -> None:
        with no_tf32():
            assert products.fp32_precision == convolutions.fp32_precision == "ieee"
            raise RuntimeError

    before = products.fp32_precision
    products.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        fail()
    after, products.fp32_precision = products.fp32_precision, before
    assert after == "tf32"


def test_the_digest_tells_weights_and_preprocessing_apart():
    digest = Plain().digest()
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    used = Plain()
    used(torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    assert used.digest() == digest
    assert Plain(0.3333).digest() != digest
    resized = Plain()
    resized.resize = "to 7"
    assert resized.digest() != digest


def test_a_copied_module_holds_no_second_network_and_no_weights_of_it():
    module = nn.Linear(1, 1)
    module.extractor = Plain()
    module.extractor.load(CPU)
    assert copy.deepcopy(module).extractor is module.extractor
    assert list(module.state_dict()) == ["weight", "bias"]
    assert len(list(module.parameters())) == 2
