"""What cannot be converted is told in a sentence, and nothing is left behind."""

from fractions import Fraction
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pixelhdm.convert import convert
from pixelhdm.errors import UserError
from pixelhdm.files import TEMPORARY
from tests.published import files, jit, pixeldit
from tests.published.parts import State

FIRST = "patch_blocks.0."


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Convert what must be refused; the sentence. No folder appears."""
    monkeypatch.chdir(tmp_path)

    def call(family: str, file: str | Path, **settings: object) -> str:
        before = sorted(Path().rglob("*"))
        with pytest.raises(UserError) as error:
            convert(family, str(file), **({"out": "out"} | settings))
        assert sorted(Path().rglob("*")) == before
        return str(error.value)

    return call


def pixeldit_file(change) -> Path:
    """A PixelDiT file whose average was changed."""
    state = pixeldit.make_state()
    change(state)
    return files.save_lightning(Path("xl.ckpt"), pixeldit.make_state(), state)


def test_tensors_that_do_not_fit_are_named(refused):
    def lack(state: State) -> None:
        for name in [name for name in state if name.startswith(FIRST + "mlp")]:
            del state[name]
        del state["final_layer.norm.weight"]

    def add(state: State) -> None:
        state["extra.weight"] = torch.zeros(1)

    def bend(state: State) -> None:
        state[FIRST + "norm1.weight"] = torch.zeros(31)

    text = refused("pixeldit", pixeldit_file(lack))
    two = ", ".join(f"{FIRST}mlp.{name}.weight" for name in ("w1", "w3"))
    assert f"got 4 missing (final_layer.norm.weight, {two}, …). Download" in text
    assert "got 1 unknown (extra.weight)" in refused("pixeldit", pixeldit_file(add))
    text = refused("pixeldit", pixeldit_file(bend))
    assert "1 of other shapes (patch_blocks.0.norm1.weight (31,) instead of (32,))" in text
    raw = pixeldit.make_state() | {"new": torch.zeros(1)}  # the copy that is not drawn with
    assert "1 unknown (new)" in refused(
        "pixeldit", files.save_lightning(Path("raw.ckpt"), raw, pixeldit.make_state())
    )


def test_a_part_of_a_file_that_tells_no_size_is_refused(refused):
    def lack(state: State) -> None:
        del state["s_embedder.proj.weight"]

    assert "must hold s_embedder.proj.weight, which" in refused("pixeldit", pixeldit_file(lack))


def test_positions_of_their_own_are_refused(refused):
    state = jit.make_state()
    state["pos_embed"] = state["pos_embed"] + 1e-3
    file = files.save_jit(Path("jit.pth"), jit.make_state(), state)
    assert "pos_embed of JiT in" in refused("jit", file, in_context_start=1)


def test_a_depth_that_nobody_published_asks_where_the_class_begins(refused):
    file = files.save_jit(Path("jit.pth"), jit.make_state(), jit.make_state())
    assert "in_context_start must be given for a JiT of 4 blocks" in refused("jit", file)


def test_another_family_is_told(refused):
    text = jit.make_state(jit.Sizes(text_width=8))
    dual = pixeldit.make_state(pixeldit.Sizes(text_width=8))
    made = {
        "pixeldit": pixeldit_file(lambda state: None),
        "pixeldit_t2i": files.save_pixeldit_t2i(Path("v1.pth"), dual),
        "jit": files.save_jit(Path("jit.pth"), jit.make_state(), jit.make_state()),
        "pixelgen": files.save_lightning(Path("L.ckpt"), jit.make_state(), jit.make_state()),
        "pixelgen ": files.save_lightning(Path("T2I.ckpt"), text, text),
    }
    for right, file in made.items():
        for wrong in {name.strip() for name in made} - {right.strip()}:
            assert f"Give --from {right.strip()}." in refused(wrong, file)
    torch.save({"state_dict": {"denoiser.dec_net.cond_embed.weight": torch.ones(1)}}, "deco.ckpt")
    assert "with DeCo's network, which is not converted" in refused("pixelgen", "deco.ckpt")
    torch.save({"state_dict": {"other": torch.ones(1)}}, "other.ckpt")
    assert "tensors of another one (other, …)" in refused("jit", "other.ckpt")


def test_files_that_cannot_be_read_are_told(refused):
    file = pixeldit_file(lambda state: None)
    whole = file.read_bytes()
    Path("torn.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "must be a whole file" in refused("pixeldit", "torn.ckpt")
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    Path("flipped.ckpt").write_bytes(flipped)
    assert "wrong checksum" in refused("pixeldit", "flipped.ckpt")
    Path("text.pth").write_text("not found")
    assert "text.pth: no such format" in refused("jit", "text.pth")
    Path("torn.safetensors").write_bytes(b"\0" * 20)
    assert "must be a whole file" in refused("jit", "torn.safetensors")
    assert "nowhere, which does not exist" in refused("jit", "nowhere")
    torch.save({"state_dict": {}, "by": Fraction(1, 2)}, "code.pth")
    assert "got fractions.Fraction in code.pth, which cannot" in refused("jit", "code.pth")
    torch.save({"state_dict": {}}, "empty.pth")
    assert "must hold the weights of a network" in refused("jit", "empty.pth")
    torch.save([torch.ones(1)], "list.pth")
    assert "with a list" in refused("jit", "list.pth")


def test_a_folder_with_files_and_wrong_settings_are_refused(refused):
    file = pixeldit_file(lambda state: None)
    Path("full").mkdir()
    Path("full/photo.png").touch()
    for settings, words in (
        ({"out": "full"}, "out must be a new or empty folder, got full, which holds files."),
        ({"out": "xl.ckpt"}, "got xl.ckpt, which is a file."),
        ({"image_size": 10}, "image_size must be a multiple of the patch size 4, got 10."),
        ({"text_encoder": "here"}, "text_encoder must be empty for a network of classes"),
    ):
        assert words in refused("pixeldit", file, **settings)


def test_safetensors_and_the_wrappers_of_compilation_are_read(tmp_path):
    state = pixeldit.make_state()
    names = {
        f"ema_denoiser._orig_mod.{key.replace('blocks.0.', 'blocks.0._orig_mod.')}": value
        for key, value in state.items()
    }
    safetensors.torch.save_file(names, tmp_path / "xl.safetensors")
    (tmp_path / "out").mkdir()  # empty
    convert("pixeldit", str(tmp_path / "xl.safetensors"), str(tmp_path / "out"))
    assert (tmp_path / "out/checkpoints/step_00000000.ckpt").is_file()


def test_numbers_that_are_not_real_are_refused(refused):
    def count(state: State) -> None:
        state[FIRST + "norm1.weight"] = torch.ones(32, dtype=torch.long)

    text = refused("pixeldit", pixeldit_file(count))
    assert "patch_blocks.0.norm1.weight of PixelDiT" in text
    assert "must hold real numbers, got torch.int64" in text


def test_a_setting_of_jit_is_refused_for_others(refused):
    file = pixeldit_file(lambda state: None)
    text = refused("pixeldit", file, in_context_start=3)
    assert text == "in_context_start must be empty for PixelDiT, got 3."


def test_an_empty_file_is_told(refused):
    Path("zero.ckpt").touch()
    text = refused("pixeldit", "zero.ckpt")
    assert text == "ckpt must be a file, got zero.ckpt, which is empty. Download it first."


def test_what_a_killed_command_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    left = Path(f".out{TEMPORARY}")
    left.mkdir()
    (left / "half").touch()
    convert("pixeldit", str(pixeldit_file(lambda state: None)), "out")
    assert not left.exists()
    assert Path("out/config.yaml").is_file()
