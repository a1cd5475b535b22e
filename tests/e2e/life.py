"""Runs of the command line in processes of their own, each there within a second."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@functools.cache
def fork_server() -> subprocess.Popen:
    """The process that has imported everything, from which runs are forked."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.fork_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        start_new_session=True,
    )


def ask(**request: Any) -> int | None:
    """What the fork server answers."""
    print(json.dumps(request), file=fork_server().stdin, flush=True)
    return json.loads(fork_server().stdout.readline())


def stop_fork_server() -> None:
    """End it if it was started."""
    if fork_server.cache_info().currsize:
        fork_server().communicate()
        fork_server.cache_clear()


class Life:
    """A run of the command line in one process or several, as torch.distributed.run starts them,
    which are a process group.
    """

    def __init__(
        self,
        *arguments: object,
        processes: int = 1,
        folder: str | Path | None = None,
        script: Path = ROOT / "main.py",
        **environment: str,
    ):
        folder = Path(folder or Path.cwd()).resolve()
        self.output = folder / f"output{len(list(folder.glob('output*')))}.txt"
        self.output.touch()
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.running: list[int] = []
        for rank in range(processes):
            own = {**os.environ, "MARK": self.mark, **environment}
            if processes > 1:
                own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                own |= {"TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
                own |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
                own |= {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
                own |= {"GROUP_RANK": "0"}
            run = {"script": str(script), "arguments": [*map(str, arguments)]}
            run |= {"folder": str(folder), "environment": own}
            group = self.running[0] if self.running else 0
            self.running.append(ask(**run, output=str(self.output), group=group))
        self.group, self.codes = self.running[0], dict.fromkeys(self.running)

    def is_over(self) -> bool:
        """Whether all its processes have ended."""
        for pid in list(self.running):
            self.codes[pid] = ask(ended=pid)
            if self.codes[pid] is not None:
                self.running.remove(pid)
        return not self.running

    def send(self, signum: int) -> None:
        """Send a signal to all its processes, as a terminal does."""
        os.killpg(self.group, signum)

    def printed(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def end(self, code: int = 0, within: float = 240) -> str:
        """Wait for it; what it has printed."""
        deadline = time.monotonic() + within
        try:
            while not self.is_over():
                assert time.monotonic() < deadline, self.printed()
                time.sleep(0.01)
        finally:
            if self.running:
                self.send(signal.SIGKILL)
        first, *others = self.codes.values()
        seen = others and code == -signal.SIGKILL and first == 1
        assert first == code or seen, self.printed()  # each may see that another one is killed
        assert {bool(other) for other in others} <= {bool(code)}, self.printed()
        return self.printed()

    def left_behind(self) -> list[str]:
        """Processes that this run has started and that are still there."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue
        return found


def fit(*arguments: object, code: int = 0, **settings: Any) -> str:
    """Train, and give what was printed."""
    return Life("fit", *arguments, **settings).end(code)
