"""What stands on the page of a run folder."""

import base64
import io
import json
import re
import time
from html import unescape
from pathlib import Path

import pytest
import torch
from PIL import Image

from pixelhdm.errors import UserError
from pixelhdm.report import folders_spelled_out, report
from pixelhdm.reporting import sample_section
from pixelhdm.reporting.facts import RECENT, facts_of, state
from pixelhdm.reporting.markup import compact, duration, readable
from pixelhdm.reporting.run import read_run
from tests.reporting.runs import (
    STARTED,
    evaluation,
    score,
    set_time,
    write_config,
    write_lines,
    write_log,
    write_noise,
    write_sample,
    write_starts,
)

BINS = {"0.0-0.1": 3.0, "0.9-1.0": 1.0}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of 60 of 100 steps in two starts, the second from step 20."""
    write_config(tmp_path)
    write_starts(tmp_path, 0, 20)
    first = [{"epoch": 0, "step": s, "train/total": 9.0, "train/lr": 0.1} for s in (9, 19, 29)]
    last = [
        {"epoch": 0, "step": s, "train/total": 60.0 - s, "train/velocity": 1.0} for s in (39, 59)
    ]
    last[0] |= {"train/grad_norm": 2.5, "train/clip_threshold": 4.0, "train/clipped_share": 0.25}
    last[1] |= {"throughput/images_per_s": 123.0, "mine/number": 17.5}
    for step, value in ((39, 0.75), (59, 0.5)):
        binned = {f"val_t/total/{name}": value * factor for name, factor in BINS.items()}
        last.append({"epoch": 0, "step": step, "val/total": value, "val_raw/total": 0.8, **binned})
    write_log(tmp_path, 0, first)
    write_log(tmp_path, 1, last)
    set_time(tmp_path / "logs/version_0/metrics.csv", 600)
    set_time(tmp_path / "logs/version_1/metrics.csv", 3600 + 65)
    return tmp_path


def page_of(*folders: Path) -> str:
    """The report's text."""
    report([str(folder) for folder in folders])
    return (folders[0] / "report.html").read_text(encoding="utf-8")


def section(page: str, key: str) -> str:
    """A part of it; nothing where it is not there."""
    found = re.search(rf'<section id="{key}">(.*?)</section>', page, re.DOTALL)
    return found[1] if found else ""


def lines(part: str) -> dict[str, dict[str, dict]]:
    """Of each chart's title the lines by their names, as the script reads them."""
    found = {}
    for figure in re.findall(r'<figure class="chart">(.*?)</figure>', part, re.DOTALL):
        title = unescape(re.search(r"<h3>(.*?) <output>", figure)[1])
        names = re.findall(r"</svg>([^<]*?) <b>", figure)
        drawn = json.loads(re.search(r'json">(.*?)</script>', figure)[1])["lines"]
        found[title] = dict(zip(map(unescape, names), drawn, strict=True))
    return found


def test_summary(folder):
    facts = facts_of(read_run(folder))
    assert facts["steps"] == "60 of 100"
    assert facts["wall time"] == "11 min 5 s in 2 starts"  # 600 s and 65 s
    assert facts["images seen"] == "1,920"  # 60 steps of 8, 2 processes, 2 batches
    assert facts["loss"] == "10, mean of the last 4 logged"  # 9, 9, 21, 1
    assert facts["held-out loss"] == "0.5 at 60, the lowest"
    assert facts["speed"] == "123 images/s"
    assert facts["devices"] == "2 x CPU <1>"
    assert facts["network"] == "PixelHDM"
    assert "parameters" not in facts


def test_parameters_are_those_that_draw(folder):
    (folder / "checkpoints").mkdir()
    sizes = {"network.a": 5, "conditioner.b": 2, "ema.network.a": 5, "loss.c": 9}
    state_dict = {name: torch.zeros(size) for name, size in sizes.items()}
    torch.save({"state_dict": state_dict}, folder / "checkpoints/step_00000060.ckpt")
    assert facts_of(read_run(folder))["parameters"] == "7, 2 of them for the condition"
    (folder / "checkpoints/step_00000070.ckpt").write_bytes(b"torn")
    facts = facts_of(read_run(folder))
    assert facts["steps"] == "70 of 100"
    assert facts["parameters"].startswith("unknown: step_00000070.ckpt cannot be read")


def test_state(folder):
    run, last = read_run(folder), STARTED + 3665
    told = state(run, last + 5)
    assert told == "training, or stopped just now: last file 5 s ago; about 1 min 5 s to go"
    assert state(run, last + RECENT + 60) == "stopped before its end: last file 11 min 0 s ago"
    write_log(folder, 1, [{"epoch": 0, "step": 99, "train/total": 1.0}])
    assert state(read_run(folder), time.time()) == "finished"


def test_curves_are_those_of_the_files(folder):
    page = page_of(folder)
    losses = lines(section(page, "losses"))
    assert list(losses) == ["total", "velocity"]
    assert losses["total"]["training"] == {"x": [10, 20, 40, 60], "y": [9, 9, 21, 1]}
    assert losses["total"]["held out"] == {"x": [40, 60], "y": [0.75, 0.5]}
    assert losses["total"]["held out, raw"]["y"] == [0.8, 0.8]
    times = lines(section(page, "times"))
    assert times["total over t"]["step 60"] == {"x": [0.05, 0.95], "y": [1.5, 0.5]}
    assert times["total by t"]["0–0.1"] == {"x": [40, 60], "y": [2.25, 1.5]}
    gradients = lines(section(page, "gradients"))
    assert gradients["Learning rate"]["rate"] == {"x": [10, 20], "y": [0.1, 0.1]}
    assert gradients["Gradient norm"].keys() == {"norm", "clipped above"}
    assert gradients["Share of clipped steps"]["Share of clipped steps"]["y"] == [0.25]
    assert lines(section(page, "throughput"))["Images per second"]
    assert lines(section(page, "others")) == {
        "mine/number": {"mine/number": {"x": [60], "y": [17.5]}}
    }


def test_term_that_is_the_whole_loss_is_shown_once(folder):
    rows = [
        {"step": s, "train/total": 1 / (s + 1), "train/velocity": 1 / (s + 1)} for s in (39, 59)
    ]
    write_log(folder, 0, [])
    write_log(folder, 1, rows)
    page = page_of(folder)
    assert list(lines(section(page, "losses"))) == ["total"]
    assert section(page, "others") == ""


def test_parts_without_anything_are_left_out(tmp_path):
    write_starts(tmp_path, 0)
    page = page_of(tmp_path)
    assert re.findall(r'<section id="(\w+)">', page) == ["summary", "environment"]
    assert "nothing logged yet" in section(page, "summary")


def test_page_is_whole_by_itself_and_texts_are_escaped(folder):
    bad = "<script>alert(1)</script>"
    write_config(folder, prompts=[bad, "a & b"])
    write_starts(folder, 0, command=f"python main.py fit {bad}")
    write_sample(folder, "step_00000060.png")
    write_lines(folder, "evaluations.jsonl", [evaluation(60, [score(bad, 1.0)], reference=bad)])
    entry = {"split": "train", "epoch": 0, "shard": bad, "reason": bad, "detail": bad}
    write_lines(folder, "bad_samples.jsonl", [entry])
    page = page_of(folder)
    assert bad not in page
    assert page.count("alert(1)") >= 6
    assert not re.search(r'(?:src|href)\s*=\s*"?(?!#|data:)\w', page)
    assert not re.search(r"https?://|url\(|@import|<link", page)
    assert page.count("<script") == page.count("</script>")
    assert "prefers-color-scheme: dark" in page


def test_samples_of_both_weights_over_steps(folder):
    for step in (20, 40):
        write_sample(folder, f"step_{step:08d}.png", step)
        write_sample(folder, f"step_{step:08d}_raw.png", step + 100)
    part = section(page_of(folder), "samples")
    assert re.findall(r'data-step="(\d+)"', part) == ["20", "40"]
    assert re.findall(r"<figcaption>(\w+)", part) == ["ema", "raw"] * 2
    pictures = re.findall(r"data:image/\w+;base64,([^\"]+)", part)
    shades = [Image.open(io.BytesIO(base64.b64decode(one))).getpixel((0, 0)) for one in pictures]
    assert [shade[0] for shade in shades] == pytest.approx([20, 120, 40, 140], abs=2)
    assert 'min="0" max="1"' in part


def test_samples_that_would_make_the_page_large_are_left_out(folder, monkeypatch):
    monkeypatch.setattr(sample_section, "BUDGET", 350_000)
    monkeypatch.setattr(sample_section, "LONGEST", 300)
    for step in range(1, 11):
        write_noise(folder, f"step_{step:08d}.png", 400)
    part = section(page_of(folder), "samples")
    shown = list(map(int, re.findall(r'data-step="(\d+)"', part)))
    assert shown[0] == 1
    assert shown[-1] == 10
    assert 2 < len(shown) < 10
    assert f"{10 - len(shown)} of 10 steps are left out" in part
    picture = base64.b64decode(re.search(r"data:image/webp;base64,([^\"]+)", part)[1])
    assert Image.open(io.BytesIO(picture)).size == (300, 300)


def test_scores_stand_in_tables_and_over_steps(folder):
    found = score("KID", 0.0125, error=0.002, floor=0.0001, num_images=2_000)
    entries = [evaluation(40, [score("FID", 30.5)]), evaluation(60, [score("FID", 20.5), found])]
    write_lines(folder, "evaluations.jsonl", entries, end='{"time": "20')
    write_log(folder, 1, [{"step": 49, "quality/KID": 0.5, "quality/KID_floor": 0.1}])
    part = section(page_of(folder), "quality")
    charts = lines(part)
    assert charts["FID"] == {"ema, scale 1.5, 10,000 images": {"x": [40, 60], "y": [30.5, 20.5]}}
    assert "KID" not in charts
    assert charts["KID while training"]["as many real images"]["y"] == [0.1]
    cells = re.findall(r"<td>(.*?)</td>", part[part.index("KID ↓") - 4 :])[:7]
    words = ["KID ↓", "<b>0.0125 ± 0.002</b>", "0.0001", "2,000", "50,000", "Inception"]
    assert cells == [*words, "TF bilinear to 299"]
    assert part.index("Test at step 60") < part.index("Test at step 40")


def test_sweep_names_the_best_setting(folder):
    values = {1.0: (0.03, 7.0), 2.0: (0.01, 8.0), 3.0: (float("nan"), 9.0)}
    entries = [
        evaluation(
            60,
            [score("KID", kid), score("IS", best, better="higher")],
            kind="sweep",
            settings={"sampler": "Heun", "steps": 50, "scale": scale},
        )
        for scale, (kid, best) in values.items()
    ]
    write_lines(folder, "evaluations.jsonl", entries)
    part = section(page_of(folder), "sweep")
    assert "Best by KID: scale 2.0: 0.01." in part
    assert re.findall(r"<mark>(.*?)</mark>", part) == ["0.01", "9"]
    rows = re.findall(r"<tr><td>(.*?)</td>", part)
    assert rows == ["2.0", "1.0", "3.0"]
    assert section(page_of(folder), "quality") == ""


def test_faults_are_named(folder):
    skipped = [
        {"step": 5, "loss": "nan", "grad_norm": "inf", "samples": list(range(12))},
        {"step": 7, "loss": "1.5", "grad_norm": "nan", "samples": [3]},
    ]
    bad = {"split": "val", "epoch": 0, "shard": "a.tar", "index": 4}
    write_lines(folder, "non_finite.jsonl", skipped)
    write_lines(folder, "bad_samples.jsonl", [{**bad, "reason": "decode", "detail": "cut"}] * 2)
    part = section(page_of(folder), "warnings")
    assert "2 steps skipped" in part
    assert "0, 1, 2, 3, 4, 5, 6, 7, … 12 in all" in part
    assert "2 times an image could not be read: 2 decode (val)" in part
    assert "shard a.tar, index 4" in part


def test_environment_marks_what_a_later_start_changed(folder):
    write_starts(folder, 0, 20, processes=4, packages={"torch": "3.0", "lightning": "2.6.6"})
    part = section(page_of(folder), "environment")
    assert re.findall(r"<mark>(.*?)</mark>", part) == ["4", "3.0, 2.6.6"]


def test_several_runs_lie_over_each_other(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_config(other, seed=7)
    write_starts(other, 0)
    write_log(other, 0, [{"epoch": 0, "step": 9, "train/total": 3.0, "val/total": 4.0}])
    page = page_of(folder, other)
    total = lines(section(page, "losses"))["total"]
    assert total[f"{other.name} training"] == {"x": [10], "y": [3]}
    assert total[f"{folder.name} held out"]["y"] == [0.75, 0.5]
    rows = re.findall(r"<tr>(.*?)</tr>", section(page, "config"))
    (changed,) = [row for row in rows if "<code>" in row]
    assert re.findall(r"<td>(.*?)</td>", changed) == ["<code>data.seed</code>", "–", "7"]
    page = page_of(folder, folder)
    assert f"{folder} training" in lines(section(page, "losses"))["total"]


def test_refused_folders(tmp_path):
    with pytest.raises(UserError, match=r"got .*nowhere, which is no folder"):
        report(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no environment.yaml, logs or checkpoints"):
        report(str(tmp_path))
    with pytest.raises(UserError, match="got none"):
        report([])
    write_starts(tmp_path, 0)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml must be YAML"):
        report(str(tmp_path))


def test_folders_may_stand_alone_or_after_the_flag():
    runs = '--run=["a", "b"]'
    assert folders_spelled_out(["a", "b"]) == [runs]
    assert folders_spelled_out(["--run", "a", "b"]) == [runs]
    assert folders_spelled_out(["--run", "a", "--out", "x", "--run", "b"]) == ["--out", "x", runs]
    assert folders_spelled_out(["a", "--out=x", "b"]) == ["--out=x", runs]
    assert folders_spelled_out(["--run=a"]) == ["--run=a"]
    assert folders_spelled_out(["--help"]) == ["--help"]


def test_numbers_for_people():
    values = (1234567, 0.000123456, 12345.6, 3.0, 1.23456)
    assert list(map(readable, values)) == ["1,234,567", "0.0001235", "12,346", "3", "1.235"]
    assert list(map(compact, (0.5, 950, 1500, 2e6))) == ["0.5", "950", "1.5k", "2M"]
    spans = (0, 59.6, 3725, 90_000)
    assert list(map(duration, spans)) == ["0 s", "1 min 0 s", "1 h 2 min", "1 d 1 h"]
