"""The command line of `prepare`."""

import json
import shlex
import subprocess
import sys

import pytest

from tests.data.prepare.conftest import save, tree
from tests.e2e.life import ROOT, Life


def test_prepare_in_processes_of_its_own(run_folder):
    """Parts by several processes, with flags as a person writes them."""
    for number in range(20):
        save(run_folder / f"in/{'ab'[number % 2]}/{number}.jpg", number)
    flags = ["prepare", "--source", "in", "--out=out", "--images-per-shard", "6"]
    text = Life(*flags, "--part=2/2", "--num_processes=2").end()
    assert "Part 2/2 is done; 2 shards of other parts are not there yet." in text
    text = Life(*flags, "--part=1/2", "--num_processes=2").end()
    assert "20     100%  kept" in text
    assert "Classes: 2, from 10 (a) to 10 images (b)" in text
    assert json.loads((run_folder / "out/dataset.json").read_text())["num_images"] == 20


def test_prepare_here(run, run_folder):
    save(run_folder / "in/0.jpg")
    before = tree(run_folder)
    assert "Images: 1 found" in run("prepare", "--source=in", "--dry-run")
    assert tree(run_folder) == before
    run("prepare", "--source=in", "--out=out")
    assert "1 image is in 1 shard as the indexes say" in run("prepare", "--verify", "--out", "out")
    (run_folder / "out/00000.tar").unlink()
    with pytest.raises(SystemExit, match=r"^error: out must hold what its indexes say, got 1 prob"):
        run("prepare", "--verify", "--out", "out")
    with pytest.raises(SystemExit, match=r"^error: .*--sorce=in\. Did you mean source\?"):
        run("prepare", "--sorce=in", "--out=out")


def test_a_reader_that_has_enough_is_no_error(run_folder):
    save(run_folder / "in/0.jpg")
    command = shlex.join([sys.executable, str(ROOT / "main.py"), "prepare", "--source=in"])
    done = subprocess.run(
        f"{command} --dry-run --num_processes=2 | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
