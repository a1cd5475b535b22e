"""Files of text states: what is written is what safetensors and we read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixelhdm.data.reading.local import ReadError
from pixelhdm.data.reading.storage import Storage
from pixelhdm.data.text_file import TextFile, read_text_file, states_of, write_text_file
from pixelhdm.errors import UserError

WIDTH = 5
ABOUT = {"settings": {"layer": -2, "template": 'a "{}"\né'}, "texts": ["two\nlines", "\ud800"]}


def states(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, WIDTH, generator=generator).bfloat16() for n in lengths]


def write(path: Path, lengths: list[int], about: dict | None = None) -> TextFile:
    crc32 = np.array([2**32 - 1, 0, 7], np.uint32)
    return write_text_file(
        path, about or ABOUT, {"crc32": crc32}, len(lengths), WIDTH, iter(states(lengths))
    )


@pytest.mark.parametrize("lengths", [[3, 1, 7, 0, 2], [], [1]])
@pytest.mark.parametrize("about", [ABOUT, {"texts": ["long " * 3000]}])
def test_round_trip(tmp_path, lengths, about):
    path = tmp_path / "a.text.safetensors"
    written, found = write(path, lengths, about), read_text_file(Storage(), str(path))
    for file in (written, found):
        assert file.about == about
        assert file.num_tokens == sum(lengths)
        assert file.num_bytes == path.stat().st_size
        assert file.arrays["lengths"].tolist() == lengths
        assert file.arrays["crc32"].tolist() == [2**32 - 1, 0, 7]
        assert (file.path, file.width) == (str(path), WIDTH)
    whole = load_file(path)
    assert whole["states"].dtype == torch.bfloat16
    assert torch.equal(whole["states"], torch.cat([*states(lengths), torch.empty(0, WIDTH)]))
    assert whole["lengths"].tolist() == lengths
    with safe_open(path, "pt") as file:
        assert "text states of PixelHDM" in file.metadata()["kind"]
    data = path.read_bytes()[found.start :]
    assert torch.equal(states_of(data, WIDTH), whole["states"])


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.text.safetensors"
    write(path, [1, 2])
    before = path.read_bytes()

    def failing():
        yield states([1])[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_text_file(path, {}, {}, 2, WIDTH, failing())
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.text.safetensors"
    with pytest.raises(ReadError, match="does not exist"):
        read_text_file(Storage(), str(path))
    whole = write(path, [4, 4]) and path.read_bytes()
    others = [b"", b"x" * 9000, whole[:-1], whole + b"0", whole[:2000]]
    save_file({"states": torch.zeros(600, 5)}, path)
    others += [path.read_bytes(), whole.replace(b"version 1", b"version 9")]
    for data in others:
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.text\.safetensors must be a whole file .* again"):
            read_text_file(Storage(), str(path))
