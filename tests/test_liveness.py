"""What each process of a run hears of the others; all live in this one here."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from pixelhdm import liveness
from pixelhdm.errors import UserError
from pixelhdm.liveness import Loss, Watch
from pixelhdm.meeting_point import Link

HOSTS = ["a", "b", "c"]


class Ends:
    """The sentences with which processes would have ended."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.added = threading.Semaphore(0)

    def add(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self.added.release()

    def wait(self, number: int) -> list[str]:
        """All sentences, once there are so many."""
        for _ in range(number):
            assert self.added.acquire(timeout=5)
        return self.sentences


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    found = Ends()
    monkeypatch.setattr(liveness, "end_with", found.add)
    monkeypatch.setattr(liveness, "exit_within", lambda seconds: None)
    monkeypatch.setattr(liveness, "GRACE", 0.2)
    return found


@pytest.fixture
def star(ends: Ends) -> Iterator[list[Watch]]:
    """Three processes; none of them is to end this one after the test."""
    pairs = {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        for rank in (1, 2):
            theirs = socket.create_connection(server.getsockname())
            pairs[rank] = server.accept()[0], theirs
    ours = {rank: Link(pair[0]) for rank, pair in pairs.items()}
    first = Watch(0, HOSTS, ours, lambda: "Do x.")
    all_three = [
        first,
        *(Watch(r, HOSTS, {0: Link(pairs[r][1])}, lambda: "Do x.") for r in (1, 2)),
    ]
    yield all_three
    for watch in all_three:
        with watch.lock:
            watch.is_leaving = True


def die(watch: Watch) -> None:
    """Close the connections as the kernel does, of a process that does nothing any more."""
    watch.hear_end = lambda rank: None
    for link in watch.links.values():
        with contextlib.suppress(OSError):  # the other end was faster
            link.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_all_others_hear_of_a_process_that_is_gone(star, ends, rank):
    die(star[rank])
    sentences = ends.wait(2)
    start = f"error: process {rank} of 3, on host {HOSTS[rank]}, was lost: it was killed"
    assert all(sentence.startswith(start) for sentence in sentences)
    assert all(sentence.endswith("end now. Do x.") for sentence in sentences)
    assert len(sentences) == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_an_orderly_end_raises_no_alarm(star, ends, order):
    for rank in order:
        star[rank].leave()
        die(star[rank])
    assert not ends.added.acquire(timeout=0.5)


def test_an_error_of_all_is_left_to_their_own_words(star, ends):
    for watch in star:
        watch.leave(UserError("wrong"))
    assert not ends.added.acquire(timeout=0.5)


@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_of_one_is_told_by_the_others_after_a_while(star, ends, rank):
    star[rank].leave(ValueError("too\nlarge."))
    for other in star:
        if other.rank != rank:
            assert other.known.wait(5)
            assert other.loss == Loss(rank, HOSTS[rank], "ValueError: too large.")
    assert all("has failed: ValueError: too large. All" in s for s in ends.wait(2))


def test_what_broke_because_of_another_ends_with_the_others_sentence(star, ends, monkeypatch):
    monkeypatch.setattr(liveness, "running", [star[1]])
    monkeypatch.setattr(liveness, "are_several", lambda: True)
    star[2].leave(ValueError("x"))
    liveness.end_if_broken(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed"))
    assert any("process 2 of 3, on host c, has failed: ValueError: x" in s for s in ends.wait(1))
    before = len(ends.sentences)
    liveness.end_if_broken(RuntimeError("an error of its own"))
    liveness.end_if_broken(UserError("gloo"))
    assert len(ends.sentences) == before
