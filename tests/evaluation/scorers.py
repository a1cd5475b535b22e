"""Stand-ins of GenEval's and DPG's programs: the same files, arguments and results, judged by the
mean colour of the images that they find.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from pixelhdm.callbacks.image_facts import write_png
from pixelhdm.inference.showing.grid import tiled

MODULES = {
    "geneval": ("mmcv", "mmdet", "open_clip", "clip_benchmark"),
    "dpg": ("accelerate", "modelscope"),
}
RED, BLUE = (250, 10, 10), (10, 10, 250)
FACTS = {
    "weights": "ema",
    "sampler": "HeunSampler",
    "steps": "2",
    "calls": "4",
    "scale": "2.5",
    "size": "8x8",
}

GENEVAL = """
import argparse, json, os, re, sys
import clip_benchmark, mmcv, mmdet, open_clip
import numpy as np
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("imagedir")
parser.add_argument("--outfile", default="results.jsonl")
parser.add_argument("--model-config", default=os.path.join(
    os.path.dirname(mmdet.__file__),
    "../configs/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py"))
parser.add_argument("--model-path", default="./")
parser.add_argument("--options", nargs="*", default=[])
args = parser.parse_args()
open(os.path.join(args.model_path, "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth")).close()
open(args.model_config).close()
open(os.path.join(os.path.dirname(__file__), "object_names.txt")).close()
print("detector is there", file=sys.stderr)
found = []
for name in os.listdir(args.imagedir):
    folder = os.path.join(args.imagedir, name)
    if not os.path.isdir(folder) or not name.isdigit():
        continue
    with open(os.path.join(folder, "metadata.jsonl")) as file:
        metadata = json.load(file)
    for image in os.listdir(os.path.join(folder, "samples")):
        path = os.path.join(folder, "samples", image)
        if not os.path.isfile(path) or not re.match(r"\\d+\\.png", image):
            continue
        red, _, blue = np.asarray(Image.open(path)).mean((0, 1))
        wanted = metadata["include"][0]["color"]
        right = bool((red > blue) == (wanted == "red"))
        reason = "" if right else "expected " + wanted
        found.append({"filename": path, "tag": metadata["tag"], "prompt": metadata["prompt"],
                      "correct": right, "reason": reason, "metadata": json.dumps(metadata),
                      "details": json.dumps({"cow": [[0, 0, 1, 1]]} if red != blue else {})})
with open(args.outfile, "w") as file:
    for line in found:
        file.write(json.dumps(line).replace("/", "\\\\/") + "\\n")
"""

DPG = """
import argparse, csv, os
import accelerate, modelscope
import numpy as np
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("--image-root-path")
parser.add_argument("--resolution", type=int)
parser.add_argument("--csv", default="./dpg_bench/dpg_bench.csv")
parser.add_argument("--res-path")
parser.add_argument("--pic-num", type=int, default=1)
parser.add_argument("--vqa-model", default="mplug")
args = parser.parse_args()
assert args.vqa_model == "mplug"
with open(args.csv, newline="") as file:
    lines = list(csv.DictReader(file))[1:]  # as the official one
asked = {}
for line in lines:
    asked.setdefault(line["item_id"], {})[int(line["proposition_id"])] = line
open(args.res_path, "w").close()
means, categories = [], {}
for name in os.listdir(args.image_root_path):
    path, side = os.path.join(args.image_root_path, name), args.resolution
    try:
        whole, questions = Image.open(path), asked[name.split(".")[0]]
        corners = [(0, 0), (side, 0), (0, side), (side, side)][: args.pic_num]
        scores = []
        for x, y in corners:
            red, _, blue = np.asarray(whole.crop((x, y, x + side, y + side))).mean((0, 1))
            answers = {n: float((red > blue) == ("red" in line["question_natural_language"]))
                       for n, line in questions.items()}
            before = dict(answers)
            for number, line in questions.items():
                parents = [int(parent) for parent in line["dependency"].split(",")]
                if any(parent and not answers[parent] for parent in parents):
                    answers[number] = 0
            scores.append(sum(answers.values()) / len(answers))
            with open(args.res_path.replace(".txt", "_detail.txt"), "a") as file:
                file.write(path + ", answers\\n")
        mean = sum(scores) / len(scores)
        with open(args.res_path, "a") as file:
            file.write(path + ", " + ", ".join(map(str, scores)) + ", " + str(mean) + "\\n")
        means.append(mean)
        for number, line in questions.items():
            category = line["tuple"].split("(")[0].strip()
            categories.setdefault(category, []).append(before[number])
    except Exception as error:
        print("Failed filename:", name, error)
coarse = {}
for name, values in categories.items():
    coarse.setdefault(name.split("-")[0].strip(), []).extend(values)
text = "Model: grids\\nL1 category scores:\\n"
text += "".join(f"\\t{name}: {np.mean(values) * 100}\\n" for name, values in coarse.items())
text += "L2 category scores:\\n"
text += "".join(f"\\t{name}: {np.mean(categories[name]) * 100}\\n" for name in sorted(categories))
text += f"Image path: {args.image_root_path}\\nSave results to: {args.res_path}\\n"
text += f"DPG-Bench score: {np.mean(means) * 100}"
with open(args.res_path, "a") as file:
    file.write(text + "\\n")
print(text)
"""


def make_python(folder: Path, benchmark: str) -> Path:
    """A Python whose environment has what the program of a benchmark imports."""
    for name in MODULES[benchmark]:
        (folder / "lib" / name).mkdir(parents=True)
        (folder / "lib" / name / "__init__.py").touch()
    if benchmark == "dpg":
        (folder / "lib/tqdm").mkdir()
        (folder / "lib/tqdm/__init__.py").touch()
    detector = folder / "lib/configs/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py"
    detector.parent.mkdir(parents=True)
    detector.touch()
    (folder / "lib/pandas.py").touch()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}/lib" exec "{sys.executable}" "$@"\n')
    os.chmod(python, 0o755)
    return python


def make_geneval(folder: Path, metadata: list[dict]) -> Path:
    """GenEval's repository, with its own prompts and the detector's weights."""
    for name in ("evaluation", "prompts", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "evaluation/evaluate_images.py").write_text(GENEVAL)
    (folder / "evaluation/object_names.txt").write_text("cow\n")
    (folder / "models/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth").touch()
    lines = "".join(json.dumps(line) + "\n" for line in metadata)
    (folder / "prompts/evaluation_metadata.jsonl").write_text(lines)
    return folder


def make_dpg(folder: Path, questions: list[tuple]) -> Path:
    """DPG's repository with questions (prompt, number, parents, category, question)."""
    (folder / "dpg_bench").mkdir(parents=True)
    (folder / "dpg_bench/compute_dpg_bench.py").write_text(DPG)
    names = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed"
    rows = [
        f'{item},a text,,{number},"{parents}",a,b,{category} (x),{question}'
        for item, number, parents, category, question in questions
    ]
    text = "\n".join([f"{names},tuple,question_natural_language", *rows])
    (folder / "dpg_bench/dpg_bench.csv").write_text(f"{text}\n")
    return folder


def draw(file: Path, *colours: tuple[int, int, int], **facts: str) -> None:
    """An image of one colour as predict writes it, or a grid of several, of a run's checkpoint."""
    told = FACTS | {"checkpoint": "run/checkpoints/step_00000007.ckpt", "seed": "1"} | facts
    images = [np.full((8, 8, 3), colour, np.uint8) for colour in colours]
    write_png(file, images[0] if len(images) == 1 else tiled(images, 2), told, "model: {}")
