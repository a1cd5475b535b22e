"""The best setting as a config overlay, and the command that evaluates it in full."""

import os
import shlex
from pathlib import Path

import yaml

from pixelhdm.inference.draw import Drawing
from pixelhdm.sweeping.averages import Averaged

FULL = 50_000  # images of published scores
REPLACED = ("--sweep", "--ckpt_path", "--evaluate.num_images", "--evaluate.folder")


def overlay(averaged: Averaged, drawing: Drawing, told: str) -> str:
    """YAML with which predict and test draw so: checkpoint, weights, solver and guidance."""
    solver = type(drawing.sampler)
    guidance = {"scale": drawing.guidance.scale, "interval": list(drawing.guidance.interval)}
    content = {
        "ckpt_path": str(averaged.file),
        "model": {
            "weights": averaged.weights,
            "sampler": {
                "class_path": f"{solver.__module__}.{solver.__qualname__}",
                "init_args": vars(drawing.sampler),
            },
            "guidance": {"init_args": guidance},
        },
    }
    told = f"{told}\nDraw so:  python main.py predict -c CONFIG -c THIS_FILE"
    head = "".join(f"# {line}\n" for line in told.splitlines())
    return head + yaml.safe_dump(content, sort_keys=False)


def full_command(argv: list[str], best: Path, num_images: int = FULL) -> str:
    """The call of test that evaluates the best setting with many images: that of the sweep, with
    the overlay as its last file.
    """
    kept, words = [], iter(argv[2:])
    for word in words:
        if not word.startswith(REPLACED):
            kept.append(word)
        elif "=" not in word:
            next(words, None)  # its value
    changed = ["-c", str(best), "--evaluate.num_images", str(num_images)]
    start = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        start = ["torchrun", "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"]]
    return shlex.join([*start, argv[0], "test", *kept, *changed])
