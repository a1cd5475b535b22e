"""From stored images to features and the CLIP score."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelhdm.evaluation import featuring
from pixelhdm.evaluation.featuring import add_features, clip_score
from pixelhdm.evaluation.image_store import Chunk, ImageStore
from tests.stubs import ColourFeatures

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


class Reader(ColourFeatures):
    """It finds that an image matches a text by its first pixel's red and the text's length."""

    def score(self, pixels: Tensor, texts: list[str]) -> Tensor:
        return pixels[:, 0, 0, 0].float() + 1000 * torch.tensor([float(len(t)) for t in texts])


def store_of(folder: Path, conditions: list) -> ImageStore:
    store = ImageStore(folder, "a", 7)
    store.write(0, Chunk(IMAGES, np.array(conditions), np.arange(7)))
    return store


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featuring, "BATCH", 3)


def test_batches_are_put_together_in_order(tmp_path):
    store, extractors = store_of(tmp_path, [1] * 7), [ColourFeatures("inception"), Reader(key="r")]
    add_features(store, 0, extractors, CPU)
    for extractor in extractors:
        expected = extractor(torch.from_numpy(IMAGES))
        for own, whole in zip(store.features(extractor), expected, strict=True):
            if whole is not None:
                torch.testing.assert_close(own, whole)
        assert clip_score(store, extractor) == []


def test_the_clip_score_is_the_mean_match_of_each_image_with_its_prompt(tmp_path):
    prompts = ["a" * number for number in range(1, 8)]
    store, reader = store_of(tmp_path, prompts), Reader()
    add_features(store, 0, [reader], CPU)
    expected = IMAGES[:, 0, 0, 0] + 1000.0 * np.arange(1, 8)
    np.testing.assert_allclose(store.match(reader).numpy(), expected)
    (score,) = clip_score(store, reader)
    assert score.value == pytest.approx(expected.mean())
    assert (score.name, score.num_images, score.better) == ("CLIP score", 7, "higher")


def test_features_that_are_there_are_not_computed_again(tmp_path, monkeypatch):
    store, extractor = store_of(tmp_path, [1] * 7), ColourFeatures()
    add_features(store, 0, [extractor], CPU)
    monkeypatch.setattr(ColourFeatures, "__call__", None)
    add_features(store, 0, [extractor], CPU)
