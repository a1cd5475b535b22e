"""What a sweep keeps of each setting, so that it is evaluated once."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pixelhdm.evaluation.scores import as_record, from_record
from pixelhdm.files import replacing
from pixelhdm.inference.showing.grid import Pixels
from pixelhdm.sweeping.cost import Cost
from pixelhdm.sweeping.results import Row
from pixelhdm.sweeping.setting import Setting

RESULT, SHOWN = "result.json", "shown.npz"


def identity(settings: dict[str, Any], checkpoint_digest: str, files: list[Path]) -> str:
    """A short text that differs when scores could: settings of the model, the data and the
    evaluation, weights, and files that these name.
    """
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([settings, checkpoint_digest, stats], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:16]


def write_result(folder: Path, own: str, row: Row, shown: list[Pixels]) -> None:
    """Keep the scores of a setting in its folder, and some images to be shown; `own` is its
    identity.
    """
    if shown:
        with replacing(folder / SHOWN) as temporary, open(temporary, "wb") as out:
            np.savez(out, images=np.stack(shown))
    content = {
        "identity": own,
        "setting": row.setting._asdict(),
        "cost": row.cost._asdict(),
        "seconds": row.seconds,
        "scores": [as_record(score) for score in row.scores],
    }
    with replacing(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def read_result(folder: Path, own: str, setting: Setting, cost: Cost) -> Row | None:
    """What was kept of a setting; None where it is not there or of another identity."""
    file = folder / RESULT
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["identity"] != own:
        return None
    scores = [from_record(record) for record in content["scores"]]
    return Row(setting, cost, scores, content["seconds"])


def read_shown(folder: Path) -> list[Pixels]:
    """The kept images of a setting; none where there are none."""
    if not (folder / SHOWN).is_file():
        return []
    with np.load(folder / SHOWN, allow_pickle=False) as arrays:
        return list(arrays["images"])
