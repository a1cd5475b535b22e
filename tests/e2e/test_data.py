"""The way of the data through the real command line: shards, buckets, processes, kills, faults."""

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelhdm.data.prepare.prepare import prepare
from tests.data.reading.servers import S3_ENVIRONMENT, WebServer, s3_server
from tests.e2e.conftest import QUICK, checkpoint, differences, finish, start, watched
from tests.e2e.life import Life, fit

SIZES = {(17, 17): 14, (20, 13): 9, (13, 20): 13, (7, 7): 3}  # width, height: how many
KEPT, STEPS = 36, 11  # images and batches of an epoch: 4 + 3 + 4, of up to 4 images
END = 26  # two epochs and a bit
OVERLAY = """
trainer: {{max_steps: {end}, default_root_dir: run, limit_val_batches: 0}}
data:
  batch_size: 4
  sampler: {{class_path: BufferedShufflePlan, init_args: {{window: 12}}}}
  buckets: {{sizes: [[8, 8], [8, 12], [12, 8]]}}
  train:
    class_path: Shards
    init_args: {{path: {path}, flip_prob: 0.5, crop: random}}
  val:
    class_path: Shards
    init_args: {{path: {path}}}
model:
  optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.05, momentum: 0.9}}}}
checkpoint: {{every_n_steps: 1}}
"""


# What runs have recorded --------------------------------------------------------------------------


def lines(name: str, folder: str | Path, rank: int = 0) -> list[Any]:
    """What the callback Record has written."""
    file = Path(folder) / f"{name}{rank}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def batches(folder: str | Path, rank: int = 0) -> list[dict[str, Any]]:
    return lines("batches", folder, rank)


def images(rows: Iterable[dict[str, Any]]) -> list[tuple]:
    """All images of batches, with all that a step sees of each."""
    names = ("index", "seed", "condition", "pixels")
    return [
        (tuple(row["size"]), *(row[name][slot] for name in names))
        for row in rows
        for slot, weight in enumerate(row["weight"])
        if weight
    ]


def assert_each_once(rows: Iterable[dict[str, Any]], times: int = 1) -> None:
    """Each image of the data set came as often as said, with another seed each time."""
    seen = images(rows)
    counts = Counter(index for _, index, *_ in seen)
    assert len(counts) == KEPT
    assert set(counts.values()) == {times}
    assert len({seed for _, _, seed, *_ in seen}) == KEPT * times


def of_epoch(rows: Iterable[dict[str, Any]], epoch: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["epoch"] == epoch]


# Data ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of images of several sizes, three of them too small for any bucket."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    sizes = [size for size, num in SIZES.items() for _ in range(num)]
    for number, (width, height) in enumerate(sizes):
        file = folder / f"images/{'abc'[number % 3]}/{number:02d}.{('jpg', 'png')[number % 2]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        file.with_suffix(".txt").write_text(f"picture {number}")
    prepare(
        str(folder / "images"), str(folder / "shards"), labels="folders", images_per_shard=10,
        min_side=4, num_processes=1,
    )  # fmt: skip
    return folder / "shards"


@pytest.fixture(scope="module")
def config(shards: Path) -> list[str]:
    """The flags of a quick run on them."""
    file = shards.parent / "config.yaml"
    file.write_text(OVERLAY.format(path=shards, end=END))
    return [*QUICK, "-c", str(file)]


RECORD = watched("Record")
LAST = "--ckpt_path=last"


def killed_at(step: int) -> list[str]:
    """The flags of a run that is recorded until a SIGKILL ends it."""
    return [*watched("KillAt", f"step={step}"), "--trainer.callbacks+=tests.e2e.watch.Record"]


@pytest.fixture(scope="module")
def whole(config: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, with what it has printed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(*config, *RECORD, "--checkpoint.keep=0")
    return folder


# Tests --------------------------------------------------------------------------------------------


def test_each_image_comes_once_an_epoch_and_the_table_says_so(whole):
    rows = batches(whole / "run")
    assert len(rows) == END
    for epoch in (0, 1):
        assert_each_once(of_epoch(rows, epoch))
        assert len(of_epoch(rows, epoch)) == STEPS
    assert [row["trainer_epoch"] for row in rows] == [row["epoch"] for row in rows]
    orders = [[index for _, index, *_ in images(of_epoch(rows, epoch))] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    output = next(whole.glob("output*.txt")).read_text()
    assert "36 of 39 images, 11 batches an epoch, 8 padded slots (weight 0)" in output
    assert "dropped: 3 (7.7%) too small" in output
    assert [line.split()[:7] for line in output.splitlines() if " x " in line][1:4] == [
        ["8", "x", "12", "9", "25.0%", "3", "4"],
        ["12", "x", "8", "13", "36.1%", "4", "4"],
        ["8", "x", "8", "14", "38.9%", "4", "4"],
    ]
    assert not (whole / "run/bad_samples.jsonl").exists()


def of_processes(processes: int, folder: str) -> list[str]:
    """The flags of a run in several processes, with as many images a step as in one."""
    flags = ["--trainer.strategy=ddp", f"--trainer.devices={processes}", "--checkpoint.keep=0"]
    return [*flags, f"--data.batch_size={4 // processes}", f"--trainer.default_root_dir={folder}"]


def assert_same_end(folder: str | Path, other: str | Path) -> None:
    """The last weights of two runs are equal up to rounding."""
    weights, others = (checkpoint(run, END)["state_dict"] for run in (folder, other))
    for key, value in others.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5)


def test_processes_share_each_step(whole, config):
    """Two started by the real launcher, four as it starts them."""
    flags = [*config, *RECORD, "--checkpoint.every_n_steps=0"]
    launched = start("fit", *flags, *of_processes(2, "2"), processes=2)
    fit(*flags, *of_processes(4, "4"), processes=4)
    finish(launched)
    for world in (2, 4):
        ranks = [batches(str(world), rank) for rank in range(world)]
        for one, *parts in zip(batches(whole / "run"), *ranks, strict=True):
            assert all(part["size"] == one["size"] for part in parts)
            assert images(parts) == images([one])
        assert_same_end(str(world), whole / "run")


def test_one_process_goes_on_where_two_were_killed(whole, config):
    Life("fit", *config, *killed_at(7), *of_processes(2, "run"), processes=2).end(-signal.SIGKILL)
    first = batches("run")
    fit(*config, *RECORD, LAST)
    assert batches("run")[len(first) :] == batches(whole / "run")[7:]
    assert_same_end("run", whole / "run")


WORKERS = {
    "none": ["--data.num_workers=0"],
    "threads": ["--data.num_workers=3"],
    "process": ["--data.num_workers=1", "--data.executor=process"],
    "processes": ["--data.num_workers=2", "--data.executor=process"],
}


def test_kills_leave_no_trace(whole, config):
    """SIGKILL within an epoch, at its end and within the next, and then Ctrl-C; other workers in
    each life. What loads the images goes with its run, and lets it save.
    """
    Life("fit", *config, *killed_at(4), *WORKERS["none"]).end(-signal.SIGKILL)
    Life("fit", *config, *killed_at(STEPS), *WORKERS["threads"], LAST).end(-signal.SIGKILL)
    life = Life("fit", *config, *killed_at(15), *WORKERS["processes"], LAST)
    life.end(-signal.SIGKILL)
    interrupted = [*RECORD, "--trainer.callbacks+=tests.e2e.watch.InterruptAt"]
    interrupted += ["--trainer.callbacks.step=18"]
    output = fit(*config, *interrupted, *WORKERS["process"], LAST, code=128 + signal.SIGINT)
    assert "Stopped and saved. Go on with: " in output
    assert "Traceback" not in output
    fit(*config, *RECORD, LAST)
    assert differences(checkpoint(whole / "run", END), checkpoint("run", END)) == []
    assert batches("run") == batches(whole / "run")
    deadline = time.monotonic() + 10
    while left := life.left_behind():
        assert time.monotonic() < deadline, f"orphans: {left}"
        time.sleep(0.05)


def in_other_batches(config: list[str], file: Path, size: int, *more: str) -> list[dict[str, Any]]:
    """Go on from a checkpoint with batches of another size, validating; its batches."""
    flags = ["--trainer.val_check_interval=4", "--trainer.limit_val_batches=1.0"]
    fit(*config, *RECORD, *flags, f"--data.batch_size={size}", f"--ckpt_path={file}", *more)
    folder = next((flag.split("=")[1] for flag in more if "default_root_dir" in flag), "run")
    rows, length = batches(folder), sum(-(-num // size) for num in (14, 9, 13))
    numbers = [row["number"] for row in rows]
    assert numbers == list(range(numbers[0], numbers[0] + len(rows)))
    for row in rows:
        assert row["number"] // length == row["epoch"] == row["trainer_epoch"]
    assert lines("validations", folder) == [n for n in numbers if n % 4 == 3]
    return rows


def saved(folder: str | Path, step: int) -> Path:
    return Path(folder).resolve() / f"checkpoints/step_{step:08d}.ckpt"


@pytest.mark.parametrize("step", [5, STEPS])
def test_other_batches_bring_each_image_that_is_left_once(whole, config, step):
    """Within an epoch, twice in it, and at its end; max_steps is where it was."""
    before = batches(whole / "run")[:step]
    rows = in_other_batches(config, saved(whole / "run", step), 3, "--checkpoint.keep=0")
    assert [row["step"] for row in rows] == list(range(step, END))
    for epoch in (0, 1):
        assert_each_once(of_epoch(before + rows, epoch))
    middle, other = saved("run", step + 3), "--trainer.default_root_dir=again"
    again = in_other_batches(config, middle, 5, other)
    assert [row["step"] for row in again] == list(range(step + 3, END))
    for epoch in (0, 1):
        assert_each_once(of_epoch(before + rows[:3] + again, epoch))


def test_other_batches_and_more_of_them_a_step(whole, config):
    """Images per step change, from 4 to 6; the run ends with an epoch of the data."""
    flags = ["--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=2"]
    flags += ["--trainer.max_steps=-1"]
    rows = in_other_batches(config, saved(whole / "run", 5), 3, *flags)
    for epoch in (0, 1):
        assert_each_once(of_epoch(batches(whole / "run")[:5] + rows, epoch))
    # 5 of 11 batches stand for as many of 13 as the rest leaves; each epoch's 13th is a step alone
    steps = Counter(row["step"] for row in rows)
    assert list(steps) == list(range(5, 5 + len(steps)))
    assert [row["epoch"] for row in rows][-1] == 1
    assert (
        sorted(Counter(of_epoch(rows, 1)[i]["step"] for i in range(13)).values()) == [1] + [2] * 6
    )
    assert saved("run", 5 + len(steps)).exists()


def test_other_data_buckets_order_or_seed_are_refused(whole, config, shards, run, tmp_path):
    images = shutil.copytree(shards.parent / "images", tmp_path / "images")
    Image.new("RGB", (17, 17)).save(images / "a/00.jpg")
    other = {"labels": "folders", "images_per_shard": 10, "min_side": 4, "num_processes": 1}
    prepare(str(images), str(tmp_path / "shards"), **other)
    resumed = [*config, f"--ckpt_path={saved(whole / 'run', 5)}"]
    for flag, name, values in (
        (f"--data.train.path={tmp_path / 'shards'}", "data", r"shards-\w+ where .* shards-\w+"),
        ("--data.buckets.sizes=[[8,8],[8,12]]", "buckets", r"2 sizes 8x12 … 8x8 .* has 3 sizes .*"),
        ("--data.buckets.max_crop=0.2", "buckets", r".* max_crop 0.2, .* max_crop 0.08, .*"),
        (
            "--data.sampler=RandomPlan",
            "sampler",
            r"RandomPlan\(\) where .* Buffered.*\(window=12\)",
        ),
        ("--data.seed=5", "seed", "5 where .* 0"),
    ):
        words = f"error: a resumed run must keep its {name}, got {values}. Restore it, or start a"
        with pytest.raises(SystemExit, match=words):
            run("fit", *resumed, flag)
    moved = shutil.copytree(shards, tmp_path / "moved")  # the same data elsewhere
    run("fit", *resumed, f"--data.train.path={moved}", "--trainer.max_steps=6")


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> str:
    """A copy of the shards without the third, and with an image of another that has changed."""
    copy = shutil.copytree(shards, tmp_path / "damaged")
    (copy / "00002.tar").unlink()
    tar = copy / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[changed(copy)["offset"] + 300] ^= 1
    tar.write_bytes(data)
    return f"{copy}/{{00000..00003}}.tar"


def changed(folder: Path) -> dict[str, Any]:
    """The first image of the second shard that training takes."""
    listed = json.loads((folder / "00001.json").read_text())["files"]
    return next(facts | {"key": key} for key, facts in listed.items() if facts.get("width", 0) > 7)


def test_bad_images_are_named_and_left_out(config, damaged, whole):
    folder = Path(damaged).parent
    flags = [f"--data.train.path={damaged}", "--bad_samples.max_bad_fraction=0.5"]
    flags += ["--data.num_workers=3", "--checkpoint.every_n_steps=0"]
    output = fit(*config, *RECORD, *flags, f"--trainer.max_steps={STEPS}")
    listed = json.loads((folder / "00002.json").read_text())["files"]
    lost = [facts["offset"] for facts in listed.values() if facts.get("width", 0) > 7]
    found = [json.loads(line) for line in Path("run/bad_samples.jsonl").read_text().splitlines()]
    one = changed(folder)
    [wrong] = [entry for entry in found if entry["reason"] == "crc"]
    assert (wrong["shard"], wrong["key"]) == (f"{folder}/00001.tar", one["key"])
    assert (wrong["offset"], wrong["epoch"], wrong["split"]) == (one["offset"], 0, "train")
    missing = [entry for entry in found if entry["reason"] == "missing"]
    assert sorted(entry["offset"] for entry in missing) == sorted(lost)
    assert {entry["shard"] for entry in missing} == {f"{folder}/00002.tar"}
    assert len(found) == len(lost) + 1
    assert f"1 crc, {len(lost)} missing; named in run/bad_samples.jsonl" in output
    assert "00002.tar is missing" in output
    bad = {entry["index"] for entry in found}
    expected = [image for image in images(batches(whole / "run")[:STEPS]) if image[1] not in bad]
    assert images(batches("run")) == expected
    assert all(value.isfinite().all() for value in checkpoint("run", STEPS)["state_dict"].values())


@pytest.mark.parametrize("processes", [1, 2])
def test_too_many_bad_images_end_the_run(config, damaged, processes):
    flags = [f"--data.train.path={damaged}", f"--trainer.devices={processes}"]
    flags += ["--trainer.strategy=ddp", f"--data.batch_size={4 // processes}"]
    output = fit(*config, *flags, processes=processes, code=1)
    assert output.count("error: at most 1.00% of an epoch's images may be bad, got ") == processes
    assert "Traceback" not in output
    assert len(Path("run/bad_samples.jsonl").read_text().splitlines()) > 1


# Servers ------------------------------------------------------------------------------------------


@pytest.fixture
def files(shards: Path) -> dict[str, bytes]:
    """What a server gives."""
    paths = [*shards.glob("*.tar"), *shards.glob("*.json")]
    return {f"/bucket/{path.name}": path.read_bytes() for path in paths}


def reading(url: str, *more: str) -> list[str]:
    """The flags of a run that reads from a server."""
    flags = [f"--data.train.path={url}/{{00000..00003}}.tar", "--data.train.index_folder=index"]
    return [*flags, "--data.num_workers=3", *more]


def test_servers_give_the_same_run(config, whole, files):
    with s3_server({name[1:]: data for name, data in files.items()}) as environment:
        patient = "--data.train.storage.timeout=3"  # the server has been seen to swallow a request
        fit(*config, *RECORD, *reading("s3://bucket", patient), **environment)
    assert differences(checkpoint(whole / "run", END), checkpoint("run", END)) == []
    assert batches("run") == batches(whole / "run")


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_faults_of_a_server_cost_no_image(config, whole, files, kind):
    patient = ["--data.train.storage.wait=0.01", "--data.train.storage.timeout=1"]
    with WebServer(files) as server:
        server.next_faults.extend([None, 503, None, "reset", None, None, 429, "truncate"] * 3)
        server.next_faults.extend([None] * 20 + ["stall", "stall_in_body", 500, 503])
        url = "s3://bucket" if kind == "s3" else f"{server.url}/bucket"
        environment = {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": server.url} if kind == "s3" else {}
        fit(*config, *reading(url, *patient), **environment)
        assert not server.next_faults
    assert differences(checkpoint(whole / "run", END), checkpoint("run", END)) == []
    assert not Path("run/bad_samples.jsonl").exists()


# Captions -----------------------------------------------------------------------------------------


def test_captions_need_a_conditioner_that_takes_them(config, run):
    words = r"^error: conditions must be class numbers .* .picture \d+.\. Set condition: class"
    with pytest.raises(SystemExit, match=words):
        run("fit", *config, "--data.train.condition=caption", "--data.val=null")


# Parts of an epoch --------------------------------------------------------------------------------


def test_parts_of_an_epoch_and_new_loaders_lose_nothing(config, whole):
    """The trainer's epochs are shorter than the data's, or its loaders made anew for each."""
    part = [*config, "--trainer.limit_train_batches=5", "--trainer.default_root_dir=part"]
    Life("fit", *part, *killed_at(7), *WORKERS["threads"]).end(-signal.SIGKILL)
    fit(*part, *RECORD, "--ckpt_path=last")
    again = ["--trainer.reload_dataloaders_every_n_epochs=1", "--trainer.num_sanity_val_steps=2"]
    again += ["--trainer.limit_val_batches=1.0", "--trainer.val_check_interval=4"]
    again += ["--trainer.max_epochs=6", "--trainer.max_steps=-1"]
    again += ["--model.schedule=CosineSchedule", *WORKERS["threads"]]
    again += ["--trainer.limit_train_batches=0.5", "--trainer.default_root_dir=again"]
    fit(*config, *RECORD, *again)
    fit(*config, *RECORD, "--trainer.overfit_batches=5", "--trainer.default_root_dir=over")
    rows = batches("over")
    assert all(images([row]) == images([rows[at % 5]]) for at, row in enumerate(rows))
    for folder, length in (("part", END), ("again", 30)):
        rows = batches(folder)
        assert [row["trainer_epoch"] for row in rows] == [number // 5 for number in range(length)]
        assert images(rows[:END]) == images(batches(whole / "run"))
