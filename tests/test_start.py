"""The overview of all commands."""

import re
import subprocess
import sys

from pixelhdm import cli, start
from pixelhdm.trainer_cli import SUBCOMMANDS
from tests.e2e.life import ROOT

LOADED = "import sys; from pixelhdm.start import overview; overview(); print(*sys.modules)"


def test_every_command_is_named_once_and_with_what_it_does():
    named = [name for commands in start.COMMANDS.values() for name in commands]
    assert sorted(named) == sorted({*SUBCOMMANDS, *cli.COMMANDS, *cli.COMMAND_LINES})
    for name in named:
        assert re.search(rf"^  {name} +\w.{{10}}", start.overview(), re.MULTILINE)


def test_it_waits_for_no_library():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "lightning", "jsonargparse", "numpy"} & set(done.stdout.split())


def test_no_arguments_and_help_print_it(monkeypatch, capsys):
    for arguments in ([], ["--help"], ["-h"]):
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        start.main()
        assert capsys.readouterr().out == start.overview() + "\n"
