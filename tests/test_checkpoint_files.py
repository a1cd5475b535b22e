"""Checkpoints in folders, as processes of any number have left them."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelhdm.checkpoint_files import META, CheckpointFolder, shard_name
from pixelhdm.checkpoints import (
    AtomicCheckpointIO,
    checkpoints_of,
    delete,
    last_checkpoint,
    read_checkpoint,
    remove_leftovers,
    trained_file,
)
from pixelhdm.errors import UserError
from pixelhdm.sharded_saving import together
from tests.stubs import randn

STATE = {"network.a": randn(7, 3), "network.b": randn(1, 4), "network.c": randn(5)}
MOMENTS = {"step": torch.tensor(4.0), "exp_avg": randn(7, 3, seed=5)}


def meta(value: torch.Tensor) -> torch.Tensor:
    """Its shape and type alone."""
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def write(path: Path, processes: int) -> Path:
    """Write a folder as so many processes would, with an optimizer's state of one weight."""
    path.mkdir(parents=True)
    split = {f"state_dict/{key}": value for key, value in STATE.items()}
    split["optimizer_states/0/state/0/exp_avg"] = MOMENTS["exp_avg"]
    for rank in range(processes):
        own = {}
        for key, value in split.items():
            parts = value.chunk(processes)  # later processes may have nothing
            own[key] = (parts[rank] if rank < len(parts) else value[:0]).clone()
        torch.save(own, path / shard_name(rank))
    state = {0: MOMENTS | {"exp_avg": meta(MOMENTS["exp_avg"])}}
    content = {
        "state_dict": {key: meta(value) for key, value in STATE.items()},
        "optimizer_states": [{"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "pytorch-lightning_version": "2.6.6",
        "global_step": 10,
        "loops": {},
        "callbacks": {"RandomState": torch.arange(3)},
    }
    torch.save({"num_shards": processes, "content": content}, path / META)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder that three processes have written."""
    return write(tmp_path / "checkpoints/step_00000010.ckpt", 3)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_a_folder_is_read_as_a_file_whatever_the_number_of_processes(tmp_path, processes):
    path = write(tmp_path / "step_00000010.ckpt", processes)
    for read in (read_checkpoint(path), AtomicCheckpointIO().load_checkpoint(path)):
        assert read["state_dict"].keys() == STATE.keys()
        assert all(torch.equal(read["state_dict"][key], STATE[key]) for key in STATE)
        (state,) = read["optimizer_states"]
        assert state["param_groups"] == [{"lr": 0.1, "params": [0]}]
        assert all(torch.equal(state["state"][0][key], MOMENTS[key]) for key in MOMENTS)
        assert torch.equal(read["callbacks"]["RandomState"], torch.arange(3))


def test_rows_are_those_of_the_whole_tensor(folder):
    stored, whole = CheckpointFolder(folder), STATE["network.a"]
    for start in range(8):
        for stop in range(start, 8):
            rows = stored.rows("state_dict/network.a", meta(whole), start, stop)
            assert torch.equal(rows, whole[start:stop])


def truncate(file: Path) -> None:
    """Cut off half of a file."""
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    """Change one bit of a tensor."""
    data = bytearray(file.read_bytes())
    data[data.index(STATE["network.c"][:1].numpy().tobytes())] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", [META, shard_name(0), shard_name(2)])
@pytest.mark.parametrize("harm", [Path.unlink, truncate])
def test_a_torn_folder_is_a_sentence(folder, name, harm):
    harm(folder / name)
    expected = rf"without {name}" if harm is Path.unlink else r"\(.+\)"
    with pytest.raises(UserError, match=rf"step_00000010\.ckpt is torn .*{expected}"):
        read_checkpoint(folder)


def test_one_wrong_bit_and_lost_rows_are_noticed(folder):
    flip(folder / shard_name(0))
    with pytest.raises(UserError, match=r"torn or not a checkpoint .*wrong checksum"):
        read_checkpoint(folder)
    torch.save({}, folder / shard_name(0))
    with pytest.raises(UserError, match=r"torn or not a checkpoint \(4 of 7 rows of"):
        read_checkpoint(folder)


class Harmful:
    """Something that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("name", [META, shard_name(1)])
def test_no_code_in_a_folder_is_run(folder, name, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert b"harmed" in pickle.dumps(Harmful())
    torch.save(Harmful(), folder / name)
    with pytest.raises(UserError, match=r"plain values and tensors alone, got .*mkdir"):
        read_checkpoint(folder)
    assert not Path("harmed").exists()


def test_a_folder_is_found_and_deleted_as_a_file_is(folder, tmp_path):
    AtomicCheckpointIO().save_checkpoint({"state_dict": STATE}, folder.with_name("step_5.ckpt"))
    assert trained_file(folder) == trained_file(tmp_path) == last_checkpoint(tmp_path) == folder
    assert len(checkpoints_of(tmp_path)) == 2
    delete(folder)
    assert [entry.name for entry in folder.parent.iterdir()] == ["step_5.ckpt"]
    write(folder.with_name(".step_00000012.ckpt.part"), 2)  # of a killed run
    remove_leftovers(tmp_path)
    assert [entry.name for entry in folder.parent.iterdir()] == ["step_5.ckpt"]


def test_another_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint must be a file or a folder .*another folder"):
        read_checkpoint(tmp_path)


def test_what_fails_in_one_process_is_a_sentence_for_all():
    def fail() -> None:
        raise OSError("no space left")

    with pytest.raises(UserError, match=r"^it was: no space left$"):
        together(fail, lambda reason: f"it was: {reason}")
    assert together(lambda: 5) == 5
