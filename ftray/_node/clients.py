"""The processes that are connected to the node.

Owns: accepting, authenticating and registering them; their slots; sending to them; finding out that one left.
Invariants: nothing but REGISTER is accepted from a connection before it is registered; a client that breaks
the protocol or does not read is dropped with a report; every registered client is told of every death.
Leaves to others: what a registered client's frames mean (``daemon`` routes them), workers' processes.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time

# What hmac.compare_digest is, without loading OpenSSL.
from _operator import _compare_digest as compare_digest

from ftray._node.board import BoardFull
from ftray._node.connection import Closed, Connection, Overflow
from ftray._node.frames import KIND_DRIVER, KIND_OBSERVER, KIND_WORKER, Register, Registered, Rpc
from ftray._node.loop import READ, WRITE
from ftray._node.protocol import VERSION, Frame, ProtocolError, version_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from ftray._node.daemon import Node
    from ftray._node.protocol import Message
    from ftray._node.workers import WorkerProcess

_UCRED = struct.Struct("iii")
REGISTER_LIMIT_BYTES = 1 << 18
_REGISTER_TIMEOUT_S = 30.0
_MAX_UNREGISTERED = 256
_ACCEPT_PAUSE_S = 0.2


class Client:
    """One connection and, once registered, the process behind it."""

    def __init__(self, number: int, connection: Connection, pid: int) -> None:
        self.number = number
        self.connection = connection
        self.pid = pid
        self.registered = False
        self.observes = False
        self.kind = KIND_DRIVER
        self.worker_id = b""
        self.slot = 0
        self.job_id = 0
        self.sock_name = ""
        self.namespace = ""
        self.job_key = ""
        self.pidfd = -1
        self.worker: WorkerProcess | None = None

    @property
    def is_driver(self) -> bool:
        """Whether this is a driver (a worker otherwise)."""
        return self.kind == KIND_DRIVER

    def __repr__(self) -> str:
        role = ("driver" if self.is_driver else "worker") if self.registered else "unregistered process"
        role = "observer" if self.observes else role
        return f"{role} {self.pid}"


class Clients:
    """Every connected process."""

    def __init__(self, node: Node, listener: socket.socket) -> None:
        self._node = node
        self._listener = listener
        self._all: dict[int, Client] = {}
        self._by_worker_id: dict[bytes, Client] = {}
        self._drivers: dict[int, Client] = {}  # by job
        self._unregistered = 0
        self._paused = False
        self._next_number = 1
        listener.setblocking(False)
        node.loop.register(listener.fileno(), self._accept)

    # Looking up -----------------------------------------------------------------------------------

    def get(self, number: int) -> Client | None:
        """Return the registered client of this number."""
        client = self._all.get(number)
        return client if client is not None and client.registered else None

    def by_worker_id(self, worker_id: bytes) -> Client | None:
        """Return the registered client of this WorkerID."""
        return self._by_worker_id.get(worker_id)

    def registered(self) -> Iterator[Client]:
        """All registered clients, the oldest first."""
        return (client for client in list(self._all.values()) if client.registered)

    def driver_of(self, job_id: int) -> Client | None:
        """Return the driver of a job; the first driver for job 0 (workers that have none yet)."""
        if job_id:
            return self._drivers.get(job_id)
        return next(iter(self._drivers.values()), None)

    # Sending --------------------------------------------------------------------------------------

    def send(
        self, client: Client, frame: Frame, req: int = 0, fds: Sequence[int] = (), flags: int = 0
    ) -> None:
        """Send without waiting; a client that cannot take it is dropped (never inside this call)."""
        if client.number not in self._all:
            return  # its connection is gone, its end is under way
        connection = client.connection
        had_queue = connection.wants_write
        try:
            connection.send(frame, req, fds, flags)
        except (Overflow, Closed) as error:
            self._doom(client, str(error), report=isinstance(error, Overflow))
            return
        if connection.wants_write and not had_queue:
            self._node.loop.modify(connection.fd, READ | WRITE)

    def broadcast(self, frame: Frame) -> None:
        """Send to every registered client."""
        for client in self.registered():
            self.send(client, frame)

    def _doom(self, client: Client, why: str, report: bool) -> None:
        """Drop the client in the next round: the caller may be iterating over clients or in a decision."""
        self._node.loop.set_timer(
            ("drop", client.number), time.monotonic(), lambda: self.drop(client, why, report)
        )

    # Arriving -------------------------------------------------------------------------------------

    def _accept(self, _events: int) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptors left: the others must go on
                self._node.report(f"processes cannot connect at present: {error}")
                self._pause_accepting()
                return
            pid, uid, _gid = _UCRED.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            if uid != os.getuid() or self._unregistered >= _MAX_UNREGISTERED:
                self._node.report(f"refused a connection of process {pid} of uid {uid}")
                sock.close()
                continue
            self._add(sock, pid)

    def _pause_accepting(self) -> None:
        """Look away from the listening socket for a moment: it stays ready while nobody can be accepted."""
        listener = self._listener
        self._node.loop.unregister(listener.fileno())
        self._paused = True

        def resume() -> None:
            self._paused = False
            self._node.loop.register(listener.fileno(), self._accept)

        self._node.loop.set_timer("accept", time.monotonic() + _ACCEPT_PAUSE_S, resume)

    def _add(self, sock: socket.socket, pid: int) -> None:
        client = Client(self._next_number, Connection(sock), pid)
        client.connection.limit_frames(REGISTER_LIMIT_BYTES)
        self._next_number += 1
        self._all[client.number] = client
        self._unregistered += 1
        self._node.loop.register(client.connection.fd, lambda events: self._ready(client, events))
        deadline_s = time.monotonic() + _REGISTER_TIMEOUT_S
        why = f"did not register within {_REGISTER_TIMEOUT_S:g} s"
        self._node.loop.set_timer(
            ("register", client.number), deadline_s, lambda: self.drop(client, why, report=True)
        )

    def _ready(self, client: Client, events: int) -> None:
        try:
            if events & WRITE:
                client.connection.flush()
                if not client.connection.wants_write:
                    self._node.loop.modify(client.connection.fd, READ)
            if events & ~WRITE:
                for message in client.connection.receive():
                    self._handle(client, message)
        except Closed:
            self.drop(client, "closed its connection", report=False)
        except ProtocolError as error:
            self.drop(client, f"broke the protocol: {error}", report=True)

    def drain(self, client: Client) -> None:
        """Handle everything that the client sent before it died."""
        try:
            while client.number in self._all:
                messages = client.connection.receive()
                if not messages:
                    return
                for message in messages:
                    self._handle(client, message)
        except Closed:
            return
        except ProtocolError as error:
            self._node.report(f"{client!r} died in the middle of a message: {error}")

    def _handle(self, client: Client, message: Message) -> None:
        if client.number not in self._all:  # dropped by an earlier message of the same batch
            for fd in message.fds:
                os.close(fd)
        elif client.registered:
            self._node.handle(client, message)
        elif client.observes and isinstance(message.frame, Rpc):
            self._node.rpc.on_rpc(client, message.frame, message.req)
        elif isinstance(message.frame, Register) and not client.observes:
            self._register(client, message.frame, message.req)
        else:
            when = "of an observer" if client.observes else "before REGISTER"
            raise ProtocolError(f"{type(message.frame).__name__} {when}")

    def _register(self, client: Client, frame: Register, req: int) -> None:
        self._node.loop.set_timer(("register", client.number), None, lambda: None)
        error = self._refusal(client, frame)
        if not error and frame.kind == KIND_OBSERVER:
            client.observes = True
            self._unregistered -= 1
            self._welcome(client, req)
            return
        if not error:
            try:
                client.slot = self._node.board.acquire(client.pid)
            except BoardFull as full:
                error = str(full)
        if error:
            info = json.dumps({"error": error, "version": VERSION}).encode()
            self.send(client, Registered(0, 0, bytes(28), 0, self._node.session.path, info), req)
            self.drop(client, f"was refused: {error}", report=True)
            return
        client.kind = frame.kind
        client.worker_id = frame.worker_id
        client.sock_name = frame.sock_name
        client.namespace = frame.namespace
        client.job_key = frame.job_key
        client.registered = True
        self._unregistered -= 1
        client.connection.limit_frames(1 << 30)
        self._by_worker_id[client.worker_id] = client
        if client.is_driver:
            client.job_id = self._node.job_started(client, frame)
            self._drivers[client.job_id] = client
            self._watch_driver(client)
        self._welcome(client, req)
        self._node.on_registered(client, frame)

    def _welcome(self, client: Client, req: int) -> None:
        node = self._node
        answer = Registered(1, client.slot, node.node_id, client.job_id, node.session.path, node.info_json)
        self.send(client, answer, req, [node.board.fd])

    def _refusal(self, client: Client, frame: Register) -> str:
        """Return why the process may not register, "" when it may."""
        if frame.version != VERSION:
            return (
                f"the node runs {version_text(VERSION)}, the process {client.pid} that wants to join it runs"
                f" {version_text(frame.version)}; both must be the same"
            )
        if frame.worker_id in self._by_worker_id:
            return f"a process with the id {frame.worker_id.hex()} is registered already"
        if "/" in frame.sock_name or not frame.sock_name:
            return f"{frame.sock_name!r} is no name of a socket in the session directory"
        if frame.pid != client.pid:
            return (
                f"the process says that its id is {frame.pid}, here it is {client.pid}; "
                "all processes of a session must share one PID namespace"
            )
        if frame.kind in (KIND_DRIVER, KIND_OBSERVER):
            if not compare_digest(frame.token, self._node.session.token):
                return "wrong session token"
            return self._refusal_of_driver(frame) if frame.kind == KIND_DRIVER else ""
        if frame.kind == KIND_WORKER:
            return self._node.workers.claim(client, frame.token)
        return f"kind {frame.kind} is neither a driver (0) nor a worker (1) nor an observer (2)"

    def _refusal_of_driver(self, frame: Register) -> str:
        if self._node.stopping:
            return "this node is shutting down"
        for other in self._drivers.values():
            if frame.job_key and other.job_key == frame.job_key:
                return f"the job key {frame.job_key!r} is in use by driver {other.pid}, which still runs"
        try:
            described(frame)
        except ValueError as error:
            return f"its description of the job cannot be read: {error}"
        return ""

    def _watch_driver(self, client: Client) -> None:
        """A driver's children may keep its connection open: its process id tells reliably."""
        try:
            client.pidfd = os.pidfd_open(client.pid)
        except ProcessLookupError:
            self._doom(client, "ended", report=False)
            return
        self._node.loop.register(client.pidfd, lambda _events: self.drop(client, "ended", report=False))

    # Leaving --------------------------------------------------------------------------------------

    def drop(self, client: Client, why: str, report: bool) -> None:
        """Close the client's connection; what follows depends on who it is."""
        if client.number not in self._all:
            return
        if report:
            self._node.report(f"{client!r} {why}")
        self._close(client)
        if client.registered:
            self._node.on_connection_lost(client, why)

    def _close(self, client: Client) -> None:
        del self._all[client.number]
        self._unregistered -= not (client.registered or client.observes)
        self._drivers.pop(client.job_id, None)
        for name in ("drop", "register"):
            self._node.loop.set_timer((name, client.number), None, lambda: None)
        self._node.loop.unregister(client.connection.fd)
        client.connection.close()
        if client.pidfd >= 0:
            self._node.loop.unregister(client.pidfd)
            os.close(client.pidfd)
            client.pidfd = -1

    def forget(self, client: Client) -> None:
        """The process behind a registered client is dead: close what is left of it."""
        if client.number in self._all:
            self._close(client)
        self._by_worker_id.pop(client.worker_id, None)
        try:
            os.unlink(os.path.join(self._node.session.path, client.sock_name))
        except FileNotFoundError:
            pass  # it never listened, or has tidied up itself

    def stop_accepting(self) -> None:
        """Close the listening socket."""
        self._node.loop.set_timer("accept", None, self._node.loop.stop)
        if self._listener.fileno() >= 0:
            if not self._paused:
                self._node.loop.unregister(self._listener.fileno())
            self._listener.close()

    def close(self) -> None:
        """Close every connection, last messages first as far as sockets take them."""
        self.stop_accepting()
        for client in list(self._all.values()):
            try:
                client.connection.flush()
            except Closed:
                pass
            self._close(client)


def described(frame: Register) -> dict[str, Any]:
    """Return what a driver says of its job.

    Raises
    ------
    ValueError
        It is not what a driver sends.
    """
    found = json.loads(frame.job or b"{}")
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object is expected, not {type(found).__name__}")
    return found
