"""The command line: which command it is, short errors and an honest ending."""

import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pixelhdm.cache_text_cli import CacheTextCLI
from pixelhdm.callbacks.checkpoint import Interrupted
from pixelhdm.convert import FROM, convert
from pixelhdm.data.prepare.prepare import prepare, spelled_out
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.demo.command import demo
from pixelhdm.errors import UserError, one_line
from pixelhdm.export import export
from pixelhdm.launching import resuming_command
from pixelhdm.liveness import end_if_broken, end_if_lost, leave_watch
from pixelhdm.models.cpu import keep_heap
from pixelhdm.module import PixelHDMModule
from pixelhdm.parser import Parser, build_error
from pixelhdm.plan_cli import PlanCLI
from pixelhdm.processes import leave_group
from pixelhdm.reconstruct import reconstruct_ema
from pixelhdm.report import folders_spelled_out, report
from pixelhdm.score import score
from pixelhdm.stats import stats
from pixelhdm.sweep_cli import SweepCLI
from pixelhdm.trainer_cli import PixelHDMCLI, SaveConfig

# Those that need no trainer.
COMMANDS = {
    "ema": reconstruct_ema,
    "prepare": prepare,
    "export": export,
    "demo": demo,
    "convert": convert,
    "report": report,
    "stats": stats,
    "score": score,
}
# Those that take the flags of one of Lightning's, with what they do in its place.
COMMAND_LINES = {
    "cache-text": ("fit", CacheTextCLI),
    "plan": ("fit", PlanCLI),
    "sweep": ("test", SweepCLI),
}
# How their arguments are rewritten first.
SPELLINGS = {"prepare": spelled_out, "report": folders_spelled_out}
FULL = (errno.ENOSPC, errno.EDQUOT)
# Flags that no argument of a function can be called, with the argument that they stand for.
RESERVED = {"from": ("family", FROM)}


def run_cli(command_line: type[PixelHDMCLI], arguments: list[str]) -> PixelHDMCLI:
    """Do what arguments ask a kind of command line for, and give it back with what it built."""
    return command_line(
        PixelHDMModule,
        PixelHDMDataModule,
        parser_class=Parser,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=arguments,
        parser_kwargs={
            "allow_abbrev": False,
            "description": "Train and sample image diffusion transformers on pixels.",
            **command_line.usages(),
        },
    )


def main() -> None:
    """Run the command line; a person's mistake ends with one sentence and exit code 1."""
    if not torch.cuda.is_available():
        keep_heap()
    try:
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        if name in SPELLINGS:
            sys.argv[2:] = SPELLINGS[name](sys.argv[2:])
        if name in COMMANDS:
            run_command(name, COMMANDS[name])
            return
        command_line, arguments = PixelHDMCLI, sys.argv[1:]
        # sys.argv stays: with it Lightning starts the other processes of a run.
        if name in COMMAND_LINES:
            arguments[0], command_line = COMMAND_LINES[name]
        go_on = resuming_command(sys.argv)
        run_watched(command_line, arguments)
        leave_group()
    except (UserError, MisconfigurationException) as error:
        sys.exit(f"error: {error}")
    except (ValueError, RuntimeError) as error:
        reason = build_error(error) or refusal_of_lightning(error)
        if reason is None:
            raise
        sys.exit(f"error: {reason}")
    except BrokenPipeError:  # `| head` has read enough; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in FULL:
            sys.exit(f"error: the disk must have room, got: {error.strerror}. Make some.")
        if error.filename is None:
            raise
        path = error.filename2 or error.filename
        sys.exit(f"error: {path} must be usable as a file or folder: {error.strerror}.")
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)  # at once: threads may still wait for a server
    except Interrupted as stop:
        if rank_zero_only.rank == 0:
            print(f"Stopped and saved. Go on with:    {go_on}", flush=True)
        sys.exit(128 + stop.signum)


def run_watched(command_line: type[PixelHDMCLI], arguments: list[str]) -> None:
    """Do what arguments ask for, and tell the other processes of the run how this one ends."""
    try:
        run_cli(command_line, arguments)
        leave_watch()
    except BaseException as error:
        end_if_lost()
        end_if_broken(error)
        leave_watch(None if isinstance(error, Interrupted) else error)
        raise


def run_command(name: str, function: Callable[..., None]) -> None:
    """Run a command that needs no trainer, with the arguments of `function` as its flags."""
    parser = Parser(
        prog=f"main.py {name}",
        description=inspect.getdoc(function).split("\n")[0],
        allow_abbrev=False,
    )
    taken = inspect.signature(function).parameters
    reserved = {flag: own for flag, own in RESERVED.items() if own[0] in taken}
    for flag, (name, text) in reserved.items():
        parser.add_argument(f"--{flag}", type=taken[name].annotation, required=True, help=text)
    skipped = {name for name, _ in reserved.values()}
    parser.add_function_arguments(function, as_group=False, sub_configs=True, skip=skipped)
    if "config" not in taken:
        parser.add_argument("--config", action="config", help="File with these arguments.")
    given = parser.instantiate(parser.parse_args(sys.argv[2:])).as_dict()
    given |= {name: given[flag] for flag, (name, _) in reserved.items()}
    function(**{key: given[key] for key in taken})
    sys.stdout.flush()  # a reader that is gone is noticed here, not at the end of the process


def refusal_of_lightning(error: Exception) -> UserError | None:
    """What Lightning itself says of a setting that it does not take; None for any other error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames or not frames[-1][0].f_globals["__name__"].startswith("lightning."):
        return None
    return UserError(one_line(error))
