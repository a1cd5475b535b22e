"""Run folders as training leaves them, without training."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

STARTED = 1_700_000_000  # seconds since 1970, 2023-11-14T22:13:20 in UTC


def write_log(folder: Path, version: int, rows: list[dict[str, float]], end: str = "") -> None:
    """One start's CSV file as Lightning writes it: steps from 0, sorted names, empty cells."""
    file = folder / f"logs/version_{version}/metrics.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
        out.write(end)


def write_starts(folder: Path, *steps: int, **changes: Any) -> None:
    """environment.yaml of starts an hour apart; the last one has the changes."""
    entries = [
        {
            "time": f"2023-11-14T{22 + number}:13:20+00:00",
            "command": "python main.py fit -c x.yaml",
            "step": step,
            "git": {"commit": "0123abcd", "dirty": False},
            "precision": "32-true",
            "processes": 2,
            "devices": ["CPU <1>", "CPU <1>"],
            "python": "3.11.7",
            "cuda": None,
            "packages": {"torch": "2.14.1", "lightning": "2.6.6", "wandb": None},
        }
        for number, step in enumerate(steps)
    ]
    entries[-1] |= changes
    (folder / "environment.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")


def write_config(folder: Path, **data: Any) -> None:
    """config.yaml of a run of 100 steps, 8 images a process."""
    config = {
        "trainer": {"max_steps": 100, "accumulate_grad_batches": 2},
        "data": {"batch_size": 8, "train": {"class_path": "pixelhdm.data.digits.Digits"}, **data},
        "model": {"network": {"class_path": "a.b.PixelHDM"}, "weights": "ema"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def write_lines(folder: Path, name: str, entries: list[Mapping[str, Any]], end: str = "") -> None:
    """A file with one JSON object a line."""
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / name).write_text(text + end, encoding="utf-8")


def write_sample(folder: Path, name: str, shade: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """A sample grid of one shade."""
    file = folder / "samples" / name
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (shade,) * 3).save(file)
    return file


def write_noise(folder: Path, name: str, side: int) -> Path:
    """A sample grid that takes much room."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = write_sample(folder, name)
    Image.fromarray(pixels).save(file)
    return file


def set_time(file: Path, after: float) -> None:
    """Let a file be written so many seconds after the first start."""
    os.utime(file, (STARTED + after, STARTED + after))


def score(name: str, value: float, **changes: Any) -> dict[str, Any]:
    """A score's record."""
    facts = {"error": None, "num_images": 10_000, "num_real": 50_000, "extractor": "Inception"}
    facts |= {"resize": "TF bilinear to 299", "floor": None, "better": "lower"}
    return {"name": name, "value": value, **facts, **changes}


def evaluation(step: int, scores: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """An entry of evaluations.jsonl."""
    facts = {"time": "2023-11-15T00:00:00+00:00", "kind": "test", "weights": "ema"}
    facts |= {"checkpoint": f"r/step_{step}.ckpt", "step": step, "reference": "data.train"}
    facts |= {"settings": {"sampler": "Heun", "steps": 50, "scale": 1.5}, "folder": "test/x"}
    return {**facts, "num_images": 10_000, "scores": scores, **changes}
