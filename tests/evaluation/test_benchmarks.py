"""GenEval's and DPG's layouts and results, by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pixelhdm.errors import UserError
from pixelhdm.evaluation.benchmarks.dpg import DPG
from pixelhdm.evaluation.benchmarks.geneval import GenEval
from pixelhdm.evaluation.benchmarks.running import last_lines, run_shown
from tests.evaluation.scorers import RED, draw

TAGS = ["single_object", "single_object", "counting"]
# by prompt, of two images each
CORRECT = [[True, False], [True, True], [False, False]]


def metadata(number: int) -> dict:
    return {"tag": TAGS[number], "include": [{"class": "cow"}], "prompt": f"cow {number}"}


@pytest.fixture
def geneval(tmp_path: Path) -> GenEval:
    """Three prompts with two images each."""
    for number in range(3):
        folder = tmp_path / f"{number:05d}"
        for image in range(2):
            draw(folder / f"samples/{image:05d}.png", RED)
        (folder / "metadata.jsonl").write_text(json.dumps(metadata(number)))
    return GenEval(tmp_path)


def lines(prefix: str = "/elsewhere/out") -> list[dict]:
    return [
        {
            "filename": f"{prefix}/{number:05d}/samples/{image:05d}.png",
            "tag": TAGS[number],
            "prompt": f"cow {number}",
            "correct": CORRECT[number][image],
            "metadata": json.dumps(metadata(number)),
            "details": json.dumps({"cow": [[0, 0, 1, 1]]}),
        }
        for number in (2, 0, 1)
        for image in (1, 0)
    ]


def write(folder: Path, content: list[dict]) -> Path:
    file = folder / "results.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in content))
    return file


def test_geneval_is_the_mean_over_tasks(geneval):
    geneval.check_images()
    found = geneval.read(write(geneval.images, lines()))
    values = {score.name: (score.value, score.num_images) for score in found.scores}
    assert values == {
        "GenEval-3x2": (pytest.approx((3 / 4 + 0) / 2), 6),
        "GenEval-3x2 single_object": (pytest.approx(3 / 4), 4),
        "GenEval-3x2 counting": (0, 2),
        "GenEval-3x2 images": (pytest.approx(3 / 6), 6),
        "GenEval-3x2 prompts": (pytest.approx(2 / 3), 6),
    }
    assert ("single_object", "75.00 ± 25.00 %", "3 of 4 images") in found.rows
    assert "do not compare them" in found.notes[1]
    assert found.scores[0].error is None  # counting has one prompt alone


def test_geneval_tells_its_error_and_takes_its_name_for_all_prompts(tmp_path):
    rng = np.random.default_rng(0)
    tags = ["colors"] * 300 + ["position"] * 253
    marks, content = rng.random((553, 4)) < 0.3, []
    for number, tag in enumerate(tags):
        own = {"tag": tag, "include": [], "prompt": f"{number}"}
        folder = tmp_path / f"{number:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps(own))
        for image in range(4):
            file = folder / f"samples/{image:05d}.png"
            file.touch()
            content.append(
                {
                    "filename": str(file),
                    "correct": bool(marks[number, image]),
                    "metadata": json.dumps(own),
                    "details": "{}",
                }
            )
    benchmark = GenEval(tmp_path)
    benchmark.check_images()
    found = benchmark.read(write(tmp_path, content))
    overall = found.scores[0]
    parts = [marks[:300].mean(1), marks[300:].mean(1)]
    assert overall.name == "GenEval"
    assert overall.value == pytest.approx(np.mean([part.mean() for part in parts]))
    variance = sum(part.var(ddof=1) / len(part) for part in parts) / 4
    assert overall.error == pytest.approx(variance**0.5)
    assert len(found.notes) == 2
    assert "saw no object in any image" in found.notes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own[:-1], "each of the 6 images in .* got 5 lines"),
        (lambda own: [*own, own[0]], "got 7 lines .* 6 of them of these"),
        (lambda own: [line | {"filename": "9/samples/0.png"} for line in own], "0 of them of"),
        (
            lambda own: [line | {"metadata": json.dumps(metadata(0))} for line in own],
            "of the prompts of these images, got 'cow 0' .* for 00001, which is of 'cow 1'",
        ),
        (lambda own: [{"filename": "x"}], "must have filename, correct, metadata"),
        (lambda own: [], "got 0 lines"),
    ],
)
def test_geneval_refuses_results_of_others(geneval, change, message):
    with pytest.raises(UserError, match=message):
        geneval.read(write(geneval.images, change(lines())))


def test_geneval_refuses_a_torn_file(geneval):
    file = write(geneval.images, lines())
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match="must be whole JSON lines"):
        geneval.read(file)


def remove(path: str):
    return lambda folder: (folder / path).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("00001/samples/00001.png"), "got 1 in 00001 and 2 in 00000"),
        (remove("00001/metadata.jsonl"), "must have .*00001/metadata.jsonl, got none"),
        (lambda folder: (folder / "00001").rename(folder / "00007"), "3 folders .* up to 00007"),
        (lambda folder: (folder / "2").mkdir(), "each number once, got 4 folders"),
        (lambda folder: draw(folder / "00000/samples/7.png.old", RED), "got 2 in 00001 and 3"),
        (lambda folder: (folder / "00002/metadata.jsonl").write_text("{"), "one JSON object"),
    ],
)
def test_geneval_refuses_a_folder_that_is_not_whole(geneval, change, message):
    geneval.check_images()
    change(geneval.images)
    with pytest.raises(UserError, match=message):
        geneval.check_images()


def test_geneval_refuses_images_of_other_prompts(geneval, tmp_path):
    for asked, message in (
        ([0, 1], "of all 2 prompts .* got 3"),
        ([0, 1, 2, 2], "all 4 prompts .* got 3"),
        ([0, 2, 1], "another prompt in 00001"),
    ):
        prompts = tmp_path / "asked.jsonl"
        prompts.write_text("".join(json.dumps(metadata(number)) + "\n" for number in asked))
        with pytest.raises(UserError, match=message):
            GenEval(geneval.images, prompts=prompts).check_images()
    with pytest.raises(UserError, match="00000/samples and so on"):
        GenEval(tmp_path / "none").check_images()


@pytest.fixture
def dpg(tmp_path: Path) -> DPG:
    """Three prompts with three images each, one of them with an underscored name."""
    for name in ("1", "coco_seed", "p"):
        draw(tmp_path / f"grids/{name}.png", RED, RED, RED)
        for seed in range(3):
            draw(tmp_path / f"samples/{name}_seed{seed:06d}.png", RED)
    return DPG(tmp_path)


TEXT = (
    "/a, b/grids/1.png, 1.0, 0.5, 0.0, 0.5\n"
    "/a, b/grids/p.png, 0.0, 0.0, 0.0, 0.0\n"
    "/a, b/grids/coco_seed.png, 1.0, 1.0, 1.0, 1.0\n"
    "Model: grids\nL1 category scores:\n\tentity: 75.0\n\tglobal: 12.5\n"
    "L2 category scores:\n\tentity -: 1.0\n\tentity - part: 50.0\n\tentity - whole: 100.0\n"
    "\tglobal -: 12.5\n"
    "Image path: /a: b/grids\nSave results to: /a, b/x.txt\nDPG-Bench score: 50.0\n"
)


def test_dpg_is_read_with_its_categories(dpg):
    dpg.check_images()
    file = dpg.images / "results.txt"
    file.write_text(TEXT)
    found = dpg.read(file)
    assert {score.name: score.value for score in found.scores} == {
        "DPG-3x3": 50.0,
        "DPG-3x3 entity": 75.0,
        "DPG-3x3 global": 12.5,
        "DPG-3x3 entity - part": 50.0,
        "DPG-3x3 entity - whole": 100.0,
    }
    assert found.scores[0].error == pytest.approx(50 / 3**0.5)
    assert [score.num_images for score in found.scores[:2]] == [9, 3]
    assert "do not compare them" in found.notes[1]


def test_dpg_says_which_prompt_its_scorer_left_out(dpg):
    file = dpg.images / "results.txt"
    file.write_text(TEXT.replace("/a, b/grids/1.png, 1.0, 0.5, 0.0, 0.5\n", ""))
    assert "left out 1: it skips the first line" in dpg.read(file).notes[-1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DPG-Bench score: 50.0\n", "", "must end with the DPG-Bench score"),
        ("score: 50.0", "score: 51.0", "must have the overall score of their prompts, 50.0"),
        ("score: 50.0", "score: nan", "finite numbers, got nan"),
        ("1.0, 0.5, 0.0, 0.5", "1.0, 0.5, 0.5", "finite numbers, got b/grids/1.png"),
        ("/a, b/grids/1.png, 1.0, 0.5, 0.0", "x, 0.0", "one line a prompt with 3 scores"),
        ("grids/p.png", "grids/1.png", "one line a prompt"),
        ("grids/p.png", "grids/q.png", "got 3 in .*, 2 of them of these"),
    ],
)
def test_dpg_refuses_results_of_others(dpg, old, new, message):
    file = dpg.images / "results.txt"
    file.write_text(TEXT.replace(old, new))
    with pytest.raises(UserError, match=message):
        dpg.read(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("grids/1.png"), r"got none for 1 prompts \(1\)"),
        (remove("samples/1_seed000001.png"), "got 2 of 1 and 3 of others"),
        (lambda folder: (folder / "grids/note.txt").touch(), r"got 1 others \(note.txt\)"),
        (
            lambda folder: [draw(folder / f"samples/p_seed{n:06d}.png", RED) for n in range(5)],
            "up to 4 of a prompt, got 5",
        ),
    ],
)
def test_dpg_refuses_a_folder_that_is_not_whole(dpg, change, message):
    change(dpg.images)
    with pytest.raises(UserError, match=message):
        dpg.check_images()


def test_a_program_is_shown_and_its_end_is_kept(capsys):
    seed = [sys.executable, "-c", "import os; print('hash', os.environ['PYTHONHASHSEED'])"]
    run_shown(seed)
    assert capsys.readouterr().out == "hash 0\n"
    code = "import sys; print('a', 5 * '1%\\r', '9%'); print('bad news', file=sys.stderr); exit(3)"
    with pytest.raises(UserError, match=r"exit code 3; nothing is recorded[^1]*9%\nbad news$"):
        run_shown([sys.executable, "-c", code])
    assert "bad news" in capsys.readouterr().out
    assert last_lines("1\n\n 50%\r100%\n2\r\n", 2) == "100%\n2"
