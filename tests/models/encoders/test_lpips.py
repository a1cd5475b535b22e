"""LPIPS with random weights of VGG16, against torchmetrics' own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.functional.image import lpips as torchmetrics_lpips
from torchvision.models.vgg import cfgs, make_layers

from pixelhdm.errors import UserError
from pixelhdm.models.encoders.lpips import Lpips
from tests.stubs import randn
from tests.tiny_vgg import vgg_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lpips(vgg) -> Lpips:
    return Lpips(str(vgg))


def test_it_is_torchmetrics_lpips(lpips, monkeypatch):
    def backbone(name: str, pretrained: bool) -> torch.nn.Sequential:
        assert (name, pretrained) == ("vgg16", True)
        with torch.device("meta"):
            layers = make_layers(cfgs["D"])
        state = {key.removeprefix("features."): value for key, value in vgg_weights().items()}
        layers.load_state_dict(state, assign=True)
        return layers

    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", backbone)
    image, target = (randn(2, 32, 40, 3, seed=seed).mul(0.4).clamp(-1, 1) for seed in (1, 2))
    expected = torchmetrics_lpips.learned_perceptual_image_patch_similarity(
        *(x.permute(0, 3, 1, 2) for x in (image, target)), net_type="vgg", reduction="none"
    )
    distance = lpips(image, target)
    assert (expected > 0.05).all()
    torch.testing.assert_close(distance, expected, rtol=1e-5, atol=0)


def test_equal_images_are_at_no_distance_and_each_image_stands_alone(lpips):
    image, target = randn(3, 16, 16, 3), randn(3, 16, 16, 3, seed=5)
    assert torch.equal(lpips(image, image), torch.zeros(3))
    alone = [lpips(image[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), lpips(image, target), rtol=1e-5, atol=0)


def test_the_image_gets_a_gradient_and_no_weight_does(lpips):
    image, target = randn(1, 16, 16, 3).requires_grad_(), -torch.ones(1, 16, 16, 3)
    with torch.autocast("cpu", torch.bfloat16):
        distance = lpips(image, target)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, lpips(image, target), rtol=0, atol=0)
    distance.sum().backward()
    assert image.grad.isfinite().all()
    assert (image.grad != 0).all()
    assert all(p.grad is None and not p.requires_grad for p in lpips.load(CPU).parameters())
    flat = torch.zeros(1, 16, 16, 3, requires_grad=True)
    lpips(flat, flat.detach()).sum().backward()
    assert flat.grad.isfinite().all()


def test_weights_in_bfloat16_as_on_a_gpu(vgg):
    image, target = randn(1, 32, 32, 3), randn(1, 32, 32, 3, seed=5)
    exact, near = Lpips(str(vgg)), Lpips(str(vgg))
    for parameter in near.load(CPU).parameters():
        parameter.data = parameter.data.bfloat16()
    assert {x.dtype for x in near.network.buffers()} == {torch.float32}
    distance = near(image, target)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, exact(image, target), rtol=0.02, atol=0)


def test_safetensors_are_read_and_half_precision_is_widened(tmp_path, lpips):
    save_file(
        {key: value.half() for key, value in vgg_weights().items()}, tmp_path / "vgg.safetensors"
    )
    half = Lpips(str(tmp_path / "vgg.safetensors"))
    image, target = randn(1, 16, 16, 3), randn(1, 16, 16, 3, seed=5)
    assert {p.dtype for p in half.load(CPU).parameters()} == {torch.float32}
    torch.testing.assert_close(half(image, target), lpips(image, target), rtol=0.01, atol=0)


def test_files_that_do_not_serve_are_named(tmp_path):
    with pytest.raises(UserError, match=r"got no/such/file\.pth, which does not exist"):
        Lpips("no/such/file.pth").load(CPU)
    first = {"features.0.weight": torch.zeros(64, 3, 3, 3)}
    torch.save(first, tmp_path / "part.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK torn")
    torch.save({"features.0.weight": Path("/")}, tmp_path / "code.pth")
    for name, reason in (("part", "Missing key"), ("torn", "Error"), ("code", "UnpicklingError")):
        with pytest.raises(UserError, match=f"{name}.pth, got .*{reason}") as error:
            Lpips(str(tmp_path / f"{name}.pth")).load(CPU)
        assert "\n" not in str(error.value)


def test_without_a_source_torchvision_downloads(monkeypatch):
    def offline(url: str, **settings: object) -> None:
        assert settings["weights_only"]
        raise OSError(f"no way to {url}")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"from the internet, got OSError.* set source to the file"):
        Lpips().load(CPU)


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match="at least 16 pixels, got 16x15"):
        Lpips()(torch.zeros(1, 16, 15, 3), torch.zeros(1, 16, 15, 3))
