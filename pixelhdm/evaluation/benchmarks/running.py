"""A program of another Python environment: what it lacks, and its output while it runs."""

import codecs
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from pixelhdm.errors import UserError
from pixelhdm.evaluation.benchmarks.benchmark import Benchmark

LAST_LINES, TAIL = 5, 8192
UNFINISHED = ".scoring"
FIND = (
    "import importlib.util as u, json, sys; "
    "found = {name: u.find_spec(name) for name in sys.argv[1:]}; "
    "print(json.dumps({name: spec and (spec.origin or '') for name, spec in found.items()}))"
)


def find_modules(python: str, names: tuple[str, ...], remedy: str) -> dict[str, str]:
    """The file of each module that a Python has, without importing it.

    Raises:
        UserError: one is not there, or there is no Python.
    """
    if shutil.which(python) is None:
        raise UserError(f"python must be a program, got {python}, which is none. {remedy}")
    asked = subprocess.run([python, "-c", FIND, *names], capture_output=True, text=True)
    if asked.returncode != 0:
        lines = last_lines(asked.stderr, 1)
        raise UserError(f"python must run Python, got {python}, which says: {lines}. {remedy}")
    places = json.loads(asked.stdout.splitlines()[-1])
    lacking = [name for name, place in places.items() if place is None]
    if lacking:
        raise UserError(f"python must have {', '.join(lacking)}, got {python} without. {remedy}")
    return places


def run_shown(command: list[str]) -> None:
    """Run a program and show what it prints, as it prints it.

    Strings are hashed alike in all its processes: DPG's walks a set in each of several, and mixes
    up its categories where their orders differ (github.com/TencentQQGYLab/ELLA/issues/56).

    Raises:
        UserError: it failed; with its exit code and last lines.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"}
    decoder, tail = codecs.getincrementaldecoder("utf-8")("replace"), ""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that its own processes can be ended with it
    ) as process:
        try:
            while printed := process.stdout.read1():
                text = decoder.decode(printed)
                sys.stdout.write(text)
                sys.stdout.flush()
                tail = (tail + text)[-TAIL:]
            process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise UserError(
            f"scorer must end well, got exit code {process.returncode}; nothing is recorded. Its "
            f"last lines:\n{last_lines(tail, LAST_LINES)}"
        )


def run_scorer(own: Benchmark, python: str, folder: Path) -> Path:
    """Run the program and keep what it wrote beside the images; its results' file."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        command = own.command(python, unfinished)
        print(f"Running {shlex.join(command)}", flush=True)
        run_shown(command)
        for name in own.raw_files:
            if not (unfinished / name).exists():
                raise UserError(f"scorer must write {name}, got none. Is it {own.source}?")
            (unfinished / name).replace(folder / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder / own.raw_files[0]


def last_lines(text: str, num: int) -> str:
    """The end of what was printed; a progress bar counts once."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join([line for line in lines if line][-num:])
