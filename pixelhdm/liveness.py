"""What happens when a process of a run dies: all others end too, each with one sentence."""

import json
import os
import selectors
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch.distributed

from pixelhdm.errors import one_line
from pixelhdm.meeting_point import Link, connected
from pixelhdm.processes import are_several

GRACE = 3.0  # seconds in which all may fail for the same reason, each with its own words
PATIENCE = 10.0  # seconds to learn who was lost after a connection has broken
LAST_WORDS = 5.0  # seconds to look what to advise and for a reader to take it
OWN_END = 45.0  # seconds in which a process that has failed must have ended
BROKEN = ("gloo", "NCCL", "pair closure", "Connection closed by peer", "Connection reset by peer")


@dataclass(frozen=True)
class Loss:
    """A process that has ended before the others.

    Attributes:
        rank: its number in the run.
        host: the name of its machine.
        reason: what it has failed with; empty where it could not tell.
    """

    rank: int
    host: str
    reason: str = ""

    def sentence(self, num_processes: int, remedy: str) -> str:
        """What each of the others ends with."""
        how = f"has failed: {self.reason.rstrip('.')}" if self.reason else (
            "was lost: it was killed, by a lack of memory perhaps, or its machine is gone"
        )  # fmt: skip
        return (
            f"error: process {self.rank} of {num_processes}, on host {self.host}, {how}. "
            f"All processes of the run end now. {remedy}"
        )


class Watch:
    """One process's view of the others: a connection to process 0, which has one to each.

    The kernel closes a process's connections when it dies, however it dies and however busy the
    others are; a machine that is gone stops to answer, which the kernel notices after half a
    minute. Process 0 tells the rest. A process that is frozen, but there, counts as alive.

    Args:
        rank: number of this process.
        hosts: machine of each process.
        links: open connections, by rank.
        remedy: gives what a person is to do; asked at the end.
    """

    def __init__(
        self, rank: int, hosts: list[str], links: dict[int, Link], remedy: Callable[[], str]
    ):
        self.rank, self.hosts, self.links, self.remedy = rank, hosts, links, remedy
        self.loss: Loss | None = None
        self.known = threading.Event()
        self.is_leaving = False  # it has told the others of its end
        self.parted: set[int] = set()  # those that have
        self.lock = threading.RLock()
        os.register_at_fork(after_in_child=self.close)  # a child would keep them open
        threading.Thread(target=self.listen, daemon=True, name="watch").start()

    def close(self) -> None:
        """Give up the connections."""
        for link in self.links.values():
            link.close()

    # What the others say ------------------------------------------------------------------------

    def listen(self) -> None:
        """Hear all connections until each is closed."""
        with selectors.DefaultSelector() as selector:
            for rank, link in self.links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    lines = self.links[key.data].receive()
                    if lines is None:
                        selector.unregister(key.fileobj)
                        self.hear_end(key.data)
                    for line in lines or []:
                        self.hear(key.data, line)

    def hear(self, rank: int, line: bytes) -> None:
        """Take a message: a goodbye, which is null, or a loss."""
        told = json.loads(line)
        if told is None or told["rank"] == rank:
            self.parted.add(rank)
        if told is not None:
            self.learn(Loss(**told))

    def hear_end(self, rank: int) -> None:
        """Take the end of a connection; without a goodbye it is a loss."""
        if rank not in self.parted:
            self.learn(Loss(rank, self.hosts[rank]))

    def learn(self, loss: Loss) -> None:
        """End this process because of the first loss that is known of: at once, or after a while
        where the others may be about to fail by themselves.
        """
        with self.lock:
            if self.loss is not None:
                return
            self.loss = loss
        if self.rank == 0:
            self.tell(loss, but=loss.rank)
        self.known.set()
        if loss.reason:
            timer = threading.Timer(GRACE, self.end)
            timer.daemon = True
            timer.start()
        else:
            self.end()

    # What this process does ---------------------------------------------------------------------

    def tell(self, loss: Loss | None, but: int = -1) -> None:
        """Send a loss, or a goodbye, to those that this process is connected with."""
        line = json.dumps(loss and asdict(loss)).encode() + b"\n"
        for rank, link in self.links.items():
            if rank != but:
                link.send(line)

    def leave(self, error: BaseException | None = None) -> None:
        """Tell the others that this process ends, in order or by an error of its own."""
        with self.lock:
            if self.is_leaving:
                return
            self.is_leaving = True
            failed = error is not None and self.loss is None
        if error is not None:
            exit_within(OWN_END)  # a device may wait for others for ever
        own = Loss(self.rank, self.hosts[self.rank], reason(error)) if failed else None
        self.tell(own)

    def end(self) -> None:
        """End this process with the sentence, unless it is about to end by itself."""
        with self.lock:  # and never let it go: nobody is to speak after this
            if not self.is_leaving:
                exit_within(LAST_WORDS)
                end_with(self.loss.sentence(len(self.hosts), self.remedy()))


def reason(error: BaseException) -> str:
    """An error's kind and the beginning of its text."""
    return f"{type(error).__name__}: {one_line(error)[:200]}".rstrip(": ")


def exit_within(seconds: float) -> None:
    """End this process after a while, whatever its other threads do, if it is still there then."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def end_with(sentence: str) -> None:
    """Print a sentence and end this process at once: others of its threads may wait for ever."""
    exit_within(LAST_WORDS)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.write(2, f"\n{sentence}\n".encode())
    os._exit(1)


running: list[Watch] = []  # at most one


def start_watch(remedy: Callable[[], str]) -> str | None:
    """Watch the other processes of the group, where there are any; all must call it together.

    Args:
        remedy: gives what a person is to do when one is lost.

    Returns:
        What keeps some of them from being watched, for process 0 to say; None where nothing does.
    """
    if not are_several() or running:
        return None
    rank = torch.distributed.get_rank()
    hosts, links, trouble = connected()
    running.append(Watch(rank, hosts, links, remedy))
    return trouble


def leave_watch(error: BaseException | None = None) -> None:
    """Tell the other processes that this one ends: in order, or by an error of its own."""
    for watch in running:
        watch.leave(error)


def end_if_lost() -> None:
    """End this process with the sentence where another one is known to be lost: a signal, as a
    launcher sends it then, does not ask to go on and save.
    """
    for watch in running:
        if watch.loss is not None:
            watch.end()


def end_if_broken(error: BaseException) -> None:
    """End this process with a sentence where an error is the consequence of another's end, which
    breaks what connects them.
    """
    if not isinstance(error, RuntimeError) or not are_several():
        return
    text = str(error)
    if not isinstance(error, torch.distributed.DistError) and not any(b in text for b in BROKEN):
        return
    for watch in running:
        if watch.known.wait(PATIENCE):
            watch.end()
        watch.leave(error)
    remedy = running[0].remedy() if running else ""
    end_with(
        "error: the processes of a run must answer each other, got none from another one "
        f"({one_line(error)[:200].rstrip('.')}). {remedy}"
    )
