"""DINO features, from tiny models that transformers saved itself."""

from pathlib import Path

import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.evaluation.extractors.dino_features import DinoFeatures, as_published
from pixelhdm.evaluation.extractors.pixels import like_pil
from tests.tiny_dino import DIM, new_dinov2, quiet, save_dinov2, save_dinov3, save_transformers


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    saved = {name: tmp_path_factory.mktemp("dino") for name in ("v2", "registers", "v3")}
    save_dinov2(saved["v2"])
    save_dinov2(saved["registers"], num_registers=4)
    save_dinov3(saved["v3"])
    return saved


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def pictures(num: int) -> torch.Tensor:
    noise = torch.randint(0, 256, (num, 50, 70, 3), generator=torch.manual_seed(0))
    return noise.to(torch.uint8)


@pytest.mark.parametrize("name", ["v2", "registers", "v3"])
def test_features_are_the_class_token_of_the_library(folders, name):
    from transformers import AutoModel

    with quiet():
        model = AutoModel.from_pretrained(folders[name]).eval()
        extractor = DinoFeatures(str(folders[name]))
        features = extractor(pictures(2))
    if name == "v2":  # the library resizes the table of positions in its own way
        table = model.embeddings.position_embeddings
        table.data = as_published(table.data, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    planes = ((like_pil(pictures(2), 224) / 255 - mean) / std).movedim(-1, 1)
    with torch.no_grad():
        tokens = model(pixel_values=planes).last_hidden_state
    torch.testing.assert_close(features.pool, tokens[:, 0], rtol=1e-4, atol=1e-5)
    assert features.pool.shape == (2, extractor.dim) == (2, DIM)
    alone = extractor(pictures(2)[:1]).pool
    torch.testing.assert_close(alone, features.pool[:1], rtol=1e-4, atol=1e-5)


def test_each_dino_has_its_own_name(folders, tmp_path):
    from transformers import Dinov2Config

    found = {name: DinoFeatures(str(folder)) for name, folder in folders.items()}
    assert {name: extractor.label for name, extractor in found.items()} == {
        "v2": "DINOv2 ViT-32/14",
        "registers": "DINOv2-reg ViT-32/14",
        "v3": "DINOv3 ViT-32/16",
    }
    assert len({extractor.key for extractor in found.values()}) == 3
    Dinov2Config(hidden_size=768, patch_size=14).save_pretrained(tmp_path)
    base = DinoFeatures(str(tmp_path))
    assert (base.label, base.key, base.dim) == ("DINOv2 ViT-B/14", "dinov2-vitb14", 768)
    assert base.network is None  # a name costs no weights


def test_positions_are_resized_as_the_published_code_does():
    """Its 16 rows are as far apart as if there were 16.1: the last ones would lie 0.2 higher."""
    rows = torch.arange(37.0).view(37, 1).expand(37, 37)
    table = torch.cat([torch.tensor([[7.0]]), rows.reshape(-1, 1)])[None]
    small = as_published(table, 16)
    assert small.shape == (1, 257, 1)
    assert small[0, 0, 0] == 7
    found = small[0, 1:, 0].view(16, 16)
    centres = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(found[1:-1, 3], centres[1:-1], rtol=0, atol=0.06)
    assert as_published(small, 16) is small


def test_other_models_are_refused(folders, tmp_path):
    with pytest.raises(UserError, match="which does not exist"):
        _ = DinoFeatures(str(tmp_path / "none")).label
    with pytest.raises(UserError, match="must be readable by transformers"):
        _ = DinoFeatures(str(tmp_path)).label
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="must hold a DINOv2 or a DINOv3"):
        _ = DinoFeatures(str(tmp_path)).label


def test_missing_tensors_are_not_replaced_by_random_ones(tmp_path):
    from safetensors.torch import load_file, save_file

    save_transformers(tmp_path, new_dinov2(0))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("embeddings.cls_token")
    save_file(tensors, file, metadata={"format": "pt"})
    with quiet(), pytest.raises(UserError, match=r"1 missing tensors, such as embeddings\.cls"):
        DinoFeatures(str(tmp_path)).read()


def test_the_digest_is_that_of_the_weights(folders, tmp_path):
    save_transformers(tmp_path, new_dinov2(0))
    with quiet():
        first, again = DinoFeatures(str(folders["v2"])), DinoFeatures(str(folders["v2"]))
        assert first.digest() == again.digest() != DinoFeatures(str(tmp_path)).digest()
