"""From a text model and GenEval's prompts to scores in the run's log."""

import json
from pathlib import Path

from pixelhdm.evaluation.record import read_records
from tests.e2e.drawn import TEXT, files, save_text_checkpoint
from tests.evaluation.scorers import make_dpg, make_geneval, make_python


def test_what_predict_draws_is_scored_and_logged(run):
    checkpoint = Path("runs/text/checkpoints/step_00000012.ckpt")
    checkpoint.parent.mkdir(parents=True)
    save_text_checkpoint()
    Path("text.ckpt").rename(checkpoint)
    prompts = [
        {"tag": tag, "include": [{"class": "cow", "count": 1, "color": color}], "prompt": tag}
        for tag, color in (("colors", "red"), ("colors", "blue"), ("counting", "red"))
    ]
    clone, python = make_geneval(Path("geneval"), prompts), make_python(Path("env"), "geneval")
    source = clone / "prompts/evaluation_metadata.jsonl"
    drawing = [*TEXT, f"--model.init_from={checkpoint}", f"--data.prompts={source}"]
    run("predict", *drawing, "--save_images.folder=out")
    flags = ["--benchmark=geneval", "--images=out", f"--scorer={clone}", f"--python={python}"]
    printed = run("score", *flags)
    assert "Recorded in runs/text/evaluations.jsonl" in printed
    results = Path("out/geneval_results.jsonl").read_text()
    lines = [json.loads(line) for line in results.splitlines()]
    assert len(lines) == 12
    shares = [
        [line["correct"] for line in lines if line["tag"] == tag] for tag in ("colors", "counting")
    ]
    assert [len(share) for share in shares] == [8, 4]
    (entry,) = read_records(Path("runs/text"))
    assert entry["scores"][0]["name"] == "GenEval-3x4"
    assert entry["scores"][0]["value"] == sum(sum(s) / len(s) for s in shares) / 2
    assert (entry["step"], entry["weights"], entry["settings"]["steps"]) == (12, "raw", 2)
    run("predict", *drawing, "--save_images.folder=out")  # what the scorer left does not disturb
    assert "geneval_results.jsonl" in files("out")

    Path("dpg_prompts").mkdir()
    for name in "ab":
        Path(f"dpg_prompts/{name}.txt").write_text(f"a picture of {name}")
    run("predict", *drawing, "--data.prompts=dpg_prompts", "--save_images.folder=dpg_out")
    questions = [(n, i, "0", "entity - whole", "is it red?") for n in "ab" for i in (1, 2)]
    clone, python = make_dpg(Path("dpg"), questions), make_python(Path("dpg_env"), "dpg")
    flags = ["--benchmark=dpg", "--images=dpg_out", f"--scorer={clone}", f"--python={python}"]
    assert "of 2 prompts, 4 images each" in run("score", *flags)
    assert [own["kind"] for own in read_records(Path("runs/text"))] == ["geneval", "dpg"]
