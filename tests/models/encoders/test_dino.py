"""DINO teachers, read from tiny models that both libraries saved themselves."""

import json
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.models.encoders.dino import Dino, DINOv2, DINOv3, Library
from tests.stubs import randn
from tests.tiny_dino import DIM, quiet, save_dinov2, save_dinov3

SAVED = {
    "dinov3 transformers": lambda folder: save_dinov3(folder),
    "dinov3 timm": lambda folder: save_dinov3(folder, "timm"),
    "dinov2 transformers": lambda folder: save_dinov2(folder),
    "dinov2 timm": lambda folder: save_dinov2(folder, "timm"),
    "dinov2 registers transformers": lambda folder: save_dinov2(folder, num_registers=4),
    "dinov2 registers timm": lambda folder: save_dinov2(folder, "timm", num_registers=4),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, Dino]:
    saved = {}
    for name, save in SAVED.items():
        saved[name] = save(tmp_path_factory.mktemp("teacher"))
        with quiet():
            saved[name].load(CPU)
    return saved


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def image_for(teacher: Dino, h: int, w: int, batch: int = 1) -> Tensor:
    return randn(batch, h * teacher.patch_size, w * teacher.patch_size, 3).clamp(-1, 1)


def own_tokens(teacher: Dino, image: Tensor) -> Tensor:
    """The patch tokens by the library's own means, B h w D."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((image * 0.5 + 0.5 - mean) / std).movedim(-1, 1)
    if teacher.library == "timm":
        import timm

        network = timm.create_model(
            f"local-dir:{teacher.source}", pretrained=True, dynamic_img_size=True
        )
        (maps,) = network.eval().forward_intermediates(
            pixels, indices=1, norm=True, intermediates_only=True
        )
    else:
        import transformers

        name = type(teacher.network.network).__name__.replace("Model", "Backbone")
        with quiet():
            network = getattr(transformers, name).from_pretrained(teacher.source)
        (maps,) = network.eval()(pixels).feature_maps
    return maps.movedim(1, -1)


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize(("h", "w"), [(4, 4), (2, 5), (3, 1)])
def test_tokens_are_those_of_the_library_in_its_order(teachers, name, h, w):
    teacher = teachers[name]
    image = image_for(teacher, h, w, batch=2)
    tokens = teacher(image)
    assert tokens.shape == (2, h, w, DIM)
    with torch.no_grad():
        torch.testing.assert_close(tokens, own_tokens(teacher, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAVED)
def test_tokens_know_their_place(teachers, name):
    teacher = teachers[name]
    p, image = teacher.patch_size, image_for(teacher, 2, 3)
    tokens, changed = teacher(image), image.clone()
    changed[:, p:, 2 * p :] = 0.9  # patch (1, 2): its own token changes most
    change = (teacher(changed) - tokens).square().sum(-1)[0]
    assert change.argmax() == 5
    moved = torch.roll(image, (p, p), dims=(1, 2))  # other places: other tokens
    back = torch.roll(teacher(moved), (-1, -1), dims=(1, 2))
    assert (back - tokens).abs().mean() > 1e-3


@pytest.mark.parametrize("name", ["dinov3 transformers", "dinov3 timm"])
def test_autocast_of_the_training_step_stays_outside(teachers, name):
    teacher = teachers[name]
    image = image_for(teacher, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher(image)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, teacher(image))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SAVED)
def test_a_gpu_holds_bfloat16_weights_and_float32_frequencies(teachers, name):
    teacher = type(teachers[name])(teachers[name].source, DIM, teachers[name].library)
    image = image_for(teacher, 3, 4)
    near = teacher(image.to("cuda")).cpu()
    assert {p.dtype for p in teacher.network.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in teacher.network.buffers()} <= {torch.float32}
    exact = teachers[name](image)
    assert (near - exact).norm() < 0.05 * exact.norm()


def error_of(teacher: Dino) -> str:
    with quiet(), pytest.raises(UserError) as caught:
        teacher.load(CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["transformers", "timm"])
def copied(request, teachers, tmp_path) -> DINOv3:
    """A saved DINOv3 to damage."""
    shutil.copytree(teachers[f"dinov3 {request.param}"].source, tmp_path / "copy")
    return DINOv3(str(tmp_path / "copy"), DIM, request.param)


def change_weights(folder: str, changes: dict[str, Tensor | None]) -> None:
    file = Path(folder) / "model.safetensors"
    state = load_file(file) | changes
    kept = {key: value for key, value in state.items() if value is not None}
    save_file(kept, file, metadata={"format": "pt"})


def test_missing_tensors_are_refused(copied):
    change_weights(copied.source, {"norm.weight": None})
    assert re.search(r"[Mm]issing .*norm\.weight", error_of(copied))


def test_left_over_tensors_are_refused(copied):
    change_weights(copied.source, {"head.extra": torch.zeros(3)})
    assert re.search(r"[Uu]nexpected .*head\.extra", error_of(copied))


def test_tensors_of_another_shape_are_refused(copied):
    change_weights(copied.source, {"norm.weight": torch.zeros(3)})
    assert re.search(r"mismatch.*norm\.weight", error_of(copied))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_damaged_folders_are_named(copied, file, damage):
    path = Path(copied.source) / file
    whole = path.read_bytes()
    path.unlink()
    if damage == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    error = error_of(copied)
    assert f"teacher {copied.source} must be readable by {copied.library}, from" in error
    assert "a folder with its config.json and model.safetensors" in error


def test_each_library_has_its_own_default_and_says_what_it_reads(teachers):
    sources = [cls(library=name).source for cls in (DINOv3, DINOv2) for name in get_args(Library)]
    assert sources == [
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "vit_base_patch16_dinov3.lvd1689m",
        "facebook/dinov2-base",
        "vit_base_patch14_dinov2.lvd142m",
    ]
    foreign = teachers["dinov3 transformers"].source
    assert "as timm saves them, or from the Hub by timm's name" in error_of(
        DINOv3(foreign, DIM, "timm")
    )


@pytest.mark.parametrize(
    "teacher",
    [
        DINOv3(),
        DINOv2(),
        DINOv3("vit_small_patch16_dinov3.lvd1689m", 384, "timm"),
        DINOv3("vit_small_patch16_dinov9", 384, "timm"),
    ],
    ids=lambda teacher: teacher.source,
)
def test_names_that_cannot_be_downloaded_say_what_to_do(teacher):
    error = error_of(teacher)
    assert f"teacher {teacher.source} must be readable by {teacher.library}" in error
    advice = {"transformers": "its licence accepted and a login, got ", "timm": "by timm's name"}
    assert advice[teacher.library] in error


@pytest.mark.parametrize("source", ["no/such/folder", "./nothing", "/nothing", "~/nothing"])
def test_a_missing_folder_is_named(source):
    folder = Path(source).expanduser() if source.startswith("~") else source
    assert f"got {folder}, which does not exist" in error_of(DINOv3(source))


def test_what_is_not_the_teacher_asked_for_is_refused(teachers):
    for library in ("transformers", "timm"):
        v3, v2 = teachers[f"dinov3 {library}"].source, teachers[f"dinov2 {library}"].source
        assert "must be a dinov3 model, got" in error_of(DINOv3(v2, DIM, library))
        assert "must be a dinov2 model, got" in error_of(DINOv2(v3, DIM, library))
        assert f"dim of teacher {v3} must be 32, as its files say, got 768." in error_of(
            DINOv3(v3, library=library)
        )


def test_another_patch_size_is_refused(tmp_path):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(hidden_size=DIM, num_attention_heads=2, num_hidden_layers=1)
    config.patch_size = 8
    with quiet():
        DINOv3ViTModel(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["patch_size"] == 8
    assert "patch_size of teacher" in error_of(DINOv3(str(tmp_path), DIM))
