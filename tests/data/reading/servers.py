"""Servers on this machine: a web server that fails as it is told to, and an S3 one."""

import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple
from urllib.parse import unquote

import boto3
from moto.server import ThreadedMotoServer

Fault = int | Literal["stall", "stall_in_body", "reset", "truncate", "no_range"] | None


class Request(NamedTuple):
    method: str
    path: str
    range: str | None


class WebServer:
    """Serves files from memory; `with` starts and stops it.

    `next_faults` are what the next requests meet, one each; `fault` what all others meet. A fault
    is a status such as 503, or: stall (no answer), stall_in_body (half an answer), reset,
    truncate (half an answer, then the end) or no_range (the whole file for a part of it).
    `requests` lists all requests. It also serves as S3 endpoint: "/bucket/key" is a file.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.fault: Fault = None
        self.next_faults: deque[Fault] = deque()
        self.requests: list[Request] = []
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.owner = True, self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "WebServer":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()  # lets stalled requests go
        self.server.shutdown()
        self.server.server_close()

    def met(self, request: Request) -> Fault:
        """Note a request; give the fault that it meets."""
        with self.lock:
            self.requests.append(request)
            return self.next_faults.popleft() if self.next_faults else self.fault


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet, else each answer takes 40 ms

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that has given up
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        owner: WebServer = self.server.owner
        fault = owner.met(Request(self.command, self.path, self.headers.get("Range")))
        if fault == "stall":
            owner.stopped.wait()
            self.close_connection = True
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif isinstance(fault, int):
            self.answer(fault, b"")
        else:
            self.give(owner, fault)

    do_HEAD = do_GET

    def give(self, owner: WebServer, fault: Fault) -> None:
        data = owner.files.get(unquote(self.path.partition("?")[0]))
        if data is None:
            return self.answer(404, b"")
        asked = self.headers.get("Range")
        if asked is None or fault == "no_range":
            return self.answer(200, data, fault)
        first, last = (int(text) for text in asked.removeprefix("bytes=").split("-"))
        if first >= len(data):
            return self.answer(416, b"", where=f"bytes */{len(data)}")
        last = min(last, len(data) - 1)
        where = f"bytes {first}-{last}/{len(data)}"
        return self.answer(206, data[first : last + 1], fault, where)

    def answer(self, status: int, body: bytes, fault: Fault = None, where: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if where:
            self.send_header("Content-Range", where)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("truncate", "stall_in_body"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            if fault == "stall_in_body":
                self.server.owner.stopped.wait()
        else:
            self.wfile.write(body)


S3_ENVIRONMENT = {
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_ALLOW_HTTP": "true",
}


@contextmanager
def s3_server(files: dict[str, bytes]) -> Iterator[dict[str, str]]:
    """An S3 server (moto) with these objects, "bucket/key": bytes; gives the environment that
    leads to it.
    """
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        for bucket in {name.partition("/")[0] for name in files}:
            client.create_bucket(Bucket=bucket)
        for name, data in files.items():
            bucket, _, key = name.partition("/")
            client.put_object(Bucket=bucket, Key=key, Body=data)
        yield {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": url}
    finally:
        server.stop()
