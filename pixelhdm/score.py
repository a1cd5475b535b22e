"""The command `score`: a benchmark's own program judges what predict has drawn."""

import os
import shlex
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Literal

from PIL import Image

from pixelhdm.callbacks.image_facts import CONFIG, PREFIX
from pixelhdm.callbacks.run_record import git_state
from pixelhdm.checkpoints import FOLDER, is_checkpoint, read_checkpoint, step_of
from pixelhdm.errors import UserError, check_at_least
from pixelhdm.evaluation.benchmarks.benchmark import Benchmark, Result, show
from pixelhdm.evaluation.benchmarks.dpg import DPG
from pixelhdm.evaluation.benchmarks.geneval import GenEval
from pixelhdm.evaluation.benchmarks.running import run_scorer
from pixelhdm.evaluation.record import record_scores
from pixelhdm.evaluation.scores import as_record

Name = Literal["geneval", "dpg"]
OF_ONE_IMAGE = ("seed", "prompt", "negative_prompt")


def score(
    benchmark: Name,
    images: str,
    scorer: str | None = None,
    python: str | None = None,
    models: str | None = None,
    detector_config: str | None = None,
    prompts: str | None = None,
    num_processes: int = 1,
    results: str | None = None,
    run: str | None = None,
    dry_run: bool = False,
) -> None:
    """Let GenEval's or DPG's own program judge what predict has drawn, and record what it finds.

    The images are drawn with predict --data.prompts and GenEval's evaluation_metadata.jsonl, or
    DPG's folder of prompts. The program runs in its own Python environment; its results are kept
    beside the images, and the scores go into evaluations.jsonl and TensorBoard of the run.

    Args:
        benchmark: geneval or dpg.
        images: folder that predict wrote.
        scorer: folder of the program: a clone of github.com/djghosh13/geneval or
            github.com/TencentQQGYLab/ELLA.
        python: Python of the program's environment; empty takes this one.
        models: geneval: folder of the detector's weights; empty takes models/ of the clone.
        detector_config: geneval: mmdet's file of the detector; empty takes that of mmdet's clone.
        prompts: geneval's metadata or dpg's csv of questions that the images are of; empty takes
            the clone's.
        num_processes: dpg: processes that score, each on a GPU.
        results: file that the program has written, perhaps elsewhere: it is read alone.
        run: folder of the run to record the scores in; empty takes that of the images' checkpoint.
        dry_run: print the program's command line alone.

    Raises:
        UserError: images or program are not whole, the program failed, or its results are not of
            these images.
    """
    check_at_least(1, num_processes=num_processes)
    if scorer is None and (results is None or dry_run):
        raise UserError("scorer must be the folder of the benchmark's program, or results a file.")
    folder, clone = Path(images).resolve(), resolved(scorer)
    if benchmark == "geneval":
        check_unset("geneval", num_processes=num_processes == 1)
        own = GenEval(folder, clone, resolved(prompts), resolved(models), resolved(detector_config))
    else:
        check_unset("dpg", models=models is None, detector_config=detector_config is None)
        own = DPG(folder, clone, resolved(prompts), num_processes)
    program = sys.executable if python is None else absolute(python)
    if results is None and not dry_run:
        own.check_scorer(program)
    own.check_images()
    if dry_run:
        print(shlex.join(own.command(program, folder)))
        return
    facts = facts_of(own.pictures())
    target = run_of(facts, run)
    file = Path(results) if results is not None else run_scorer(own, program, folder)
    found = own.read(file)
    show(found)
    if file.stat().st_mtime < max(picture.stat().st_mtime for picture in own.pictures()):
        print(f"{file} is older than the images: make sure that it is theirs.")
    print(f"Results by image: {file}")
    if target is None:
        print("The images do not tell a checkpoint of a run here: not recorded. --run names it.")
        return
    record_scores(target, entry_of(benchmark, own, found, facts, folder, clone))
    print(f"Recorded in {target / 'evaluations.jsonl'}.")


def resolved(path: str | None) -> Path | None:
    """A path that another folder may be the working one for."""
    return None if path is None else Path(path).resolve()


def absolute(python: str) -> str:
    """The same for a program, whose link must stay: an environment is known by where it lies."""
    found = shutil.which(python)
    return python if found is None else os.path.abspath(found)


def check_unset(benchmark: Name, **are_unset: bool) -> None:
    """Raise a UserError for a setting that a benchmark has not."""
    for name, is_unset in are_unset.items():
        if not is_unset:
            raise UserError(f"{name} must be left out with {benchmark}, which has no such thing.")


def facts_of(pictures: list[Path]) -> dict[str, str]:
    """What all images tell of how they were made; nothing where they are not predict's.

    Raises:
        UserError: they were not made alike.
    """
    first = facts_in(pictures[0])
    for picture in pictures[1:]:
        own = facts_in(picture)
        other = [name for name in first | own if first.get(name) != own.get(name)]
        if other:
            raise UserError(
                f"images must all be drawn alike, got {other[0]} {first.get(other[0])} in "
                f"{pictures[0]} and {own.get(other[0])} in {picture}. The same predict call draws "
                "those of other settings again."
            )
    return first


def facts_in(picture: Path) -> dict[str, str]:
    """What an image tells, but for what is its own."""
    try:
        with Image.open(picture, formats=["png"]) as image:
            told = {name: str(value) for name, value in image.info.items() if name != CONFIG}
    except OSError as error:
        raise UserError(f"images must be whole PNGs, got {picture}, which is not.") from error
    facts = {k.removeprefix(PREFIX): v for k, v in told.items() if k.startswith(PREFIX)}
    return {name: value for name, value in facts.items() if name not in OF_ONE_IMAGE}


def run_of(facts: dict[str, str], run: str | None) -> Path | None:
    """The folder to record in; None where it is not known."""
    if run is not None:
        if "checkpoint" not in facts:
            raise UserError(
                "images must tell their checkpoint to be recorded in a run, got PNGs without. Draw "
                "them with predict, or leave out --run."
            )
        if not Path(run).is_dir():
            raise UserError(f"run must be the folder of a run, got {run}, which does not exist.")
        return Path(run)
    folder = Path(facts.get("checkpoint", "")).parent
    is_run = folder.name == FOLDER and folder.parent.is_dir()
    return folder.parent if is_run else None


def entry_of(
    benchmark: Name,
    own: Benchmark,
    found: Result,
    facts: dict[str, str],
    folder: Path,
    clone: Path | None,
) -> dict:
    """What is recorded of these scores."""
    checkpoint = Path(facts["checkpoint"])
    settings = {name: facts[name] for name in facts if name not in ("checkpoint", "weights")}
    settings |= {name: int(facts[name]) for name in ("steps", "calls")}
    settings["scale"] = float(facts["scale"])
    state = None if clone is None else git_state(clone)
    commit = "" if state is None else f" @ {state['commit'][:12]}{', changed' * state['dirty']}"
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "kind": benchmark,
        "checkpoint": str(checkpoint),
        "step": step_of_checkpoint(checkpoint),
        "weights": facts["weights"],
        "settings": settings,
        "num_images": found.scores[0].num_images,
        "reference": own.source + commit,
        "folder": str(folder),
        "scores": [as_record(score) for score in found.scores],
    }


def step_of_checkpoint(checkpoint: Path) -> int:
    """Its optimizer step, by its name or else by what is in it; -1 where it does not say."""
    step = step_of(checkpoint)
    if step < 0 and is_checkpoint(checkpoint):
        step = read_checkpoint(checkpoint).get("global_step", -1)
    return step
