"""Folders of exported models: what they hold, and what they may ask for."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pixelhdm.errors import UserError
from pixelhdm.inference.exports.exported import is_exported, load_model
from pixelhdm.pipeline import PixelHDMPipeline
from tests.inference.models import CLASSES, TEXTS, model_of, write_run
from tests.tiny_qwen3 import save_tiny_qwen3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported model of classes."""
    folder = tmp_path_factory.mktemp("exported")
    pipe = PixelHDMPipeline.from_checkpoint(write_run(folder / "run", CLASSES), device="cpu")
    pipe.save_pretrained(folder / "out")
    return folder / "out"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "out"))


def change(folder: Path, **parts: object) -> None:
    """Change parts of config.json's model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model"] |= parts
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_the_model_alone_is_read_with_the_average(exported):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = load_model(exported)
    assert torch.equal(torch.rand(1), expected)  # the caller's random numbers are left alone
    for part in ("network", "conditioner"):
        wanted = getattr(model_of(CLASSES), part).state_dict()
        for key, value in getattr(model, part).state_dict().items():
            assert torch.equal(value, wanted[key]), key
    assert not model.network.training
    assert not any(value.requires_grad for value in model.network.parameters())
    assert is_exported(str(exported))
    assert not is_exported(str(exported.parent))


def test_weights_are_readable_by_all_and_need_no_pixelhdm(exported):
    file = exported / "model.safetensors"
    assert load_file(file).keys() == {
        f"{part}.{key}"
        for part in ("network", "conditioner")
        for key in getattr(model_of(CLASSES), part).state_dict()
    }
    assert file.stat().st_mode == (exported / "config.json").stat().st_mode


def test_a_config_imports_nothing_that_was_not_imported(folder, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    nested = {"class_path": "HeunSampler", "init_args": {"num_steps": "stranger.Thing"}}
    for part, settings in (
        ("network", {"class_path": "stranger.Network"}),
        ("conditioner", {"class_path": "ClassConditioner", "init_args": {"a": ["stranger.b"]}}),
        ("sampler", nested),
    ):
        (copy := tmp_path / part).mkdir()
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        change(copy, **{part: settings})
        with pytest.raises(UserError, match=r"If you trust it, import stranger first\."):
            PixelHDMPipeline.from_pretrained(copy, device="cpu")
    assert "stranger" not in sys.modules


def test_a_config_names_classes_alone(folder):
    for path, words in (
        ("os.system", "got no class of this name in os"),
        ("pixelhdm.checkpoints.read_checkpoint", "got no class of this name"),
        ("pixelhdm.nothing.Here", "got: No module named 'pixelhdm.nothing'"),
        ("json.JSONEncoder", "conditioner"),
    ):
        change(folder, conditioner={"class_path": path})
        with pytest.raises(UserError, match=words):
            load_model(folder)


def test_classes_of_imported_modules_are_taken(tmp_path):
    pipe = PixelHDMPipeline.from_checkpoint(write_run(tmp_path / "run", TEXTS), device="cpu")
    pipe.save_pretrained(tmp_path / "out")
    assert type(load_model(tmp_path / "out").conditioner).__name__ == "HashConditioner"


def test_damaged_configs_are_told_in_a_sentence(folder):
    change(folder, network={"class_path": "PixelHDM", "init_args": {"hidden_dim": 64}})
    with pytest.raises(UserError, match=r"does not fit the config.*another network size"):
        load_model(folder)
    for text in ("{}", "torn", '{"model": {"network": "os.system"}, "height": 8, "width": 8}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json must be the config of a model that"):
            load_model(folder)


def test_torn_or_other_weights_are_told_in_a_sentence(folder):
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="must hold the weights of an exported model, got Safetens"):
        load_model(folder)


def test_other_files_are_not_overwritten(exported, tmp_path):
    pipe = PixelHDMPipeline.from_pretrained(exported, device="cpu")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="which holds other files"):
        pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="which is a file"):
        pipe.save_pretrained(tmp_path / "notes.txt")
    pipe.save_pretrained(tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    pipe.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.txt", "out"]


@pytest.mark.parametrize("copies", [True, False])
def test_a_text_encoder_of_this_machine_comes_along(tmp_path, copies):
    source = save_tiny_qwen3(tmp_path / "encoder")
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    encoder = {"class_path": "TextConditioner", "init_args": {"source": str(source)}}
    run = write_run(tmp_path / "run", encoder)
    pipe = PixelHDMPipeline.from_checkpoint(run, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    expected = pipe("a red cat", seed=0, output_type="tensor").images
    pipe.save_pretrained(tmp_path / "out", copies_text_encoder=copies)
    text = (tmp_path / "out/config.json").read_text(encoding="utf-8")
    assert (str(tmp_path) in text) is not copies
    if copies:
        assert not (tmp_path / "out/text_encoder/pytorch_model.bin").exists()
        source.rename(tmp_path / "gone")
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    again = PixelHDMPipeline.from_pretrained(moved, device="cpu")
    again.set_progress_bar_config(disable=True)
    again.text_encoder_offload()
    for _ in range(2):
        drawn = again("a red cat", seed=0, output_type="tensor").images
        assert torch.equal(drawn, expected)
    other = PixelHDMPipeline.from_pretrained(moved, device="cpu", text_encoder="me/encoder")
    assert (other.model.conditioner.encoder.source, other.is_text) == ("me/encoder", True)
