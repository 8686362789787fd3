"""S3 server over HTTP (moto) behind a TCP proxy that closes and stalls connections and records requests."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "sevir"


@dataclass
class Proxy:
    """Forwards connections to the port ``target``.

    Each of the next ``cuts`` connections is closed after ``cut_after`` bytes of a response; the next ``stalls``
    connections stall instead. ``on_bytes`` is (number of bytes, function called once when they have passed).
    """

    target: int
    cut_after: int = 10_000
    cuts: int = 0
    stalls: int = 0
    on_bytes: tuple[int, Callable[[], None]] | None = None
    passed: int = 0
    requests: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """URL for the client."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Stop accepting connections."""
        self._stopped.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        while data := _received(client):
            with self._lock:
                self.requests += [line for line in data.decode("latin-1").splitlines() if line.startswith("GET ")]
            server.sendall(data)
        _shut(server)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        sent = 0
        while data := _received(server):
            sent += len(data)
            if sent > self.cut_after and self._take("cuts"):
                break
            if sent > self.cut_after and self._take("stalls"):
                self._stopped.wait(30)
                break
            try:
                client.sendall(data)
            except OSError:
                break
            self._count(len(data))
        _shut(client)
        _shut(server)

    def _take(self, name: str) -> bool:
        with self._lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0

    def _count(self, number: int) -> None:
        with self._lock:
            self.passed += number
            due, self.on_bytes = self.on_bytes, None
            if due is not None and self.passed < due[0]:
                due, self.on_bytes = None, due
        if due is not None:
            due[1]()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(8192)
    except OSError:
        return b""


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def s3_server() -> Iterator[tuple[Any, int]]:
    """Yield a client with write access to an empty bucket ``sevir``, and the port of the server."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=BUCKET, ACL="public-read-write")
    try:
        yield client, port
    finally:
        server.stop()
