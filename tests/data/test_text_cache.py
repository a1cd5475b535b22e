"""Cached text states as training reads them, and what is refused."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelhdm.data.batches import Filling, Slots, load_batch, packed, unpacked
from pixelhdm.data.mix import Mix
from pixelhdm.data.reading.storage import Storage
from pixelhdm.data.shards import Shards
from pixelhdm.data.source import BadSample
from pixelhdm.data.text_cache import sums
from pixelhdm.data.text_places import beside, text_path
from pixelhdm.errors import UserError
from pixelhdm.models.encoders.text_encoder import TextEncoder
from tests.data.reading.servers import WebServer
from tests.text_shards import NUM, cache, opened, save_shards, shards
from tests.tiny_qwen3 import save_tiny_qwen3


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny_qwen3(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, qwen: Path) -> Path:
    """Three shards with their cache."""
    folder = save_shards(tmp_path_factory.mktemp("text") / "shards")
    cache(folder, qwen)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def all_states(source) -> list[torch.Tensor]:
    return [source.load(index, index, 8, 8).condition for index in range(NUM)]


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_a_sample_takes_one_small_read_more(whole, monkeypatch):
    source, reads, read = opened(whole, cached_text=True), [], Storage.read

    def counted(self: Storage, path: str, offset: int, length: int) -> bytes:
        reads.append((path, length))
        return read(self, path, offset, length)

    monkeypatch.setattr(Storage, "read", counted)
    for index in range(NUM):
        states = source.load(index, 0, 8, 8).condition
        (image, _), (text, size) = reads[-2:]
        assert (image[-4:], text) == (".tar", image[:-4] + ".text.safetensors")
        assert size == states.nbytes
    assert len(reads) == 2 * NUM


def test_images_and_order_are_those_of_live_text(whole):
    live, cached = opened(whole), opened(whole, cached_text=True)
    assert live.fingerprint() == cached.fingerprint()
    for index in range(NUM):
        images = [source.load(index, 3, 8, 8).image for source in (live, cached)]
        assert np.array_equal(*images)


def test_other_processes_get_the_same(whole):
    source = opened(whole, cached_text=True)
    assert same(all_states(pickle.loads(pickle.dumps(source))), all_states(source))


def test_a_batch_travels_between_processes_as_one_tensor(whole):
    source = opened(whole, cached_text=True)
    batch = load_batch(source, Slots(0, 0, (8, 8), 8, np.arange(6), np.arange(6)))
    sent = packed(batch)
    assert not any(isinstance(own, torch.Tensor) for own in sent["condition"])
    received = unpacked(pickle.loads(pickle.dumps(sent)))
    assert received.keys() == batch.keys()
    assert received["condition"][6:] == batch["condition"][6:] == ["", ""]
    assert same(received["condition"][:6], batch["condition"][:6])


def test_packing_leaves_other_batches_alone():
    for condition in (torch.arange(3), ["a", "", "b"], ["", ""]):
        batch = {"condition": condition}
        assert unpacked(packed(batch))["condition"] is condition


def test_mix(whole):
    source = Mix([shards(whole), shards(whole, cached_text=True)])
    source.open()
    live, cached = source.load(4, 0, 8, 8).condition, source.load(NUM + 4, 0, 8, 8).condition
    assert isinstance(live, str)
    assert cached.dtype == torch.bfloat16
    assert [leaf.cached_text for leaf in source.leaves()] == [False, True]


def test_from_a_server(whole):
    files = {f"/a/{file.name}": file.read_bytes() for file in whole.iterdir() if file.is_file()}
    with WebServer(files) as server:
        source = opened(f"{server.url}/a/{{00000..00002}}.tar", cached_text=True)
        assert same(all_states(source), all_states(opened(whole, cached_text=True)))
        assert list(source.text_cache.single_texts()) == ["", "a cat"]


@pytest.mark.parametrize(
    ("shard", "folder", "path"),
    [
        ("a/b/7.tar", None, "a/b/7.text.safetensors"),
        ("7.tar", None, "7.text.safetensors"),
        ("/a/b/7.tar", "/c/", "/c/b/7.text.safetensors"),
        ("7.tar", "c", "c/7.text.safetensors"),
        ("../7.tar", "c", "c/7.text.safetensors"),
        ("s3://a/b/7.tar", None, "s3://a/b/7.text.safetensors"),
        ("s3://a/b/7.tar", "c", "c/b/7.text.safetensors"),
        ("a/b/7.tar", "s3://c", "s3://c/b/7.text.safetensors"),
        ("https://a/b/7.tar?key=1/2", None, "https://a/b/7.text.safetensors?key=1/2"),
        ("https://a/b/7.tar?key=1/2", "c", "c/b/7.text.safetensors"),
    ],
)
def test_places(shard, folder, path):
    assert text_path(shard, folder) == path
    assert beside(shard, "x", folder) == path.replace("/7.", "/x.").replace("7.text", "x.text")


def test_sums_take_as_few_bytes_as_they_can():
    assert sums([np.array([2, 3]), np.array([4])]).tolist() == [0, 2, 5, 9]
    assert sums([np.array([2**31, 2**31 - 1])]).dtype == np.uint32
    assert sums([np.array([2**31, 2**31])]).tolist()[-1] == 2**32


# Refusals -----------------------------------------------------------------------------------------


def test_a_missing_file(folder):
    (folder / "00001.text.safetensors").unlink()
    with pytest.raises(UserError, match=r"3 shards, got none for 1 .*00001.*\. Run main.py cache"):
        opened(folder, cached_text=True)


def test_missing_single_texts(folder):
    (folder / "prompts.text.safetensors").unlink()
    source = opened(folder, cached_text=True)
    with pytest.raises(UserError, match=r"must find .*prompts\.text.*, got no such file"):
        source.text_cache.single_texts()


def test_the_cache_of_another_shard(folder):
    one, two = (folder / f"0000{number}.text.safetensors" for number in (0, 1))
    two.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match=r"00001\.text\.safetensors must hold the states of "):
        opened(folder, cached_text=True)


def test_another_number_of_samples(folder):
    one = folder / "00000.text.safetensors"
    one.write_bytes((folder / "00002.text.safetensors").read_bytes())
    told = r"the 6 samples of .*00000.tar, got those of 7\. Run main.py cache-text"
    with pytest.raises(UserError, match=told):
        opened(folder, cached_text=True)


def test_single_texts_are_no_shard(folder):
    shutil.copy(folder / "prompts.text.safetensors", folder / "00002.text.safetensors")
    with pytest.raises(UserError, match="must hold the states of a shard, got others"):
        opened(folder, cached_text=True)


def test_other_encoders(folder, whole, qwen, tmp_path):
    text_cache = opened(folder, cached_text=True).text_cache
    own = TextEncoder(str(qwen))
    text_cache.check_encoder(own.settings(), own.files_digest())
    text_cache.check_encoder(own.settings(), "")  # its files are elsewhere
    other = TextEncoder(str(qwen), layer=-2)
    told = (
        "training's text encoder, got layer -2, where the cache .* has -1. Run main.py cache-text"
    )
    with pytest.raises(UserError, match=told):
        text_cache.check_encoder(other.settings(), "")
    twin = TextEncoder(str(save_tiny_qwen3(tmp_path / qwen.name, seed=1)))
    with pytest.raises(UserError, match=r"got other files of qwen.* than the cache .* made with"):
        text_cache.check_encoder(twin.settings(), twin.files_digest())


def test_one_file_of_another_encoder(folder, qwen):
    kept = (folder / "00001.text.safetensors").read_bytes()
    other = TextEncoder(str(qwen), max_length=9)
    cache(folder, qwen, other)
    (folder / "00001.text.safetensors").write_bytes(kept)
    text_cache = opened(folder, cached_text=True).text_cache
    with pytest.raises(UserError, match=r"max_length 9, where the cache .*00001.* has 256"):
        text_cache.check_encoder(other.settings(), other.files_digest())


def test_a_file_that_loses_its_end_costs_its_samples_alone(folder):
    source = opened(folder, cached_text=True)
    (folder / "00001.text.safetensors").write_bytes(b"")
    bad = []
    for index in range(NUM):
        filling = Filling(source, Slots(0, 0, (8, 8), 1, np.array([index]), np.array([0])))
        filling.fill(0)
        bad += [(index, own["reason"]) for own in filling.bad.values()]
        assert filling.batch()["weight"][0] == (source.index.shard[index] != 1)
    assert bad == [(index, "torn") for index in range(NUM) if source.index.shard[index] == 1]


def test_other_captions_than_those_cached(whole):
    text_cache = opened(whole, cached_text=True).text_cache
    for captions in ([], ["a"], ["a", "b", "c", "d"]):
        with pytest.raises(BadSample, match="its captions have changed"):
            text_cache.states(0, 0, captions, 0)


def test_cached_text_needs_captions(whole):
    with pytest.raises(UserError, match="condition must be caption where cached_text is true, got"):
        Shards(str(whole), "class", cached_text=True)
