"""An HTTP proxy in front of an S3 server that does to chosen requests what networks and services do.

    with FaultyProxy(server.host, server.port) as proxy:
        proxy.fail("PUT", r"/snap-", status(503, "SlowDown"), times=2)

A rule meets the requests whose method and path match (as regular expressions; the path has the query), from
the ``after + 1``-th on, each ``every``-th of them, ``times`` times; the first rule that meets a request
decides. All that passed is in `log`.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Action = Callable[["_Handler"], None]
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>as scripted</Message></Error>'


def status(number: int, code: str) -> Action:
    """Answer with an error and do not pass the request on."""
    return lambda handler: handler.answer(
        number, _ERROR.format(code).encode(), {"Content-Type": "application/xml"}
    )


def lose_request(handler: _Handler) -> None:
    """Break the connection; the server never sees the request."""
    handler.hang_up()


def lose_answer(handler: _Handler) -> None:
    """The server does what was asked, and its answer never arrives."""
    handler.forward()
    handler.hang_up()


def cut_answer(handler: _Handler) -> None:
    """Half of the answer's body arrives."""
    number, body, headers = handler.forward()
    handler.answer(number, body, headers, sent=len(body) // 2)


def drop_condition(handler: _Handler) -> None:
    """Do as a server does that knows no conditional requests: the condition is ignored."""
    del handler.headers["If-None-Match"]
    handler.answer(*handler.forward())


class Late:
    """The request is held until `release`, then passed on; whoever made it has long lost its connection."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.release = threading.Event()
        self.done = threading.Event()
        self.status = 0

    def __call__(self, handler: _Handler) -> None:
        self.arrived.set()
        handler.hang_up()
        if not self.release.wait(30):
            raise TimeoutError("a late request was never released")
        self.status = handler.forward()[0]
        self.done.set()


class Hold:
    """The request is held until `release`, then passed on and answered."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.release = threading.Event()

    def __call__(self, handler: _Handler) -> None:
        self.arrived.set()
        if not self.release.wait(30):
            raise TimeoutError("a held request was never released")
        handler.answer(*handler.forward())


class Hang:
    """The request is held until `release`, then answered; for timeouts."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __call__(self, handler: _Handler) -> None:
        self.release.wait(30)
        handler.hang_up()


class _Rule:
    def __init__(self, method: str, path: str, action: Action, times: int, after: int, every: int) -> None:
        self.method, self.path, self.action = re.compile(method), re.compile(path), action
        self.times, self.after, self.every = times, after, every
        self.met = 0

    def meets(self, method: str, path: str) -> bool:
        if not self.method.fullmatch(method) or not self.path.search(path):
            return False
        self.after -= 1
        if self.after >= 0 or (-self.after - 1) % self.every or self.met == self.times:
            return False
        self.met += 1
        return True


class FaultyProxy:
    """See the module."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self.connections: set[socket.socket] = set()
        self.log: list[tuple[str, str]] = []
        proxy = self

        class Handler(_Handler):
            owner = proxy

        class Server(ThreadingHTTPServer):
            daemon_threads = False  # so that closing waits for them

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Connections break on purpose here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(
        self, method: str, path: str, action: Action, times: int = 1, after: int = 0, every: int = 1
    ) -> Callable[[], int]:
        """Script `action` for the next requests that match; returns what tells how many it met."""
        rule = _Rule(method, path, action, times, after, every)
        with self._lock:
            self._rules.append(rule)
        return lambda: rule.met

    def heal(self) -> None:
        """Drop all rules."""
        with self._lock:
            self._rules.clear()

    def action_for(self, method: str, path: str) -> Action | None:
        with self._lock:
            self.log.append((method, path))
            return next((rule.action for rule in self._rules if rule.meets(method, path)), None)

    def seen(self, method: str, path: str) -> int:
        """How many requests have come that match."""
        with self._lock:
            return sum(m == method and re.search(path, p) is not None for m, p in self.log)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        with self._lock:
            for connection in self.connections:
                _shut(connection)
        self._server.server_close()
        self._thread.join(10)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was quicker
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    owner: FaultyProxy

    def setup(self) -> None:
        super().setup()
        with self.owner._lock:
            self.owner.connections.add(self.connection)

    def finish(self) -> None:
        with self.owner._lock:
            self.owner.connections.discard(self.connection)
        super().finish()

    def handle_expect_100(self) -> bool:
        """Say at once that the body may come."""
        proceed = super().handle_expect_100()
        self.wfile.flush()
        return proceed

    def _handle(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        action = self.owner.action_for(self.command, self.path)
        if action is not None:
            action(self)
        else:
            self.answer(*self.forward())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def forward(self) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(*self.owner._upstream, timeout=30)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
            connection.request(self.command, self.path, self._body, headers)
            answer = connection.getresponse()
            kept = {
                k: v
                for k, v in answer.getheaders()
                if k.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server")
            }
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length") or "0"
            return answer.status, answer.read(), kept
        finally:
            connection.close()

    def answer(self, number: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(number)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else body[:sent])
        self.wfile.flush()
        if sent is not None:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        _shut(self.connection)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: what passed is in the owner's log."""
