"""The command `report`: a run as one page in the browser."""

import json
from pathlib import Path

from pixelhdm.errors import UserError
from pixelhdm.files import replacing
from pixelhdm.reporting.page import page
from pixelhdm.reporting.run import Run, read_run

FILE, FLAG = "report.html", "--run"


def report(run: str | list[str], out: str | None = None) -> None:
    """Write all that a run's folder tells as one HTML page: losses, samples, scores, settings.

    Of several runs, the curves lie over each other. The page needs no other file and no network.
    A run that is still training has one too. The folders may stand without the flag, as in
    main.py report runs/quickstart.

    Args:
        run: folder of a run, or a list of them to compare.
        out: file to write; empty takes report.html in the first run's folder.

    Raises:
        UserError: a folder is no run's, or a file in it is damaged.
    """
    folders = [Path(folder) for folder in ([run] if isinstance(run, str) else run)]
    if not folders:
        raise UserError("run must be the folder of a run, got none. Name one: runs/quickstart.")
    file = folders[0] / FILE if out is None else Path(out)
    text = page(told_apart([read_run(folder) for folder in folders]))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"Wrote {file} ({len(text.encode()) / 1e6:.1f} MB). Open it in any browser.")


def told_apart(runs: list[Run]) -> list[Run]:
    """Runs whose names differ: where folders have one name, their paths."""
    names = [run.name for run in runs]
    return [
        run._replace(name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs
    ]


def folders_spelled_out(arguments: list[str]) -> list[str]:
    """Arguments in which the folders that stand alone, or after --run, are its list."""
    folders, others, is_value = [], [], False
    for word in arguments:
        if word.startswith("-"):
            others += [word] * (word != FLAG)
            is_value = "=" not in word and word != FLAG
        else:
            (others if is_value else folders).append(word)
            is_value = False
    return [*others, f"{FLAG}={json.dumps(folders)}"] if folders else others
