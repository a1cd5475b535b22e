"""Summary, faults, environment and config of runs."""

from collections import Counter
from html import escape
from typing import Any

import yaml

from pixelhdm.inference.exports.training_facts import commit, devices
from pixelhdm.loggers import flattened
from pixelhdm.reporting.facts import facts_of
from pixelhdm.reporting.markup import Section, facts_table, folded, note, table
from pixelhdm.reporting.run import Run

SHOWN = 20  # faults of a kind
TOLD = ("time", "step", "command", "git", "precision", "processes", "devices", "python", "cuda")


def summary(runs: list[Run]) -> Section:
    """The facts of each run side by side."""
    facts = [facts_of(run) for run in runs]
    if len(runs) == 1:
        return Section("summary", "Summary", facts_table(facts[0]))
    names = list(dict.fromkeys(name for own in facts for name in own))
    rows = [
        [f"<b>{escape(name)}</b>", *(escape(own.get(name, "–")) for own in facts)] for name in names
    ]
    head = ["", *(escape(run.name) for run in runs)]
    return Section("summary", "Summary", table(head, rows))


def faults(runs: list[Run]) -> Section:
    """Steps that were skipped and images that could not be read."""
    parts = []
    for run in runs:
        heading = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        found = skipped_steps(run) + unread_images(run) + overflows(run)
        parts.append(heading + found if found else "")
    return Section("warnings", "Warnings", "".join(parts))


def skipped_steps(run: Run) -> str:
    """Steps whose loss or gradient was no number."""
    found = run.non_finite
    if not found:
        return ""
    told = f"{len(found):,} steps skipped, for their loss or gradient was NaN or infinite"
    rows = [
        [f"{one['step']:,}", escape(one["loss"]), escape(one["grad_norm"]), indices(one["samples"])]
        for one in found[-SHOWN:]
    ]
    head = ["step", "loss", "gradient norm", "samples"]
    return warning(told) + folded(f"Which{last_of(found)}", table(head, rows))


def indices(samples: list[int]) -> str:
    """The first few numbers of samples."""
    more = f", … {len(samples)} in all" if len(samples) > 8 else ""
    return ", ".join(map(str, samples[:8])) + more


def unread_images(run: Run) -> str:
    """Images that had no weight, since they could not be read."""
    found = run.bad_samples
    if not found:
        return ""
    reasons = Counter((one["split"], one["reason"]) for one in found)
    kinds = ", ".join(f"{number} {reason} ({split})" for (split, reason), number in reasons.items())
    told = f"{len(found):,} times an image could not be read: {kinds}"
    places = [
        {k: v for k, v in one.items() if k not in ("split", "reason", "detail", "epoch")}
        for one in found[-SHOWN:]
    ]
    rows = [
        [escape(str(one[key])) for key in ("split", "epoch", "reason", "detail")]
        + [escape(", ".join(f"{name} {value}" for name, value in place.items()))]
        for one, place in zip(found[-SHOWN:], places, strict=True)
    ]
    head = ["data", "epoch", "reason", "detail", "where"]
    return warning(told) + folded(f"Which{last_of(found)}", table(head, rows))


def warning(text: str) -> str:
    """A sentence that stands out; a text."""
    return f'<p class="warning">{escape(text)}.</p>'


def last_of(found: list[Any]) -> str:
    """That not all are shown."""
    return f", the last {SHOWN}" if len(found) > SHOWN else ""


def overflows(run: Run) -> str:
    """Steps that were skipped since the scaled loss overflowed, no fault."""
    curve = run.curves.get("train/overflows")
    if curve is None or not curve.values[-1]:
        return ""
    return note(f"{curve.values[-1]:g} steps skipped to find the loss scale of 16-mixed.")


def environment(runs: list[Run]) -> Section:
    """What each start of a run ran with; what has changed since the start before
    stands out.
    """
    parts = []
    for run in runs:
        heading = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        starts = [start_facts(start) for start in run.starts]
        rows = [
            [f"<b>{escape(name.replace('_', ' '))}</b>", *changes(name, starts)]
            for name in dict.fromkeys(name for start in starts for name in start)
        ]
        if rows:
            parts.append(heading + table([], rows, "top"))
            packages = run.starts[-1].get("packages") or {}
            known = {name: version for name, version in packages.items() if version}
            parts.append(folded("Packages of the last start", facts_table(known)))
    return Section("environment", "Environment", "".join(parts))


def start_facts(start: dict[str, Any]) -> dict[str, str]:
    """An entry of environment.yaml in short texts; packages as one."""
    facts = {name: start.get(name) for name in TOLD}
    facts |= {"git": commit(start.get("git")), "devices": devices(start)}
    packages = start.get("packages") or {}
    facts["torch, lightning"] = ", ".join(str(packages.get(n)) for n in ("torch", "lightning"))
    return {name: "–" if value is None else str(value) for name, value in facts.items()}


def changes(name: str, starts: list[dict[str, str]]) -> list[str]:
    """A fact of each start, as HTML; those that should stay and have changed are marked."""
    cells, stays = [], name not in ("time", "step", "command")
    for number, start in enumerate(starts):
        is_new = stays and number > 0 and start[name] != starts[number - 1][name]
        cells.append(f"<mark>{escape(start[name])}</mark>" if is_new else escape(start[name]))
    return cells


def config(runs: list[Run]) -> Section:
    """The settings in which runs differ, and all of them, folded."""
    parts = []
    if len(runs) > 1:
        parts.append(differences(runs))
    for run in runs:
        if run.config:
            title = "config.yaml" + (f" of {run.name}" if len(runs) > 1 else "")
            parts.append(folded(title, f"<pre>{escape(run.config)}</pre>"))
    return Section("config", "Config", "".join(parts))


def differences(runs: list[Run]) -> str:
    """The settings that are not the same in all runs."""
    own = [flattened(run.settings) for run in runs]
    names = list(dict.fromkeys(name for settings in own for name in settings))
    rows = [
        [f"<code>{escape(name)}</code>", *(escape(as_text(one.get(name))) for one in own)]
        for name in names
        if len({str(one.get(name)) for one in own}) > 1
    ]
    if not rows:
        return note("All settings are the same.")
    return table(["setting", *(escape(run.name) for run in runs)], rows)


def as_text(value: Any) -> str:
    """A setting on one line."""
    if value is None:
        return "–"
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
