"""The command cache-text: what it writes, for whom, and when anew."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pixelhdm.cache_text import cache_text
from pixelhdm.data.image_folder import ImageFolder
from pixelhdm.data.mix import Mix
from pixelhdm.data.reading.local import ReadError
from pixelhdm.data.shards import Shards
from pixelhdm.errors import UserError
from pixelhdm.models.encoders.text_encoder import TextEncoder
from tests.data.reading.servers import WebServer
from tests.text_shards import NUM, cache, captions, opened, save_shards, shards
from tests.tiny_qwen3 import save_tiny_qwen3

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny_qwen3(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards without a cache."""
    return save_shards(tmp_path_factory.mktemp("text") / "shards")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "shards"))


def files(folder: Path) -> dict[str, bytes]:
    """All cache files below a folder."""
    found = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def test_every_caption_has_the_states_that_the_encoder_gives(folder, qwen, capsys):
    cache(folder, qwen)
    encoder, live, cached = TextEncoder(str(qwen)), opened(folder), opened(folder, cached_text=True)
    texts = set()
    for index in range(NUM):
        for seed in range(12):
            text = live.load(index, seed, 8, 8).condition
            states = cached.load(index, seed, 8, 8).condition
            [expected] = encoder.encode([text], CPU)
            assert states.dtype == torch.bfloat16
            # the same float32 up to the last bit, which rounding to 8 bits may carry
            torch.testing.assert_close(states, expected, rtol=2**-7, atol=1e-6)
            texts.add(text)
    assert texts == {text.strip() for number in range(NUM) for text in captions(number)}
    report = capsys.readouterr().out
    assert f"Encoded {len(texts) + 2} texts of " in report  # a prompt, and the empty text
    assert "4 files" in report


def test_texts_encoded_one_by_one_have_the_very_states(folder, qwen):
    cache(folder, qwen, batch_size=1)
    encoder, live, cached = TextEncoder(str(qwen)), opened(folder), opened(folder, cached_text=True)
    for index in range(NUM):
        [expected] = encoder.encode([live.load(index, 0, 8, 8).condition], CPU)
        assert torch.equal(cached.load(index, 0, 8, 8).condition, expected)


def test_single_texts(folder, qwen):
    cache(folder, qwen)
    cache_text(TextEncoder(str(qwen)), [shards(folder)], ["a dog"], device="cpu")
    known = opened(folder, cached_text=True).text_cache.single_texts()
    assert list(known) == ["", "a cat", "a dog"]  # those that were there stay
    for text, states in known.items():
        [expected] = TextEncoder(str(qwen)).encode([text], CPU)
        torch.testing.assert_close(states, expected, rtol=2**-7, atol=1e-6)
    before = (folder / "prompts.text.safetensors").stat().st_mtime_ns
    cache(folder, qwen)
    assert (folder / "prompts.text.safetensors").stat().st_mtime_ns == before


def test_a_killed_run_goes_on_and_writes_the_same_bytes(folder, qwen, tmp_path, monkeypatch):
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    cache(whole, qwen)
    encode, calls = TextEncoder.encode, []

    def killing(self: TextEncoder, texts: list[str], device: torch.device) -> list[torch.Tensor]:
        calls.append(texts)
        if len(calls) == 7:  # in the second shard
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, texts, device)

    child = os.fork()
    if child == 0:
        TextEncoder.encode = killing
        cache(folder, qwen)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert "00000.text.safetensors" in files(folder)
    assert "00002.text.safetensors" not in files(folder)
    assert list(folder.glob(".*.part"))  # half a file
    written = (folder / "00000.text.safetensors").stat().st_mtime_ns
    cache(folder, qwen)
    assert files(folder) == files(whole)
    assert not list(folder.glob(".*.part"))
    assert (folder / "00000.text.safetensors").stat().st_mtime_ns == written


def test_parts_write_the_same_files_as_one(folder, qwen, tmp_path):
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    cache(whole, qwen)
    cache(folder, qwen, part="2/2")
    assert list(files(folder)) == ["00001.text.safetensors"]
    cache(folder, qwen, part="1/2")
    assert files(folder) == files(whole)
    with pytest.raises(UserError, match=r"part must be i/n .* got 3/2"):
        cache(folder, qwen, part="3/2")


def change_caption(folder: Path) -> None:
    """Another caption of the same length in one of the shards."""
    tar = next(t for t in sorted(folder.glob("*.tar")) if b"photo 8 of" in t.read_bytes())
    tar.write_bytes(tar.read_bytes().replace(b"photo 8 of", b"house 8 of"))


def reasons(source: Shards) -> list[str]:
    """What is wrong with samples."""
    found = []
    for index in range(NUM):
        try:
            source.load(index, 0, 8, 8)
        except Exception as bad:
            found.append(str(bad))
    return found


def test_a_changed_caption_is_noticed_and_encoded_anew(folder, qwen):
    cache(folder, qwen)
    before = files(folder)
    change_caption(folder)
    told = ["text: its captions have changed since main.py cache-text ran"]
    assert reasons(opened(folder, cached_text=True)) == told
    cache(folder, qwen)
    assert sum(before[name] != data for name, data in files(folder).items()) == 1
    assert reasons(opened(folder, cached_text=True)) == []


def test_another_encoder_writes_anew(folder, qwen):
    cache(folder, qwen)
    before = files(folder)
    cache(folder, qwen, TextEncoder(str(qwen), layer=-2))
    after = files(folder)
    assert all(before[name] != after[name] for name in before)
    known = opened(folder, cached_text=True).text_cache.single_texts()
    assert list(known) == ["", "a cat"]


def test_a_damaged_file_is_written_anew(folder, qwen):
    cache(folder, qwen)
    before = files(folder)
    file = folder / "00001.text.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"00001\.text\.safetensors must be a whole file"):
        opened(folder, cached_text=True)
    cache(folder, qwen)
    assert files(folder) == before


def test_a_sample_without_readable_captions_is_left_out(folder, qwen):
    cache(folder, qwen)
    tar = folder / "00001.tar"
    tar.write_bytes(tar.read_bytes().replace(b'{"captions', b'\xff"captions', 1))
    for again in (False, True):
        if again:
            cache(folder, qwen)
        [told] = reasons(opened(folder, cached_text=True))
        assert told.startswith("text: 'utf-8' codec")


def test_what_a_server_withholds_is_not_left_out(folder, qwen, monkeypatch):
    source = opened(folder)

    def silent(*arguments: object) -> bytes:
        raise ReadError("unreachable", "no answer")

    monkeypatch.setattr(source.storage, "read", silent)
    monkeypatch.setattr(Shards, "open", lambda self: None)
    with pytest.raises(UserError, match="captions must be readable, got unreachable: no answer"):
        cache_text(TextEncoder(str(qwen)), [source], [], device="cpu", part="2/2")
    assert not files(folder)


# Places -------------------------------------------------------------------------------------------


def test_a_folder_of_their_own(folder, qwen, tmp_path):
    other = shutil.copytree(folder, tmp_path / "more")
    mix = Mix([shards(folder), shards(other), shards(folder)])
    cache_text(TextEncoder(str(qwen)), [mix], [], str(tmp_path / "states"), device="cpu")
    names = ["00000", "00001", "00002", "prompts"]
    expected = [f"{at}/{name}.text.safetensors" for at in ("more", "shards") for name in names]
    assert list(files(tmp_path / "states")) == expected
    assert not files(folder)
    source = opened(folder, cached_text=True, text_folder=str(tmp_path / "states"))
    assert len(source.load(0, 0, 8, 8).condition)


def test_shards_on_a_server_need_a_folder(folder, qwen, tmp_path):
    remote = {f"/a/{file.name}": file.read_bytes() for file in folder.iterdir() if file.is_file()}
    with WebServer(remote) as server:
        path = f"{server.url}/a/{{00000..00002}}.tar"
        with pytest.raises(UserError, match=r"text_folder must be a local folder, got http://"):
            cache(path, qwen)
        cache_text(TextEncoder(str(qwen)), [shards(path)], [], str(tmp_path / "c"), device="cpu")
        source = opened(path, cached_text=True, text_folder=str(tmp_path / "c"))
        assert reasons(source) == []
    assert len(files(tmp_path / "c/a")) == 4


def test_shards_of_the_same_name_need_folders_of_their_own(folder, qwen, tmp_path):
    other = shutil.copytree(folder, tmp_path / "more/shards")
    mix = Mix([shards(folder), shards(other)])
    with pytest.raises(UserError, match="text_folder must be another for shards of the same name"):
        cache_text(TextEncoder(str(qwen)), [mix], [], str(tmp_path / "states"), device="cpu")


def test_sources_without_captions(folder, qwen, tmp_path):
    sources = [Shards(str(folder), "none"), ImageFolder(str(tmp_path))]
    with pytest.raises(UserError, match="condition: caption, got ImageFolder, Shards without"):
        cache_text(TextEncoder(str(qwen)), sources, [], device="cpu")


def test_wrong_settings(folder, qwen):
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        cache(folder, qwen, batch_size=0)
    with pytest.raises(UserError, match="device must be one that torch can use, got toaster"):
        cache(folder, qwen, device="toaster")


def test_the_files_are_safetensors(folder, qwen):
    cache(folder, qwen)
    source = opened(folder, cached_text=True)
    rows = dict.fromkeys(source.index.shards, 0)
    whole = {shard: load_file(shard[:-4] + ".text.safetensors") for shard in rows}
    each = {s: iter(t["states"].split(t["lengths"].tolist())) for s, t in whole.items()}
    for index in range(NUM):
        shard = source.index.shards[source.index.shard[index]]
        texts = source.captions(index)
        assert whole[shard]["counts"][rows[shard]] == len(texts)
        rows[shard] += 1
        own = int(source.index.shard[index])
        for number in range(len(texts)):
            states = source.text_cache.states(own, index, texts, number)
            assert torch.equal(states, next(each[shard]))
    assert all(next(rest, None) is None for rest in each.values())
