"""Published networks have the published numbers of parameters and operations."""

import pytest
import torch
import yaml

from pixelhdm.models.flops import ForwardFlop
from pixelhdm.models.jit import JiT
from pixelhdm.models.presets import PUBLISHED, PixelDiT_B, PixelDiT_L, PixelDiT_XL
from tests.e2e.life import ROOT
from tests.stubs import perturb, randn

CLASSES = 1001


def built(name: str, **changes: object) -> torch.nn.Module:
    kind, settings = PUBLISHED[name]
    with torch.device("meta"):
        return kind(**(settings | changes))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    ("make", "count", "post_modulated"),
    [
        (PixelDiT_B, 184_749_155, 172_149_859),
        (PixelDiT_L, 569_648_963, 536_061_763),
        (PixelDiT_XL, 797_383_203, 759_601_699),
    ],
)
def test_pixeldit_has_the_papers_parameters(make, count, post_modulated):
    with torch.device("meta"):
        model = make(input_size=256, num_classes=1000)
    assert num_parameters(model) == count
    name = make.__name__.replace("_", "-")
    table = num_parameters(model.conditioner)
    assert num_parameters(built(name, post_modulation=True)) + table == post_modulated


def test_text_to_image_networks_have_the_published_parameters():
    """With what takes the text in: projection, norm and positions, and fixed positions stored."""
    text = 2304 * 1536 + 1536 + 1536 + 300 * 1536
    network = num_parameters(built("PixelDiT-T2I"))
    assert network + text == 1_302_470_787
    projector = 1536 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 768 + 768
    assert network + text + projector == 1_311_388_547
    changed = num_parameters(built("PixelDiT-T2I", post_modulation=True))
    assert changed + text == 1_277_288_579
    text = 2048 * 1536 + 1536 + 1536 + 128 * 1536
    network = num_parameters(built("PixelGen-XXL")) + text
    assert (network + 256 * 1536, network + 1024 * 1536) == (1_122_132_736, 1_123_312_384)


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("DiT-L", {}, 459.17),
        ("DiT-XL", {}, 676.36),
        ("JiT-B", {}, 131.32),
        ("JiT-B", {"patch_size": 32}, 133.39),
        ("JiT-B", {"patch_size": 64}, 141.65),
        ("JiT-L", {}, 459.14),
        ("JiT-L", {"patch_size": 32}, 461.80),
        ("JiT-H", {}, 952.84),
        ("JiT-H", {"patch_size": 32}, 956.38),
        ("JiT-G", {}, 2007.56),
        ("JiT-G", {"patch_size": 32}, 2011.98),
        ("PixelGen-XL", {}, 676.99),
    ],
)
def test_other_networks_have_the_published_parameters(name, changes, count):
    """In millions, with the class table and, for JiT, the fixed positions of 256 patches."""
    network = built(name, **changes)
    extra = CLASSES * network.hidden_dim + 256 * network.hidden_dim * isinstance(network, JiT)
    assert round((num_parameters(network) + extra) / 1e6, 2) == count


@pytest.mark.parametrize(
    ("name", "size", "gflop"),
    [
        ("PixelDiT-B", 256, 75.43),
        ("PixelDiT-B", 512, 335.28),
        ("PixelDiT-L", 256, 227.77),
        ("PixelDiT-L", 512, 993.99),
        ("PixelDiT-XL", 256, 311.19),
        ("PixelDiT-XL", 512, 1352.24),
    ],
)
def test_pixeldit_takes_the_papers_operations(name, size, gflop):
    assert round(ForwardFlop(built(name))(size, size, 0) / 1e9, 2) == gflop


@pytest.mark.parametrize(("size", "gflop"), [(512, 1432.57), (1024, 6183.12)])
def test_text_to_image_saves_the_last_blocks_text(size, gflop):
    """The published count holds text states that nothing reads, and the text's projection."""
    layers = 300 * (1536**2 + 3 * 1536 * 4096)
    attention = 2 * 300 * (300 + (size // 16) ** 2) * 1536
    saved = 2 * (layers + attention + 300 * 2304 * 1536)
    own = ForwardFlop(built("PixelDiT-T2I"))(size, size, 300)
    assert round((own + saved) / 1e9, 2) == gflop


@pytest.mark.parametrize(
    ("name", "linear", "whole"),
    [
        ("JiT-B", 47.6, 50.4),
        ("JiT-L", 168.3, 175.9),
        ("JiT-H", None, 363.9),
        ("JiT-G", None, 767.5),
        ("PixelGen-XL", 250.1, 260.1),
    ],
)
def test_jit_takes_the_published_operations(name, linear, whole):
    """Without and with attention; 363, 766 and 260 are others' counts of H, G and XL."""
    network = built(name)
    flop = ForwardFlop(network)(256, 256, 0)
    assert abs(flop / 1e9 - whole) < 0.06
    before, depth = network.in_context_start, len(network.blocks)
    pairs = before * 256**2 + (depth - before) * (256 + 32) ** 2
    assert linear is None or abs((flop - 4 * network.hidden_dim * pairs) / 1e9 - linear) < 0.06


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("configs_c2i/PixelDiT_B.yaml", "PixelDiT-B"),
        ("configs_c2i/PixelDiT_L.yaml", "PixelDiT-L"),
        ("configs_c2i/PixelDiT_XL.yaml", "PixelDiT-XL"),
        ("configs_c2i/DiT_XL.yaml", "DiT-XL"),
        ("configs_c2i/JiT_B.yaml", "JiT-B"),
        ("configs_c2i/JiT_L_own.yaml", "JiT-L"),
        ("configs_c2i/JiT_H.yaml", "JiT-H"),
        ("configs_c2i/JiT_G.yaml", "JiT-G"),
        ("configs_c2i/PixelGen_L.yaml", "JiT-L"),
        ("configs_c2i/PixelGen_XL.yaml", "PixelGen-XL"),
        ("configs_t2i/PixelGen_XXL_256.yaml", "PixelGen-XXL"),
        ("configs_t2i/PixelDiT_T2I_512.yaml", "PixelDiT-T2I"),
    ],
)
def test_configs_have_the_published_sizes(file, name):
    network = yaml.safe_load((ROOT / file).read_text())["model"]["network"]
    assert network.get("class_path", PUBLISHED[name].network.__name__) == built_name(name)
    own = network["init_args"]
    with torch.device("meta"):
        configured = PUBLISHED[name].network(**own)
    assert num_parameters(configured) == num_parameters(built(name))
    same = {key: value for key, value in PUBLISHED[name].settings.items() if key in own}
    assert {key: own[key] for key in same} == same


def built_name(name: str) -> str:
    return PUBLISHED[name].network.__name__


def test_a_class_model_is_called_with_images_times_and_classes(monkeypatch):
    tiny = {"hidden_dim": 32, "patch_depth": 1, "pixel_depth": 1, "num_heads": 2}
    tiny |= {"feature_block": 1, "patch_size": 4, "pixel_dim": 4}
    monkeypatch.setitem(PUBLISHED, "PixelDiT-B", PUBLISHED["PixelDiT-B"]._replace(settings=tiny))
    model = perturb(PixelDiT_B(input_size=8, num_classes=5)).eval()
    x, t, y = randn(2, 8, 8, 3), torch.tensor([0.2, 0.7]), torch.tensor([1, 4])
    given, empty = model(x, t, y), model(x, t, torch.tensor([5, 5]))
    assert (given - empty).abs().max() > 1e-3
    guided = model.forward_with_cfg(x, t, y, 3.0)
    torch.testing.assert_close(guided, empty + 3 * (given - empty), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="multiples of patch_size=4"):
        PixelDiT_B(input_size=10)
