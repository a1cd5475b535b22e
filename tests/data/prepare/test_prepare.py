"""The whole command: equal bytes on any way there, and refusals."""

import json
import os
import random
import signal
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pixelhdm.data.indexing.index import NO_LABEL
from pixelhdm.data.indexing.open_index import open_index
from pixelhdm.data.prepare.prepare import prepare, spelled_out
from pixelhdm.data.reading.storage import Storage
from pixelhdm.errors import UserError
from tests.data.prepare.conftest import rejected, save, tree
from tests.e2e.life import Life

SMALL = {"images_per_shard": 9}
PREPARE_HERE = Path(__file__).with_name("prepare_here.py")
pytestmark = pytest.mark.timeout(40)


@pytest.fixture
def whole(photos: Path, run) -> dict[str, bytes]:
    """What one process writes in one go."""
    return tree(run(photos, "whole", **SMALL))


def test_it_holds_every_image_once_or_says_why_not(photos, run):
    out = run(photos, **SMALL)
    assert rejected(out) == {
        "d0/copy.jpg": "duplicate",
        "empty.png": "empty",
        "torn.jpg": "broken",
        "tiny.png": "too_small",
    }
    about = json.loads((out / "dataset.json").read_text())
    assert about["num_images"] == 56
    assert about["classes"] == []
    paths = []
    for shard in about["shards"]:
        for sample in webdataset.WebDataset(str(out / shard), shardshuffle=False).decode("pil"):
            story, name = sample["json"], sample["json"]["path"]
            paths.append(name)
            assert sample["jpg"].size == (story["width"], story["height"])
            caption = photos / Path(name).with_suffix(".txt")
            assert story["captions"] == ([caption.read_text()] if caption.exists() else [])
            assert sample.get("txt") == (story["captions"] or [None])[0]
    assert len(paths) == len(set(paths)) == 56
    order = [int(Path(name).stem) for name in paths if "copy" not in name]
    assert abs(np.corrcoef(order, range(len(order)))[0, 1]) < 0.5  # shuffled


def test_the_index_reads_images_where_they_lie(photos, run):
    out = run(photos, **SMALL)
    index = open_index(str(out), Storage())
    assert len(index) == 56
    assert index.problems == ()
    assert (np.array(index.label) == NO_LABEL).all()
    originals = {file.read_bytes() for file in photos.rglob("*.jpg")}
    captioned = 0
    for row in range(len(index)):
        data = Path(index.shards[index.shard[row]]).read_bytes()
        start, length = int(index.offset[row]), int(index.length[row])
        assert data[start : start + length] in originals
        at, size = int(index.text_offset[row]), int(index.text_length[row])
        captioned += size > 0
        assert not size or json.loads(data[at : at + size])["captions"]
    assert captioned == 28  # those without are known to have none


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(photos, run, whole, processes):
    assert tree(run(photos, num_processes=processes, **SMALL)) == whole


def test_parts_in_any_order_write_the_same_bytes(photos, run, whole):
    for order in list(permutations("123"))[::2]:
        for part in order:
            assert not (photos.parent / "".join(order) / "dataset.json").exists()
            out = run(photos, "".join(order), part=f"{part}/3", **SMALL)
        assert tree(out) == whole


def test_parts_at_once_write_the_same_bytes(photos, tmp_path, whole):
    for life in [start(photos, tmp_path / "out", part=f"{part}/3") for part in (1, 2, 3)]:
        life.end()
    assert tree(tmp_path / "out") == whole


def start(photos: Path, out: Path, **settings: object) -> Life:
    """Prepare in a process of its own, which no thread of the tests has forked."""
    given = {"source": str(photos), "out": str(out), **SMALL, "num_processes": 1, **settings}
    return Life(json.dumps(given), folder=photos.parent, script=PREPARE_HERE)


def kill(life: Life) -> int:
    """Kill its first process; the exit code."""
    os.kill(life.group, signal.SIGKILL)
    while not life.is_over():
        time.sleep(0.001)
    return life.codes[life.group]


def test_a_killed_run_goes_on_to_the_same_bytes(photos, tmp_path, whole):
    """Killed ever later, with two processes, until a run ends by itself."""
    rng, kills = random.Random(0), 0
    for trial in range(2):
        out, wait = tmp_path / f"out{trial}", 0.0
        while True:
            life = start(photos, out, num_processes=1 + trial)
            wait += rng.uniform(0.005, 0.02)
            time.sleep(wait)
            code = kill(life)
            if code == 0:
                break
            assert code == -signal.SIGKILL, life.printed()
            kills += 1
        assert tree(out) == whole
    assert kills > 5


def test_killed_while_writing_leaves_nothing_behind(photos, tmp_path, run, whole):
    life = start(photos, tmp_path / "out")
    while not list((tmp_path / "out").glob(".0*.part")):
        time.sleep(0.0002)
    kill(life)
    assert tree(run(photos, **SMALL)) == whole


def test_workers_end_when_their_parent_is_killed(photos, tmp_path):
    life = start(photos, tmp_path / "out", num_processes=2)
    while not (found := children_of(life.group)):
        time.sleep(0.001)
    kill(life)
    end = time.monotonic() + 10
    while any(is_running(process) for process in found) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(is_running(process) for process in found)


def children_of(process: int) -> list[int]:
    return [
        int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_deleted_shard_is_made_again_and_others_are_left(photos, run, whole):
    out = run(photos, **SMALL)
    (out / "00002.tar").unlink()
    kept = (out / "00001.tar").stat().st_mtime_ns
    assert tree(run(photos, **SMALL)) == whole
    assert (out / "00001.tar").stat().st_mtime_ns == kept


def test_another_seed_and_shard_size_are_other_shards(photos, run, whole):
    other = tree(run(photos, seed=1, **SMALL))
    assert other["00000.tar"] != whole["00000.tar"]
    out = run(photos, "small", shard_size="40KB")
    sizes = [file.stat().st_size for file in out.glob("*.tar")]
    assert len(sizes) > 4
    assert max(sizes) < 60_000


def test_other_settings_and_sources_are_refused(photos, run):
    run(photos, **SMALL)
    with pytest.raises(UserError, match=r"^seed must be what .* was begun with, 0, got 1\. Take"):
        run(photos, seed=1, **SMALL)
    with pytest.raises(UserError, match=r"^min_side must be what .* begun with, 16, got 9\."):
        run(photos, min_side=9, **SMALL)
    save(photos / "more.jpg", 100)
    with pytest.raises(UserError, match=r"^source must stay as it .*\(60 images then, 61 now\)"):
        run(photos, **SMALL)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"part": "0/3"}, r"part must be i/n with 1 ≤ i ≤ n"),
        ({"part": "4/3"}, r"part must be i/n"),
        ({"shard_size": "large"}, r"shard_size must be a size"),
        ({"images_per_shard": 0}, r"images_per_shard must be at least 1"),
        ({"num_processes": 0}, r"num_processes must be at least 1"),
        ({"max_aspect": 0.5}, r"max_aspect must be at least 1"),
        ({"split": "val"}, r"split must be left out for a source without splits"),
        ({"labels": "folders"}, r"labels=folders must find every image in a class folder"),
        ({"dry_run": True, "verify": True}, r"must stand alone"),
        ({"min_side": 5000}, r"source must hold an image that can be kept"),
    ],
)
def test_wrong_settings_are_refused(photos, run, tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        run(photos, **settings)
    assert "min_side" in settings or not (tmp_path / "out").exists()


def test_foreign_folders_and_missing_sources_are_left_alone(photos, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/diary.txt").write_text("mine")
    with pytest.raises(UserError, match=r"new or empty folder.*which holds diary\.txt"):
        run(photos)
    assert tree(tmp_path / "out") == {"diary.txt": b"mine"}
    with pytest.raises(UserError, match="source must be there"):
        run(tmp_path / "nowhere", "new")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="source must hold images"):
        run(tmp_path / "bare", "new")
    with pytest.raises(UserError, match="source must be given"):
        prepare(out=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_shards_may_lie_in_the_source(photos, run):
    first = tree(run(photos, "photos/shards", **SMALL))
    assert tree(run(photos, "photos/shards", **SMALL)) == first


def test_a_dry_run_writes_nothing(photos, tmp_path, capsys):
    before = tree(tmp_path)
    prepare(str(photos), str(tmp_path / "out"), dry_run=True, num_processes=1)
    assert tree(tmp_path) == before
    text = capsys.readouterr().out
    assert "Images: 60 found\n            56   93.33%  kept\n" in text
    assert "looked at" not in text  # all were


def test_captions_can_be_required(photos, run):
    """A copy without caption must not stand for one that has some."""
    out = run(photos, require_captions=True)
    reasons = rejected(out)
    assert "d1/01.jpg" not in reasons
    assert reasons["d0/copy.jpg"] == "no_caption"
    assert json.loads((out / "dataset.json").read_text())["num_images"] == 28


def test_duplicates_can_be_kept(photos, run):
    assert "d0/copy.jpg" not in rejected(run(photos, keep_duplicates=True))


def test_a_shard_without_any_image_is_not_written(tmp_path, run):
    for number in range(4):
        save(tmp_path / f"in/{number}.png", number, 8, 8)
    save(tmp_path / "in/good.png", 9)
    out = run(tmp_path / "in", images_per_shard=1)
    [shard] = json.loads((out / "dataset.json").read_text())["shards"]
    assert [file.name for file in out.glob("*.tar")] == [shard]
    assert len(open_index(str(out), Storage())) == 1


def test_flags_may_stand_alone_and_have_dashes():
    given = ["--source", "-", "--dry-run", "--shard-size=1-2", "--verify", "false", "--out=a-b"]
    assert spelled_out(given) == [
        "--source", "-", "--dry_run=true", "--shard_size=1-2", "--verify", "false", "--out=a-b",
    ]  # fmt: skip
