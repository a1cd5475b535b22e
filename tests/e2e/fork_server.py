"""A process that has imported everything and is forked into runs of the command line or of another
script; life.py asks it to. What becomes a run is the main program as if it had just been started,
up to its last exit, but for the interpreter's own end.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[2] / "configs_c2i/quickstart.yaml"
MODULES = (
    "pixelhdm.cli",
    "tests.e2e.watch",
    "torch.utils.tensorboard",
    "transformers.models.dinov3_vit.modeling_dinov3_vit",
)

CODE: list[int] = []  # what a run ends with


def warm_up() -> None:
    """Do once what each run would do anew: import what a run imports late, fill jsonargparse's
    caches with the types of a command line, and measure the processor.
    """
    cli, *_ = [importlib.import_module(module) for module in MODULES]
    sys.argv = ["main.py", "fit", "-c", str(CONFIG), "--print_config"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main()
    torch, throughput = sys.modules["torch"], sys.modules["pixelhdm.callbacks.throughput"]
    throughput.quick_peak = functools.cache(throughput.quick_peak)
    throughput.quick_peak(torch.device("cpu"), torch.float32)


def serve() -> dict[str, Any]:
    """Answer each line of a request: with the exit code of a process, null while it runs, or with
    the id of one that is forked. In that, return its request.
    """
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return request
            os.setpgid(answer, request["group"] or answer)  # here too: the next may join at once
        print(json.dumps(answer), flush=True)
    sys.exit()


def become(run: dict[str, Any]) -> None:
    """Take a run's process group, environment, folder, output and arguments."""
    os.setpgid(0, run["group"])
    os.environ.clear()
    os.environ.update(run["environment"])
    os.chdir(run["folder"])
    output = os.open(run["output"], os.O_WRONLY | os.O_APPEND)
    for stream, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(file, stream)
    sys.argv = [run["script"], *run["arguments"]]


def run(script: str) -> None:
    """Run a script and note its exit code."""
    try:
        runpy.run_path(script, run_name="__main__")
        CODE.append(0)
    except SystemExit as end:
        CODE.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def leave() -> None:
    """End a run at once: to take modules apart would copy all that it shares with the server."""
    if CODE:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(*CODE)


if __name__ == "__main__":
    atexit.register(leave)  # before all others, so that it is called after them
    warm_up()
    gc.freeze()  # what is imported; else garbage collection in each run would look through it all
    become(serve())
    run(sys.argv[0])
