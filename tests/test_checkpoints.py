import sys
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
import torch

from pixelhdm.checkpoints import (
    AtomicCheckpointIO,
    check_new_run,
    check_readable,
    check_whole,
    choose_weights,
    last_checkpoint,
    read_checkpoint,
    remove_leftovers,
    step_of,
    trained_file,
)
from pixelhdm.errors import UserError
from tests.stubs import randn

STATE = {"network.a": randn(40, 30), "network.b": randn(7), "conditioner.c": randn(2, 3)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints/step_00000010.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": STATE, "global_step": 10}, path)
    return path


def test_what_is_saved_is_read(file):
    read = read_checkpoint(file)
    assert read["global_step"] == 10
    assert read["state_dict"].keys() == STATE.keys()
    assert all(torch.equal(read["state_dict"][key], STATE[key]) for key in STATE)
    with pytest.raises(UserError, match=r"whole one of a run, got one without .*optimizer_states"):
        AtomicCheckpointIO().load_checkpoint(str(file))
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_failed_save_leaves_the_old_checkpoint(file):
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        AtomicCheckpointIO().save_checkpoint({"state_dict": STATE, "x": lambda: 0}, file)
    assert read_checkpoint(file)["global_step"] == 10
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_torn_file_is_never_read(file):
    data = file.read_bytes()
    for keep in sorted({*range(70), *np.linspace(70, len(data) - 1, 150).astype(int)}):
        file.write_bytes(data[:keep])
        with pytest.raises(UserError, match=r"step_00000010\.ckpt is torn or not a checkpoint"):
            read_checkpoint(file)
    file.write_bytes(data)
    read_checkpoint(file)


@pytest.mark.parametrize("start", [0, 0.3, 0.7])
def test_a_file_with_a_hole_of_zeros_is_never_read_silently(file, start):
    """What a file system leaves of a file whose blocks never reached the disk."""
    data = bytearray(file.read_bytes())
    data[int(start * len(data)) :] = bytes(len(data) - int(start * len(data)))
    file.write_bytes(data)
    with pytest.raises(UserError, match="torn or not a checkpoint"):
        read_checkpoint(file)


@pytest.mark.parametrize("damage", ["lost block", "one bit"])
def test_damage_inside_a_tensor_is_noticed(tmp_path, damage):
    """The file has its length, and the archive's checksums tell that it is not whole."""
    file = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": randn(100, 100)}}, file)
    data, middle = bytearray(file.read_bytes()), 20_000
    if damage == "one bit":
        data[middle] ^= 1
    else:
        data[middle : middle + 4096] = bytes(4096)
    file.write_bytes(data)
    with pytest.raises(UserError, match="torn or not a checkpoint"):
        read_checkpoint(file)


@pytest.mark.parametrize("content", [b"hello\n", b"\x80\x02}q\x00.", b"\x89PNG\r\n", b"{}", b"PK"])
def test_another_file_is_named(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.ckpt"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_code_inside_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Evil()}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="torn or not a checkpoint"):
        read_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"weights": STATE}, [STATE], STATE["network.a"]])
def test_a_file_without_a_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="must hold a state_dict"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(("path", "words"), [("nothing.ckpt", "does not exist"), (".", "a folder")])
def test_a_missing_file_is_named(tmp_path, path, words):
    with pytest.raises(UserError, match=words):
        read_checkpoint(tmp_path / path)


def test_last_checkpoint_is_the_one_with_the_most_steps(tmp_path):
    folder = tmp_path / "checkpoints"
    with pytest.raises(UserError, match=r"has none\. Start without --ckpt_path"):
        last_checkpoint(tmp_path)
    folder.mkdir()
    names = ["step_00000900.ckpt", "step_100000000.ckpt", "step_00001000.ckpt", "mine.ckpt"]
    for name in [*names, ".step_999999999.ckpt.12.part", "step_999999999.png"]:
        (folder / name).touch()
    assert last_checkpoint(tmp_path).name == "step_100000000.ckpt"
    remove_leftovers(tmp_path)
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(
        [*names, "step_999999999.png"]
    )
    assert [step_of(folder / name) for name in names] == [900, 100_000_000, 1000, -1]


def test_a_new_run_needs_a_folder_without_checkpoints(tmp_path):
    check_new_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    check_new_run(tmp_path)
    (tmp_path / "checkpoints/step_00000004.ckpt").touch()
    with pytest.raises(UserError, match=r"holds step_00000004\.ckpt\. Go on with --ckpt_path last"):
        check_new_run(tmp_path)


def test_choosing_weights():
    average = {f"ema.{key}": value + 1 for key, value in STATE.items()}
    stored = STATE | average | {"loss.d": randn(1)}
    raw, ema = choose_weights(stored, "raw", "x"), choose_weights(stored, "ema", "x")
    assert raw.keys() == ema.keys() == STATE.keys() | {"loss.d"}
    for key in STATE:
        assert torch.equal(raw[key], STATE[key])
        assert torch.equal(ema[key], STATE[key] + 1)
    with pytest.raises(UserError, match=r"x must hold an EMA average, got none\. Use .* raw"):
        choose_weights(STATE, "ema", "x")


def test_an_average_that_lacks_a_weight_is_not_filled_up():
    average = {"ema.network.a": STATE["network.a"]}
    chosen = choose_weights(STATE | average | {"loss.d": randn(1)}, "ema", "x")
    assert chosen.keys() == {"network.a", "loss.d"}


def test_a_trained_file_is_itself_or_the_runs_with_the_most_steps(tmp_path):
    with pytest.raises(UserError, match=r"init_from must be .* got \S+, which has none in check"):
        trained_file(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for step in (9, 10, 2):
        (tmp_path / f"checkpoints/step_{step:08d}.ckpt").touch()
    last = tmp_path / "checkpoints/step_00000010.ckpt"
    assert trained_file(tmp_path) == trained_file(str(last)) == last
    with pytest.raises(UserError, match="with one, got nothing, which does not exist"):
        trained_file("nothing")


def test_profiles_are_never_chosen():
    average = {f"ema.{key}": value + 1 for key, value in STATE.items()}
    profiles = {f"profiles.0_05.{key}": value + 2 for key, value in STATE.items()}
    for weights in ("raw", "ema"):
        chosen = choose_weights(STATE | average | profiles, weights, "x")
        assert chosen.keys() == STATE.keys()
        assert all(torch.equal(chosen[key], STATE[key] + (weights == "ema")) for key in STATE)


def test_a_reconstruction_is_loaded_and_no_run_goes_on_from_it(tmp_path):
    content = {"state_dict": STATE, "global_step": 1, "pytorch-lightning_version": "2.6.0"}
    AtomicCheckpointIO().save_checkpoint(content | {"reconstruction": {}}, tmp_path / "x.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(
        UserError, match=r"got one without loops, optimizer_states, callbacks, training\."
    ):
        check_whole(loaded, "x.ckpt")


def test_what_no_checkpoint_is_read_with_is_told_before_and_after(tmp_path):
    check_readable({"best": 0.5, "seen": [torch.ones(2)], "name": None}, "Best")
    state = {"best": np.float64(0.5)}
    with pytest.raises(
        UserError, match=r"the state of Best must be plain .*got numpy\S*\.scalar, "
    ):
        check_readable(state, "Best")
    torch.save({"state_dict": STATE, "callbacks": state}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt must hold plain .*got numpy\S*\.scalar, "):
        read_checkpoint(tmp_path / "x.ckpt")


def test_states_of_torchao_need_its_package(tmp_path, monkeypatch):
    """What torch says of its tensors before torchao is imported."""

    def refuse(*_: object, **__: object) -> None:
        raise UnpicklingError("Unsupported global: GLOBAL torchao.optim.OptimState8bit")

    torch.save({"state_dict": STATE}, tmp_path / "x.ckpt")
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"must be read with torchao.*pip install torchao"):
        read_checkpoint(tmp_path / "x.ckpt")
