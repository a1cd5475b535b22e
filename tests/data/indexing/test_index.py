import json
import pickle

import numpy as np
import pytest

from pixelhdm.data.indexing.index import COLUMNS, Index
from pixelhdm.errors import UserError


def made(num: int = 5, shards: tuple[str, ...] = ("a/0.tar", "a/1.tar"), **changes) -> Index:
    columns = {name: np.arange(num).astype(kind) for name, kind in COLUMNS.items()}
    texts = np.frombuffer(b"captions", np.uint8)
    return Index(columns | changes, shards, ("x", "y"), texts, ("one problem",))


def test_it_is_the_same_after_saving_and_loading(tmp_path):
    index = made()
    index.save(tmp_path / "i", {"stamp": [1, None, "x"]})
    loaded, stamp = Index.load(tmp_path / "i")
    assert stamp == {"stamp": [1, None, "x"]}
    for name, kind in COLUMNS.items():
        np.testing.assert_array_equal(loaded.columns[name], index.columns[name])
        assert loaded.columns[name].dtype == kind
        assert isinstance(loaded.columns[name], np.memmap)
    for name in ("shards", "classes", "problems", "digest"):
        assert getattr(loaded, name) == getattr(index, name)
    assert loaded.texts.tobytes() == b"captions"
    assert loaded.computed_digest() == index.digest
    assert (len(loaded), loaded.width[3]) == (5, 3)


def test_an_index_of_nothing_is_loaded_as_well(tmp_path):
    columns = {name: np.zeros(0, kind) for name, kind in COLUMNS.items()}
    Index(columns, ()).save(tmp_path / "i")
    assert len(Index.load(tmp_path / "i")[0]) == 0


def test_a_second_one_replaces_the_first_and_leaves_nothing(tmp_path):
    made().save(tmp_path / "i", 1)
    made(7).save(tmp_path / "i", 2)
    loaded, stamp = Index.load(tmp_path / "i")
    assert (len(loaded), stamp) == (7, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_the_digest_is_of_the_samples_and_the_shards_names():
    assert made().digest == made(shards=("other/0.tar", "s3://b/1.tar")).digest
    others = [made(6), made(shards=("a/0.tar", "a/2.tar"))]
    others += [made(**{name: np.full(5, 9, kind)}) for name, kind in COLUMNS.items()]
    assert len({made().digest, *(index.digest for index in others)}) == len(others) + 1


@pytest.mark.parametrize("file", ["about.json", "shard.npy", "texts.npy"])
@pytest.mark.parametrize("keep", [0, 3, -1, None])
def test_a_damaged_one_is_refused(tmp_path, file, keep):
    made().save(tmp_path / "i")
    path = tmp_path / "i" / file
    data = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(data[:keep])
    with pytest.raises(UserError, match="must be a compiled index of version 1"):
        Index.load(tmp_path / "i")


def test_another_version_is_refused(tmp_path):
    made().save(tmp_path / "i")
    about = json.loads((tmp_path / "i/about.json").read_text())
    (tmp_path / "i/about.json").write_text(json.dumps(about | {"version": 0}))
    with pytest.raises(UserError, match="got: version 0"):
        Index.load(tmp_path / "i")


def test_an_unknown_column_is_no_attribute():
    with pytest.raises(AttributeError):
        made().colour  # noqa: B018


def test_another_process_gets_the_same_files_and_the_shards_as_they_are_now(tmp_path):
    index = Index({name: np.arange(3, dtype=kind) for name, kind in COLUMNS.items()}, ("old.tar",))
    index.save(tmp_path / "index")
    loaded, _ = Index.load(tmp_path / "index")
    loaded.shards = ("new.tar",)
    for one in (index, loaded):
        sent = pickle.loads(pickle.dumps(one))
        assert (sent.shards, sent.digest) == (one.shards, one.digest)
        assert all(np.array_equal(sent.columns[name], one.columns[name]) for name in COLUMNS)
    assert len(pickle.dumps(loaded)) < 1000  # no copy of the columns
