"""A proxy in front of an S3 server that makes it fail now and then.

The faults:

    500, 503: The store answers InternalError or SlowDown, and does nothing.
    reset: The connection is reset, and the store does nothing.
    reset_after: The store does what it was asked to, but instead of its answer comes a reset.
    truncated: The answer to a GET ends after half of its body.
    stall: The store does not begin before `STALL_SECONDS` have passed.
"""

import io
import random
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

ALL_KINDS = ("500", "503", "reset", "reset_after", "truncated", "stall")
STALL_SECONDS = 1.5
STORE_TIMEOUT_SECONDS = 60
BLOCK_BYTES = 1 << 16

ERRORS = {
    "500": ("Internal Server Error", "InternalError", "We encountered an internal error."),
    "503": ("Service Unavailable", "SlowDown", "Please reduce your request rate."),
}


@dataclass
class FaultyProxy:
    """A running proxy and what it has done so far."""

    endpoint: str
    failure_rate: float
    """Probability of a fault per request; may be set at any time."""
    num_requests: int = 0
    num_faults: Counter[str] = field(default_factory=Counter)
    """By kind."""


def spare_none(method: str, target: str) -> bool:
    return False


@contextmanager
def run_faulty_proxy(
    endpoint: str,
    *,
    failure_rate: float,
    seed: int,
    kinds: Sequence[str] = ALL_KINDS,
    spare: Callable[[str, str], bool] = spare_none,
) -> Iterator[FaultyProxy]:
    """Run a proxy; at the end it closes all connections.

    Args:
        endpoint: The store's, over HTTP.
        failure_rate: Probability of a fault per request.
        seed: Requests that come one after the other meet the same faults with the same seed.
        kinds: The faults to draw from; `truncated` is drawn for GET only.
        spare: Tells from the method and the raw path with its query which requests never fail.
    """
    if unknown := set(kinds) - set(ALL_KINDS):
        raise ValueError(f"no such faults: {sorted(unknown)}")
    with _Server(endpoint, failure_rate, random.Random(seed), kinds, spare) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.proxy
        finally:
            server.shutdown()
            thread.join()
            server.close_connections()


class _Server(socketserver.ThreadingTCPServer):
    """Listens, and draws the faults."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        endpoint: str,
        failure_rate: float,
        rng: random.Random,
        kinds: Sequence[str],
        spare: Callable[[str, str], bool],
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        store = urlsplit(endpoint)
        self.store = (store.hostname or "", store.port or 80)
        self.proxy = FaultyProxy(f"http://127.0.0.1:{self.server_address[1]}", failure_rate)
        self._rng = rng
        self._kinds = kinds
        self._spare = spare
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    def draw_fault(self, method: str, target: str) -> str | None:
        is_spared = self._spare(method, target)
        kinds = [kind for kind in self._kinds if kind != "truncated" or method == "GET"]
        with self._lock:
            self.proxy.num_requests += 1
            if is_spared or not kinds or self._rng.random() >= self.proxy.failure_rate:
                return None
            return self._rng.choice(kinds)

    def count_fault(self, kind: str) -> None:
        with self._lock:
            self.proxy.num_faults[kind] += 1

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client or a store that is gone is nothing to report; the other side sees it.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass(frozen=True)
class _Head:
    """The first line and the header fields of a request or of an answer."""

    raw: bytes
    words: list[bytes]
    """Of the first line."""
    fields: dict[bytes, bytes]
    """By lower-case name."""

    @property
    def is_last(self) -> bool:
        return self.fields.get(b"connection", b"").lower() == b"close"


class _Connection(socketserver.StreamRequestHandler):
    """One connection of a client: one request after the other.

    Heads and bodies are passed on byte by byte as they came, because a signature covers them.
    """

    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while (request := _read_head(self.rfile)) is not None:
            if not self._answer(request) or request.is_last:
                return

    def _answer(self, request: _Head) -> bool:
        """Answer a request, and tell whether the connection can take another one."""
        method, target = (word.decode("latin-1") for word in request.words[:2])
        kind = self.server.draw_fault(method, target)
        if kind is not None and kind != "truncated":
            self.server.count_fault(kind)
        if kind == "reset":
            return self._reset()
        if request.fields.get(b"expect", b"").lower() == b"100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind in ERRORS:
            for _ in _body(self.rfile, request):
                pass
            self.wfile.write(_error(kind, method))
            return True
        if kind == "stall":
            time.sleep(STALL_SECONDS)
        with _forward(request, self.rfile, self.server.store) as (answer, body):
            if kind == "reset_after":
                for _ in body:
                    pass
                return self._reset()
            if kind == "truncated" and (content := b"".join(body)):
                self.server.count_fault(kind)
                self.wfile.write(answer.raw + content[: len(content) // 2])
                return False
            self.wfile.write(answer.raw)
            for block in body:
                self.wfile.write(block)
        return not answer.is_last

    def _reset(self) -> bool:
        # Closed here and not by the server, which would first say goodbye (FIN).
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())
        return False


def _error(kind: str, method: str) -> bytes:
    reason, code, message = ERRORS[kind]
    content = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    )
    head = (
        f"HTTP/1.1 {kind} {reason}\r\n"
        "Content-Type: application/xml\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return (head if method == "HEAD" else head + content).encode()


@contextmanager
def _forward(
    request: _Head, content: io.BufferedIOBase, store: tuple[str, int]
) -> Iterator[tuple[_Head, Iterator[bytes]]]:
    """Pass a request on to the store, and give the answer's head and body."""
    # A connection per request: one that is kept may be closed by the store at any moment.
    with (
        socket.create_connection(store, timeout=STORE_TIMEOUT_SECONDS) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request.raw)
        is_refused = False
        for block in _body(content, request):
            # A store that refuses an upload stops to read it, but has answered.
            if not is_refused:
                try:
                    connection.sendall(block)
                except ConnectionError:
                    is_refused = True
        answer = _read_head(answers)
        while answer is not None and answer.words[1].startswith(b"1"):
            answer = _read_head(answers)
        if answer is None:
            raise ConnectionError("the store closed the connection")
        has_body = request.words[0] != b"HEAD" and answer.words[1] not in (b"204", b"304")
        yield answer, _body(answers, answer) if has_body else iter(())


def _read_head(stream: io.BufferedIOBase) -> _Head | None:
    """Read a head, or give nothing where the connection has ended."""
    first = stream.readline()
    if not first:
        return None
    lines = [first, _read_line(stream)]
    while lines[-1] != b"\r\n":
        lines.append(_read_line(stream))
    fields = [line.partition(b":") for line in lines[1:-1]]
    return _Head(
        raw=b"".join(lines),
        words=first.split(maxsplit=2),
        fields={name.strip().lower(): value.strip() for name, _, value in fields},
    )


def _body(stream: io.BufferedIOBase, head: _Head) -> Iterator[bytes]:
    """The bytes of a body as they travel: a chunked one with the sizes of its chunks."""
    if head.fields.get(b"transfer-encoding", b"").lower() != b"chunked":
        yield from _read(stream, int(head.fields.get(b"content-length", b"0")))
        return
    size = -1
    while size != 0:
        line = _read_line(stream)
        yield line
        size = int(line.partition(b";")[0], 16)
        if size:
            yield from _read(stream, size + len(b"\r\n"))
    while line != b"\r\n":
        line = _read_line(stream)
        yield line


def _read(stream: io.BufferedIOBase, size: int) -> Iterator[bytes]:
    while size:
        block = stream.read1(min(size, BLOCK_BYTES))
        if not block:
            raise ConnectionError("closed within a body")
        size -= len(block)
        yield block


def _read_line(stream: io.BufferedIOBase) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("closed within a head")
    return line
