"""A process that has imported everything and is forked into runs of the command line or of another
script; life.py asks it to. What becomes a run is the main program as if it had just been started,
up to its last exit.
"""

import gc
import importlib
import json
import os
import runpy
import sys
from typing import Any


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


if __name__ == "__main__":
    for module in ("pixelhdm.cli", "tests.e2e.watch"):
        importlib.import_module(module)
    gc.freeze()  # what is imported; else the end of each run would look through and copy it all
    become(serve())
    runpy.run_path(sys.argv[0], run_name="__main__")
