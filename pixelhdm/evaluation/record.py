"""What evaluations of a run have found, kept in its folder."""

import json
from pathlib import Path
from typing import Any

from pixelhdm.errors import UserError
from pixelhdm.files import append_once

FILE, BOARD = "evaluations.jsonl", "tensorboard"


def record_scores(run_folder: Path, entry: dict[str, Any]) -> None:
    """Append what an evaluation found to <run folder>/evaluations.jsonl, and write its numbers to
    TensorBoard at the checkpoint's step; those of a sweep, many at one step, to the file alone.

    Args:
        run_folder: folder of the run.
        entry: time, kind (test, sweep, geneval or dpg), checkpoint, step, weights, settings,
            num_images, reference, folder, and scores, each with a name and a value.

    Raises:
        UserError: TensorBoard is not installed.
    """
    append_once(run_folder / FILE, [json.dumps(entry, ensure_ascii=False)])
    if entry["kind"] == "sweep" or entry["step"] < 0:
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UserError(
            f"tensorboard must be installed to log to it, got none; {FILE} has the numbers. Run "
            "pip install tensorboard."
        ) from error
    with SummaryWriter(str(run_folder / BOARD)) as board:
        for score in entry["scores"]:
            name = f"{entry['kind']}/{score['name']}".replace(" ", "_")
            board.add_scalar(name, score["value"], entry["step"])


def read_records(run_folder: Path) -> list[dict[str, Any]]:
    """What the evaluations of a run have found, from the first to the last; a line that a kill tore
    is left out.
    """
    file = run_folder / FILE
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
