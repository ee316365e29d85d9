"""A worker and a driver in plain Python that speak the control protocol, for tests of the real ``ftrayd``.

``main`` is what the zygote runs (``NodeOptions(worker_module="tests.unit.node.fakes")``).  The worker serves
one socket in the session directory: each connection sends one pickled (method, argument) and gets the pickled
result; methods are the functions named ``do_*``.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

from ftray._node import client, session
from ftray._node import frames as f
from ftray._node.protocol import Message

if TYPE_CHECKING:
    from collections.abc import Callable

_BEAT = struct.Struct("<Q")


class FakeWorker:
    """A registered process that does what it is told."""

    def __init__(self, session_dir: str, token: bytes) -> None:
        self.session_dir = session_dir
        worker_id = os.urandom(28)
        self.name = f"{worker_id.hex()[:16]}.sock"
        self.listener = session.listen_in(session_dir, self.name)
        self.node = client.connect(session_dir, worker_id=worker_id, token=token, kind=f.KIND_WORKER)
        self.actors: dict[bytes, int] = {}
        self.decline_exit = False
        self.silent = threading.Event()
        beat = threading.Thread(target=self._beat, daemon=True)
        beat.start()

    def _beat(self) -> None:
        """Write heartbeats as the core's thread does."""
        at = 4096 + 1024 * self.node.slot
        while not self.silent.wait(0.05):
            os.pwrite(self.node.board_fd, _BEAT.pack(int(time.monotonic() * 1000)), at)

    def run(self) -> int:
        selector = selectors.DefaultSelector()
        selector.register(self.listener, selectors.EVENT_READ, self._serve)
        selector.register(self.node.sock, selectors.EVENT_READ, self._from_node)
        if self.node.has_pending and not self._from_node():
            return 0
        while True:
            for key, _events in selector.select():
                if key.data() is False:
                    return 0

    def _serve(self) -> None:
        connection, _address = self.listener.accept()
        with connection, connection.makefile("rwb") as stream:
            method, argument = pickle.load(stream)
            pickle.dump(getattr(self, f"do_{method}")(argument), stream)

    def _from_node(self) -> bool:
        """Handle what has arrived; False ends the process."""
        while True:
            try:
                going_on = self._handle(self.node.receive())
            except ConnectionError:
                return False
            if not going_on or not self.node.has_pending:
                return going_on

    def _handle(self, message: Message) -> bool:
        frame = message.frame
        if isinstance(frame, f.Exit):
            if self.decline_exit and message.flags & f.FLAG_MAY_DECLINE:
                self.node.send(f.ExitDeclined())
                return True
            return False
        if isinstance(frame, f.ActorStart):
            self._start_actor(frame)
        elif isinstance(frame, f.ActorTerminate):
            self.node.send(f.ActorExit(frame.actor_id, f.EXIT_TERMINATED))
            return False
        elif isinstance(frame, f.WorkerDied):
            self.node.send(f.DeathAck(frame.worker_id, ()))
        return True

    def _start_actor(self, frame: f.ActorStart) -> None:
        spec = pickle.loads(frame.spec)
        self.actors[frame.actor_id] = frame.incarnation
        behaviour = pickle.loads(spec["args_blob"]) if spec["args_blob"] else {}
        if frame.incarnation <= behaviour.get("crashes", 0):
            os._exit(9)
        error = pickle.dumps(behaviour["error"]) if "error" in behaviour else b""
        self.node.send(f.ActorReady(frame.actor_id, frame.incarnation, int(not error), error))

    # What tests ask for ---------------------------------------------------------------------------

    def do_echo(self, argument: object) -> object:
        return argument

    def do_incarnation(self, actor_id: bytes) -> int | None:
        return self.actors.get(actor_id)

    def do_print(self, argument: tuple[str, int]) -> None:
        text, stream = argument
        print(text, end="", flush=True, file=sys.stdout if stream == 1 else sys.stderr)

    def do_flood(self, megabytes: int) -> None:
        line = b"x" * 99 + b"\n"
        for _ in range(megabytes * 10_000):
            os.write(1, line)

    def do_send(self, frame: f.Frame) -> None:
        self.node.send(frame)

    def do_raw(self, data: bytes) -> None:
        self.node.sock.sendall(data)

    def do_decline(self, decline: bool) -> None:
        self.decline_exit = decline

    def do_child(self, command: list[str]) -> int:
        return os.posix_spawn(command[0], command, os.environ)

    def do_facts(self, _argument: object) -> dict[str, object]:
        return {
            "ppid": os.getppid(),
            "fds": sorted(os.readlink(f"/proc/self/fd/{n}") for n in _open_fds()),
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "modules": sorted(sys.modules),
            "random": __import__("random").random(),
            "omp": os.environ.get("OMP_NUM_THREADS"),
            "pgid": os.getpgid(0),
        }


def _open_fds() -> list[str]:
    return [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]


def main(session_dir: str, token: bytes) -> int:
    """Run a worker; the zygote calls this in a fresh child."""
    return FakeWorker(session_dir, token).run()


def ask(session_dir: str, sock_name: str, method: str, argument: object = None) -> object:
    """Have the fake worker behind ``sock_name`` do something and return its answer."""
    connection = session.connect_in(session_dir, sock_name, 10.0)
    with connection, connection.makefile("rwb") as stream:
        pickle.dump((method, argument), stream)
        stream.flush()
        return pickle.load(stream)


class FakeDriver:
    """A registered driver that keeps what it has received until a test waits for it."""

    def __init__(self, session_dir: str, **options: object) -> None:
        self.worker_id = os.urandom(28)
        self.node = client.connect(session_dir, worker_id=self.worker_id, timeout_s=10.0, **options)
        self.node.sock.settimeout(30.0)  # more than anything that the node itself waits for
        self.seen: list[Message] = []
        self.last_words: Callable[[], str] | None = None

    def send(self, frame: f.Frame, req: int = 0, **options: object) -> None:
        self.node.send(frame, req, **options)

    def wait(self, kind: type[f.Frame], match: object = None) -> f.Frame:
        """Return the first message of ``kind`` for which ``match(frame)`` holds; it counts as taken."""
        accept = match if callable(match) else lambda _frame: True
        for at, message in enumerate(self.seen):
            if isinstance(message.frame, kind) and accept(message.frame):
                del self.seen[at]
                return message.frame
        while True:
            message = self._receive()
            if isinstance(message.frame, f.WorkerDied):
                self.send(f.DeathAck(message.frame.worker_id, ()))
            if isinstance(message.frame, kind) and accept(message.frame):
                return message.frame
            self.seen.append(message)

    def _receive(self) -> Message:
        try:
            return self.node.receive()
        except OSError as error:
            told = [m.frame for m in self.seen]
            words = self.last_words() if self.last_words is not None else ""
            raise AssertionError(f"{error!r}; ftrayd's last words: {words!r}; seen before: {told}") from error

    def lease(self, key: int = 1, cpus: float = 1.0, **options: object) -> f.LeaseGrant:
        """Ask for one lease and wait for it."""
        self.send(f.LeaseRequest(key, 1, (("CPU", cpus),), "", "test"))
        grant = self.wait(f.LeaseGrant, lambda g: g.class_key == key)
        assert isinstance(grant, f.LeaseGrant)
        return grant

    def ask(self, grant: f.LeaseGrant | f.ActorState, method: str, argument: object = None) -> object:
        return ask(self.node.session_dir, grant.sock_name, method, argument)

    def close(self) -> None:
        self.node.close()


def actor_spec(driver: FakeDriver, actor_id: bytes, **changes: object) -> bytes:
    """Return a pickled spec with defaults."""
    spec: dict[str, object] = {
        "actor_id": actor_id,
        "job_id": driver.node.job_id,
        "owner": driver.worker_id,
        "class_name": "Fake",
        "name": "",
        "namespace": "",
        "get_if_exists": False,
        "lifetime": None,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 1,
        "is_async": False,
        "resources": {},
        "class_blob": b"",
        "args_blob": b"",
        "call_id": b"",
        "checkpoint": None,
        "runtime_env": None,
    }
    spec.update(changes)
    return pickle.dumps(spec)


def unconnected(session_dir: str) -> socket.socket:
    """Return a raw connection to the node, not registered."""
    return session.connect_in(session_dir, session.NODE_SOCKET, 10.0)
