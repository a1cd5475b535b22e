"""Which copies of a network a file holds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixelhdm.converting.files import read_copies
from tests.published import jit
from tests.published.files import prefixed

STATE, OTHER = jit.make_state(seed=0), jit.make_state(seed=1)
NET, NET_OTHER = (prefixed(state, "net.") for state in (STATE, OTHER))


def same(copy: dict[str, torch.Tensor] | None, state: dict[str, torch.Tensor] | None) -> bool:
    if copy is None or state is None:
        return copy is state
    return copy.keys() == state.keys() and all(torch.equal(copy[k], state[k]) for k in state)


@pytest.mark.parametrize(
    ("content", "raw", "ema"),
    [
        ({"model": NET, "model_ema1": NET_OTHER, "epoch": 3}, STATE, OTHER),
        ({"model": NET, "epoch": 3}, STATE, None),
        ({"model_ema1": NET_OTHER}, None, OTHER),
        ({"model": NET, "model_ema1": {}}, STATE, None),
        ({"model": NET, "model_ema1": None}, STATE, None),
        (NET, STATE, None),
        (prefixed(NET, "module."), STATE, None),
    ],
)
def test_jit_files_with_one_copy_or_both(tmp_path: Path, content, raw, ema):
    torch.save(content, tmp_path / "jit.pth")
    copies = read_copies(tmp_path / "jit.pth")
    assert same(copies.raw, raw)
    assert same(copies.ema, ema)


def test_its_tensors_as_safetensors(tmp_path: Path):
    save_file({key: value.contiguous() for key, value in NET.items()}, tmp_path / "net.safetensors")
    assert same(read_copies(tmp_path / "net.safetensors").raw, STATE)
