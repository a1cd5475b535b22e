"""The command `score` with stand-ins of both programs."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pixelhdm.errors import UserError
from pixelhdm.evaluation.record import read_records
from pixelhdm.score import score
from tests.evaluation.scorers import (
    BLUE,
    RED,
    draw,
    make_dpg,
    make_geneval,
    make_python,
)

PROMPTS = [
    {"tag": "colors", "include": [{"class": "cow", "color": color}], "prompt": f"a {color} cow"}
    for color in ("red", "blue")
]
# by prompt: the first has one image of its colour, the second all
COLOURS = [[RED, BLUE, BLUE, BLUE], [BLUE, BLUE, BLUE, BLUE]]
QUESTIONS = [
    ("a", 1, "0", "entity - whole", "is it blue?"),  # which the program skips
    ("a", 2, "0", "entity - whole", "is it red?"),
    ("a", 3, "2", "attribute - color", "is it blue?"),
    ("b", 1, "0", "entity - whole", "is it blue?"),
    ("b", 2, "1", "global", "is it blue?"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with a checkpoint's name."""
    monkeypatch.chdir(tmp_path)
    Path("run/checkpoints").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def geneval(folder: Path) -> dict:
    """Images and a program that judges them."""
    for number, colours in enumerate(COLOURS):
        for image, colour in enumerate(colours):
            file = folder / f"out/{number:05d}/samples/{image:05d}.png"
            draw(file, colour, seed=str(image), prompt=PROMPTS[number]["prompt"])
        (folder / f"out/{number:05d}/metadata.jsonl").write_text(json.dumps(PROMPTS[number]))
    clone = make_geneval(folder / "geneval", PROMPTS)
    python = make_python(folder / "env", "geneval")
    return {"benchmark": "geneval", "images": "out", "scorer": str(clone), "python": str(python)}


@pytest.fixture
def dpg(folder: Path) -> dict:
    """Grids of a: red, blue, blue, blue; of b: all blue."""
    for name, colours in zip("ab", COLOURS, strict=True):
        for seed, colour in enumerate(colours):
            draw(folder / f"dpg_out/samples/{name}_seed{seed:06d}.png", colour)
        draw(folder / f"dpg_out/grids/{name}.png", *colours, seed="0, 1, 2, 3")
    clone = make_dpg(folder / "dpg", QUESTIONS)
    python = make_python(folder / "dpg_env", "dpg")
    return {"benchmark": "dpg", "images": "dpg_out", "scorer": str(clone), "python": str(python)}


def values(entry: dict) -> dict[str, float]:
    return {found["name"]: found["value"] for found in entry["scores"]}


def test_geneval_is_run_shown_kept_and_recorded(geneval, capsys):
    score(**geneval)
    printed = capsys.readouterr().out
    assert "Running " in printed
    assert "detector is there" in printed
    assert "colors           62.50 ± 37.50 %    5 of 8 images" in printed
    assert "GenEval-2x4      0.62500 ± 0.37500  mean over 1 tasks" in printed
    assert "correct prompts  100.00 %" in printed
    assert "17.7 %" in printed
    assert len(Path("out/geneval_results.jsonl").read_text().splitlines()) == 8
    assert not Path("out/.scoring").exists()
    (entry,) = read_records(Path("run"))
    assert values(entry) == {
        "GenEval-2x4": 0.625,
        "GenEval-2x4 colors": 0.625,
        "GenEval-2x4 images": 0.625,
        "GenEval-2x4 prompts": 1.0,
    }
    assert entry["kind"] == "geneval"
    assert (entry["step"], entry["weights"], entry["num_images"]) == (7, "ema", 8)
    assert entry["settings"] == {
        "sampler": "HeunSampler",
        "steps": 2,
        "calls": 4,
        "scale": 2.5,
        "size": "8x8",
    }
    assert entry["folder"] == str(Path("out").resolve())


def test_dpg_is_run_shown_kept_and_recorded(dpg, capsys):
    score(**dpg)
    printed = capsys.readouterr().out
    # a: the skipped question leaves red: 1/2, and blue: 0, as its parent is wrong; b: all
    assert "56.250 ± 43.750  of 2 prompts, 4 images each" in printed
    (entry,) = read_records(Path("run"))
    assert values(entry) == {  # of the last images alone
        "DPG-2x4": pytest.approx(100 * (0.125 + 1) / 2),
        "DPG-2x4 entity": 50,
        "DPG-2x4 attribute": 100,
        "DPG-2x4 global": 100,
        "DPG-2x4 entity - whole": 50,
        "DPG-2x4 attribute - color": 100,
    }
    assert Path("dpg_out/dpg_results_detail.txt").read_text().count("answers") == 8
    assert sorted(path.name for path in Path("dpg_out/grids").iterdir()) == ["a.png", "b.png"]


def test_results_of_another_machine_are_read_alone(geneval, capsys):
    score(**geneval)
    Path("out/geneval_results.jsonl").rename("copied.jsonl")
    Path("other").mkdir()
    score("geneval", "out", results="copied.jsonl", run="other")
    assert "older" not in capsys.readouterr().out
    (here,), (there,) = read_records(Path("run")), read_records(Path("other"))
    assert here["scores"] == there["scores"]
    assert there["reference"] == "github.com/djghosh13/geneval"
    os.utime("copied.jsonl", (1, 1))
    score("geneval", "out", results="copied.jsonl", run="other")
    assert "copied.jsonl is older than the images" in capsys.readouterr().out


def test_a_program_that_fails_leaves_all_as_it_was(geneval):
    score(**geneval)
    kept = Path("out/geneval_results.jsonl").read_text()
    program = Path("geneval/evaluation/evaluate_images.py")
    program.write_text("open('half', 'w')\nraise SystemError('no GPU')")
    with pytest.raises(UserError, match=r"exit code 1; nothing is recorded(.|\n)*no GPU$"):
        score(**geneval)
    program.write_text("")
    with pytest.raises(UserError, match=r"must write geneval_results.jsonl, got none"):
        score(**geneval)
    assert len(read_records(Path("run"))) == 1
    assert Path("out/geneval_results.jsonl").read_text() == kept
    assert not Path("out/.scoring").exists()


def test_a_prompt_that_dpg_fails_on_is_an_error(dpg):
    write = Path("dpg/dpg_bench/compute_dpg_bench.py")
    write.write_text(write.read_text().replace("means.append(mean)", "1 / 0"))
    with pytest.raises(UserError, match=r"got nan|each of the 2 prompts"):
        score(**dpg)
    assert read_records(Path("run")) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("evaluation/evaluate_images.py", "Clone github.com/djghosh13/geneval"),
        ("evaluation/object_names.txt", "Clone github.com/djghosh13/geneval"),
        ("prompts/evaluation_metadata.jsonl", "Clone github.com/djghosh13/geneval"),
        (
            "models/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth",
            "Run bash .*evaluation/download_models.sh .*/models, or give",
        ),
        (
            "../env/lib/configs/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py",
            "from a clone of its branch 2.x",
        ),
        ("../env/lib/open_clip/__init__.py", "python must have open_clip, got .*env/python"),
        ("../env/python", "must be a program, got .*env/python"),
    ],
)
def test_what_geneval_lacks_is_named(geneval, missing, message):
    file = Path("geneval") / missing
    file.unlink()
    if file.parent.name == "open_clip":
        file.parent.rmdir()
    with pytest.raises(UserError, match=message):
        score(**geneval)


def test_another_detector_config_stands_in(geneval):
    (default,) = Path("env/lib/configs/mask2former").iterdir()
    default.rename("own.py")
    score(**geneval, detector_config="own.py")
    assert len(read_records(Path("run"))) == 1


@pytest.mark.parametrize("missing", ["compute_dpg_bench.py", "dpg_bench.csv"])
def test_what_dpg_lacks_is_named(dpg, missing):
    (Path("dpg/dpg_bench") / missing).unlink()
    with pytest.raises(UserError, match=f"{missing}, got none. Clone github.com/TencentQQGYLab"):
        score(**dpg)


def test_dpg_refuses_what_its_program_would_cut_wrongly(dpg):
    draw(Path("dpg_out/grids/a.png"), RED, RED)
    with pytest.raises(UserError, match=r"squares of one size, .* got 8x4, 8x8|8x8, 8x4"):
        score(**dpg)


def test_dpg_refuses_other_prompts(dpg, folder):
    make_dpg(folder / "more", [*QUESTIONS, ("c", 1, "0", "global", "is it red?")])
    with pytest.raises(UserError, match=r"all 3 prompts .* got none of 1 of them \(c\)"):
        score(**dpg | {"scorer": "more"})
    score(**dpg | {"scorer": "more"}, prompts="dpg/dpg_bench/dpg_bench.csv")


def test_prompts_of_another_kind_are_refused(geneval, dpg):
    Path("asked.txt").write_text("a red cow\n")
    with pytest.raises(UserError, match=r"asked.txt, line 1: must be JSON"):
        score(**geneval, prompts="asked.txt")
    with pytest.raises(UserError, match="must be a csv with item_id"):
        score(**dpg, prompts="asked.txt")


def test_images_of_two_settings_are_not_mixed(geneval):
    draw(Path("out/00001/samples/00002.png"), BLUE, steps="5")
    with pytest.raises(UserError, match=r"drawn alike, got steps 2 in .* and 5 in .*00002.png"):
        score(**geneval)


def test_images_without_a_run_are_scored_and_not_recorded(geneval, capsys):
    Path("run/checkpoints").rmdir()
    Path("run").rmdir()
    score(**geneval)
    assert "not recorded. --run names it" in capsys.readouterr().out
    with pytest.raises(UserError, match="run must be the folder of a run, got gone"):
        score(**geneval, run="gone")
    for file in Path("out").glob("*/samples/*.png"):
        Image.open(file).copy().save(file)
    score(**geneval)
    assert "not recorded" in capsys.readouterr().out
    with pytest.raises(UserError, match="must tell their checkpoint"):
        score(**geneval, run="env")


def test_a_dry_run_prints_what_would_be_run(dpg, capsys, folder):
    score(**dpg | {"python": "elsewhere/python", "num_processes": 2}, dry_run=True)
    words = capsys.readouterr().out.split()
    assert words[:3] == ["elsewhere/python", "-m", "accelerate.commands.launch"]
    assert words[words.index("--num_processes") + 1] == "2"
    assert words[words.index("--resolution") + 1] == "8"
    assert words[words.index("--pic-num") + 1] == "4"
    assert words[words.index("--image-root-path") + 1] == str(folder / "dpg_out/grids")
    assert not Path("dpg_out/dpg_results.txt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"benchmark": "geneval", "num_processes": 2}, "num_processes must be left out"),
        ({"benchmark": "dpg", "models": "m"}, "models must be left out with dpg"),
        ({"benchmark": "dpg", "scorer": None}, "scorer must be the folder"),
        (
            {"benchmark": "dpg", "scorer": None, "results": "r", "dry_run": True},
            "scorer must be the folder",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        score(**{"images": "out", "scorer": "clone"} | flags)


def test_an_interrupted_program_ends_with_the_command(geneval, monkeypatch):
    program = Path("geneval/evaluation/evaluate_images.py")
    program.write_text("import os, time\nos.write(1, b'pid %d' % os.getpid())\ntime.sleep(60)")

    def interrupt(text: str) -> int:
        if text.startswith("pid"):
            Path("pid").write_text(text.split()[1])
            raise KeyboardInterrupt
        return len(text)

    monkeypatch.setattr(sys.stdout, "write", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        score(**geneval)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
