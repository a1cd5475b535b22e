"""All that a run's folder tells of it."""

import json
import re
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pixelhdm.callbacks import bad_samples, non_finite, sample_images
from pixelhdm.checkpoints import checkpoints_of, step_of
from pixelhdm.errors import UserError
from pixelhdm.evaluation.record import read_records
from pixelhdm.inference.exports.training_facts import ENVIRONMENT
from pixelhdm.reporting.curves import Curve, log_folders, read_curves, whole_lines

CONFIG = "config.yaml"
SAMPLE = re.compile(r"step_(\d+)(?:_(\w+))?\.png")
SIGNS = ("logs/version_*/metrics.csv", "checkpoints/*.ckpt", "samples/*.png")


class Run(NamedTuple):
    """A run, as its folder tells.

    Attributes:
        folder: where it lies.
        name: what it is called on the page.
        config: text of its config.yaml; empty where there is none.
        settings: the same, read.
        starts: entries of environment.yaml, oldest first.
        curves: its logged numbers by name.
        samples: files of its sample grids, by step and then by weights, "" for the chosen ones.
        checkpoints: its checkpoints, fewest steps first.
        evaluations: entries of evaluations.jsonl.
        non_finite: steps that were skipped, as non_finite.jsonl has them.
        bad_samples: images that could not be read, as bad_samples.jsonl has them.
        signs: when files of it were written, seconds since 1970, rising.
    """

    folder: Path
    name: str
    config: str
    settings: dict[str, Any]
    starts: list[dict[str, Any]]
    curves: dict[str, Curve]
    samples: dict[int, dict[str, Path]]
    checkpoints: list[Path]
    evaluations: list[dict[str, Any]]
    non_finite: list[dict[str, Any]]
    bad_samples: list[dict[str, Any]]
    signs: list[float]

    @property
    def step(self) -> int:
        """Optimizer steps that it has logged or saved."""
        logged = [int(curve.steps[-1]) for curve in self.curves.values()]
        return max([*logged, *map(step_of, self.checkpoints)], default=0)

    def setting(self, name: str) -> Any:
        """A setting by its dotted name; None where it is not there."""
        value: Any = self.settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def lives(self) -> list[tuple[float, float]]:
        """When each start began and when its last file was written, seconds since 1970; those that
        wrote none are left out.
        """
        begun = [datetime.fromisoformat(start["time"]).timestamp() for start in self.starts]
        ends = pairwise([*begun, float("inf")])
        written = [(b, [sign for sign in self.signs if b <= sign < end]) for b, end in ends]
        return [(b, signs[-1]) for b, signs in written if signs]


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it is none, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"run must be the folder of a run, got {folder}, which is no folder.")
    if not (log_folders(folder) or (folder / ENVIRONMENT).exists() or checkpoints_of(folder)):
        raise UserError(
            f"run must be the folder of a run, got {folder}, which has no {ENVIRONMENT}, logs or "
            "checkpoints. It is what trainer.default_root_dir says, such as runs/quickstart."
        )
    config = folder / CONFIG
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    starts = read_yaml(folder / ENVIRONMENT, list)
    return Run(
        folder=folder,
        name=folder.resolve().name,
        config=text,
        settings=read_yaml(config, dict),
        starts=starts,
        curves=read_curves(folder, [start["step"] for start in starts]),
        samples=find_samples(folder),
        checkpoints=sorted(checkpoints_of(folder), key=step_of),
        evaluations=read_records(folder),
        non_finite=read_lines(folder / non_finite.FILE),
        bad_samples=read_lines(folder / bad_samples.FILE),
        signs=sorted(file.stat().st_mtime for part in SIGNS for file in folder.glob(part)),
    )


def read_yaml(file: Path, kind: type) -> Any:
    """What a YAML file holds; an empty `kind` where it is not there."""
    if not file.exists():
        return kind()
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or kind()
    except yaml.YAMLError as error:
        raise UserError(f"{file} must be YAML, got other text: {error}.") from error
    if not isinstance(found, kind):
        raise UserError(f"{file} must hold a {kind.__name__}, got a {type(found).__name__}.")
    return found


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in a file of one JSON object a line; none where it is not there. A last line that
    is still being written is left out.
    """
    if not file.exists():
        return []
    try:
        return [json.loads(line) for line in whole_lines(file) if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{file} must hold one JSON object a line, got {error}.") from error


def find_samples(folder: Path) -> dict[int, dict[str, Path]]:
    """The sample grids of a run by step and weights."""
    found: dict[int, dict[str, Path]] = {}
    for file in sorted((folder / sample_images.FOLDER).glob("*.png")):
        if name := SAMPLE.fullmatch(file.name):
            found.setdefault(int(name[1]), {})[name[2] or ""] = file
    return dict(sorted(found.items()))
