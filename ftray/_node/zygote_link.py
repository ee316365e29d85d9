"""The node's side of the zygote: asking for workers, restarting a zygote that died.

Owns: the socket to the zygote, its process, the requests that it has not answered.
Invariants: each fork request is answered by exactly one of ``on_forked`` and ``on_failed``, also when the
zygote dies; a module that could not be preloaded is not asked for again.
Leaves to others: what a worker is for, and reaping (the zygote is a child like the workers).
"""

from __future__ import annotations

import marshal
import os
import socket
import sys
import time

from ftray._node import zygote
from ftray._node.loop import READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    class Listener(Protocol):
        """Who is told about answers."""

        def on_forked(self, number: int, pid: int) -> None: ...
        def on_fork_failed(self, number: int, text: str, fault: bool) -> None: ...
        def on_preloaded(self, modules: list[str], error: str) -> None: ...
        def on_zygote_restarted(self, text: str) -> None: ...


# A zygote that dies at once, again and again, is not restarted faster than this.
_RESTART_PAUSE_S = 0.5
_QUICK_DEATH_S = 2.0
# Beyond so many in a row something is wrong with it, and the starts that it fails count as failures.
_TOLERATED_QUICK_DEATHS = 12


class ZygoteLink:
    """Requests to the zygote and their answers.

    Parameters
    ----------
    sock, pid
        The zygote that was forked at the start.
    config
        ``sys_path``, ``worker_module`` and the interpreter's ``flags`` for a zygote that replaces it.
    """

    def __init__(
        self, sock: socket.socket, pid: int, loop: Loop, listener: Listener, config: dict[str, Any]
    ) -> None:
        self.pid = pid
        self._sock = sock
        self._loop = loop
        self._listener = listener
        self._config = {key: config[key] for key in ("sys_path", "worker_module", "flags")}
        self._pending: dict[int, None] = {}
        self._preloads: list[str] = []
        self._backlog: list[tuple[bytes, tuple[int, ...]]] = []
        self._started_s = time.monotonic()
        self._quick_deaths = 0
        self._closed = False
        self._watch()

    def _watch(self) -> None:
        self._sock.setblocking(False)
        self._loop.register(self._sock.fileno(), self._readable)

    def fork(self, number: int, token: bytes, session_dir: str, fds: Sequence[int]) -> None:
        """Ask for a worker; ``fds`` are its stdout and stderr and perhaps its plan, and are closed here."""
        self._pending[number] = None
        self._send(("fork", number, token, session_dir), tuple(fds))

    def preload(self, modules: list[str]) -> None:
        """Have further workers share ``modules``."""
        self._preloads += [module for module in modules if module not in self._preloads]
        self._send(("preload", modules), ())

    def _send(self, message: tuple[Any, ...], fds: tuple[int, ...]) -> None:
        self._backlog.append((marshal.dumps(message), fds))
        self._flush()

    def _flush(self) -> None:
        """Send what waits; the loop calls again when the socket has room."""
        while self._backlog and self._sock.fileno() >= 0:
            data, fds = self._backlog[0]
            try:
                socket.send_fds(self._sock, [data], list(fds), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._loop.modify(self._sock.fileno(), READ | WRITE)
                return
            except (BrokenPipeError, ConnectionResetError):
                return  # it died: the loop reports the end of the stream, exited() deals with the backlog
            del self._backlog[0]
            for fd in fds:
                os.close(fd)
        if self._sock.fileno() >= 0:
            self._loop.modify(self._sock.fileno(), READ)

    def _readable(self, events: int, ended: bool = False) -> None:
        if self._sock.fileno() < 0:
            return  # closed by an earlier event of the same batch
        if events & WRITE:
            self._flush()
        while True:
            try:
                data = self._sock.recv(zygote.MESSAGE_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                # It may only have closed its socket; either way the loop reports its end as a child.
                if not ended:
                    os.kill(self.pid, 9)
                self._hang_up()
                return
            self._answered(marshal.loads(data))

    def _hang_up(self) -> None:
        self._loop.unregister(self._sock.fileno())
        self._sock.close()

    def _answered(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == "forked":
            self._pending.pop(message[1], None)
            self._listener.on_forked(message[1], message[2])
        elif kind == "failed":
            self._pending.pop(message[1], None)
            self._listener.on_fork_failed(message[1], message[2], True)
        else:
            if message[2]:
                self._preloads = [module for module in self._preloads if module not in message[1]]
            self._listener.on_preloaded(message[1], message[2])

    def exited(self, text: str) -> None:
        """The zygote died: fail what it had not answered and start another."""
        if self._closed:
            return
        if self._sock.fileno() >= 0:
            self._readable(0, ended=True)
        if self._sock.fileno() >= 0:
            # A child that it had just made holds its end for a moment. When that ends, too, our record must
            # not take it for the end of a zygote: this one is reaped, and its number may be somebody
            # else's.
            self._hang_up()
        for _data, fds in self._backlog:
            for fd in fds:
                os.close(fd)
        self._backlog.clear()
        pending, self._pending = list(self._pending), {}
        lived_s = time.monotonic() - self._started_s
        self._quick_deaths = self._quick_deaths + 1 if lived_s < _QUICK_DEATH_S else 0
        if self._quick_deaths > 1:
            self._loop.set_timer("zygote", time.monotonic() + _RESTART_PAUSE_S, self._restart)
        else:
            self._restart()
        for number in pending:
            fault = self._quick_deaths > _TOLERATED_QUICK_DEATHS
            self._listener.on_fork_failed(number, f"the zygote {text}", fault)
        self._listener.on_zygote_restarted(text)

    def _restart(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        boot = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot.py")
        command = [sys.executable, *self._config["flags"], boot, "zygote", "3", str(os.getpid())]
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        self.pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        theirs.close()
        ours.send(marshal.dumps(self._config))
        self._sock = ours
        self._started_s = time.monotonic()
        self._watch()
        if self._preloads:
            self._backlog.insert(0, (marshal.dumps(("preload", list(self._preloads))), ()))
        self._flush()  # with what was asked for while there was no zygote

    def close(self) -> None:
        """Forget the zygote; it ends when its socket closes, and no other takes its place."""
        self._closed = True
        if self._sock.fileno() >= 0:
            self._hang_up()
