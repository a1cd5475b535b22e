"""What the processes of a run tell each other."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed

GRACE = 60.0  # seconds


def are_several() -> bool:
    """Whether this process belongs to a group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather_objects(own: Any) -> list[Any]:
    """The `own` of every process, in the order of their ranks; all must call it together."""
    if not are_several():
        return [own]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return parts


class Meeting:
    """Where the processes of a run wait for each other, a week if need be: the run's own group
    gives up after half an hour. All must make it, and close it, together.
    """

    def __init__(self) -> None:
        self.group: Any = None
        if are_several():
            patience = timedelta(weeks=1)
            self.group = torch.distributed.new_group(backend="gloo", timeout=patience)

    def wait(self) -> None:
        """Return once all are here."""
        if self.group is not None:
            torch.distributed.barrier(self.group)

    def close(self) -> None:
        """Wait for the last time."""
        self.wait()
        if self.group is not None:
            torch.distributed.destroy_process_group(self.group)


def leave_group() -> None:
    """End this process now, with code 0 and after its exit handlers, where it belongs to a group.

    The interpreter's own end kills C++ threads that wait for it, and those of a process group's
    library then abort the whole process, in about one of fifty runs.
    """
    if are_several():
        threading._shutdown()  # as the interpreter does first: pools end their processes
        atexit._run_exitfuncs()  # the group's end is among them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def start_helper() -> None:
    """Make this process a helper of the one that started it: on one thread, deaf to Ctrl-C, which
    the other answers, and gone when that is, even when it was killed.

    A SIGTERM ends it a while later: one to a whole group asks the other process to save first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)
    if hasattr(signal, "SIGUSR1"):  # SLURM sends it to all processes of a job
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_later(signum: int, frame: FrameType | None) -> None:
    """Signal handler: end this process after a while, if it still runs then."""
    timer = threading.Timer(GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


def end_with_parent() -> None:
    """End this process when the one that started it has ended."""
    multiprocessing.parent_process().join()
    os._exit(1)


def num_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
