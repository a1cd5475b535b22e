"""How the processes of a run come to be connected with its first, beside their process group."""

import os
import secrets
import socket
import time
from dataclasses import dataclass

import torch.distributed

from pixelhdm.processes import gather_objects

IDLE, INTERVAL, COUNT = 10, 5, 4  # seconds, seconds, tries: a machine that is gone is one after 30
WAIT = 10.0  # seconds for all to be connected
TRY = 3.0  # seconds for one attempt
OPTIONS = {
    "TCP_KEEPIDLE": IDLE,
    "TCP_KEEPINTVL": INTERVAL,
    "TCP_KEEPCNT": COUNT,
    "TCP_USER_TIMEOUT": 1000 * (IDLE + INTERVAL * COUNT),
}  # those that the system has
PATIENCE = 2.0  # seconds in which a message must be sent


class Link:
    """A connection on which each message is a line.

    Args:
        connection: the open socket.
    """

    def __init__(self, connection: socket.socket):
        self.connection, self.rest = connection, b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in OPTIONS.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        connection.settimeout(PATIENCE)

    def fileno(self) -> int:
        return self.connection.fileno()

    def receive(self) -> list[bytes] | None:
        """The whole lines that have come, none or several; None where the other end is gone."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        return lines

    def send(self, line: bytes) -> None:
        """Send a line; that the other end is gone shows when it is heard."""
        try:
            self.connection.sendall(line)
        except OSError:
            return

    def close(self) -> None:
        self.connection.close()


@dataclass
class Place:
    """Where process 0 waits for the others: addresses to try, a port, and a word that only they
    know.
    """

    addresses: list[str]
    port: int
    word: str


def connected() -> tuple[list[str], dict[int, Link], str | None]:
    """Connect every process with process 0; all must call it together.

    Returns:
        The machine of each; the connections by rank; and what keeps some from being connected.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    server = open_server(world) if rank == 0 else None
    own = own_place(server.getsockname()[1]) if server else None
    told = gather_objects((socket.gethostname(), own))
    hosts, place = [host for host, _ in told], told[0][1]
    if server:
        with server:
            links = accept_all(server, place.word, world)
    else:
        link = connect(place, rank)
        links = {} if link is None else {0: link}
    reached = gather_objects(bool(links))
    missing = [other for other in range(1, world) if not reached[other]]
    for other in missing:
        links.pop(other, None)  # it has given up what process 0 still holds
    return hosts, links, trouble(missing, hosts, place) if missing and rank == 0 else None


def trouble(missing: list[int], hosts: list[str], place: Place) -> str:
    """What keeps processes from being connected."""
    return (
        f"process {missing[0]} on host {hosts[missing[0]]}, and {len(missing) - 1} others, cannot "
        f"reach {' or '.join(place.addresses)} at port {place.port}, by a firewall perhaps: where "
        "one of these is killed, the run may wait for it for half an hour."
    )


def open_server(world: int) -> socket.socket:
    """A socket that listens at a free port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=world
        )
    return socket.create_server(("", 0), backlog=world)


def own_place(port: int) -> Place:
    """The place of this process: where the others have met it already, or by its name."""
    addresses = [os.environ.get("MASTER_ADDR", ""), socket.gethostname()]
    return Place([a for a in dict.fromkeys(addresses) if a], port, secrets.token_hex(16))


def connect(place: Place, rank: int) -> Link | None:
    """A connection with process 0; None where it cannot be reached."""
    for address in place.addresses:
        try:
            connection = socket.create_connection((address, place.port), timeout=TRY)
            connection.sendall(f"{place.word} {rank}\n".encode())
            if read_line(connection) == place.word[::-1]:
                return Link(connection)
            connection.close()
        except OSError:
            continue
    return None


def accept_all(server: socket.socket, word: str, world: int) -> dict[int, Link]:
    """The connections of the others, of as many as come in time."""
    links: dict[int, Link] = {}
    deadline = time.monotonic() + WAIT
    while len(links) < world - 1 and time.monotonic() < deadline:
        server.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = server.accept()
            connection.settimeout(TRY)
            said, _, rank = read_line(connection).partition(" ")
            if said != word:  # a stranger
                connection.close()
                continue
            connection.sendall(f"{word[::-1]}\n".encode())
            links[int(rank)] = Link(connection)
        except OSError:
            continue
    return links


def read_line(connection: socket.socket) -> str:
    """A line of text, a byte after the other so that nothing of the next is taken."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 100:
        byte = connection.recv(1)
        if not byte:
            break
        line += byte
    return line.decode("ascii", "replace").strip()
