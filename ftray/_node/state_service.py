"""What people can ask of a session: its processes, its tasks and who owns which objects.

Owns: the event rings of processes and the history of tasks, facts about processes (also dead ones, a
bounded number), questions to processes that are not answered yet.
Invariants: a ring is read before its process is forgotten; a question is answered once, when every process
has answered or its time is over, and names those that did not answer; nothing here waits.
Leaves to others: what records and rows mean (``ftray/util/state``), the tables of actors, workers and
leases.
"""

from __future__ import annotations

import os
import pickle
import time

from ftray._node import settings
from ftray._node.event_rings import BadRing, EventRing
from ftray._node.frames import Inspect, RpcReply
from ftray._node.protocol import ProtocolError
from ftray._node.record import Record
from ftray._node.task_events import TaskEvents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ftray._node.clients import Client
    from ftray._node.daemon import Node
    from ftray._node.frames import EventsRing, FunctionName, Inspected
    from ftray._node.task_events import Piece
    from ftray._node.workers import Death

INSPECT_TASKS, INSPECT_OBJECTS = 1, 2
MAX_DEAD_PROCESSES = 2_000
MAX_FUNCTIONS = 100_000


def short_id(worker_id: bytes) -> int:
    """Return what stands for a process in task events."""
    return int.from_bytes(worker_id[:8], "little")


class _Process:
    """A registered process, or one that was."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.start_unix_s = time.time()
        self.end_unix_s: float | None = None
        self.death: Death | None = None
        self.ring: EventRing | None = None
        self.root = 0
        self.functions: dict[int, tuple[int, str]] = {}


class _Question(Record):
    asker: Any
    req: int
    waiting: dict[int, None]
    answers: dict[int, bytes]
    ended: list[int]


class StateService:
    """Task events and questions to processes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.history = TaskEvents(settings.max_task_events())
        self._processes: dict[int, _Process] = {}  # by client number
        self._dead: dict[int, _Process] = {}  # the oldest first
        self._questions: dict[int, _Question] = {}
        self._next_question = 1

    # Frames ---------------------------------------------------------------------------------------

    def registered(self, client: Client) -> None:
        """A process joined the session."""
        self._processes[client.number] = _Process(client)

    def on_ring(self, client: Client, frame: EventsRing, fd: int) -> None:
        """EVENTS_RING."""
        process = self._processes.get(client.number)
        if process is None or process.ring is not None:
            os.close(fd)
            raise ProtocolError("a second EVENTS_RING")
        try:
            process.ring = EventRing(fd, short_id(client.worker_id))
        except (BadRing, OSError) as error:
            os.close(fd)
            raise ProtocolError(
                f"EVENTS_RING of {frame.units} units without a usable ring: {error}"
            ) from None
        process.root = process.ring.root

    def on_function(self, client: Client, frame: FunctionName) -> None:
        """FUNCTION_NAME."""
        process = self._processes.get(client.number)
        if process is not None and len(process.functions) < MAX_FUNCTIONS:
            process.functions[frame.function] = (frame.kind, frame.name)

    def on_inspected(self, client: Client, frame: Inspected, req: int) -> None:
        """INSPECTED."""
        question = self._questions.get(req)
        if question is None or client.number not in question.waiting:
            return  # too late
        del question.waiting[client.number]
        question.answers[client.number] = frame.rows
        self._answer_if_complete(req)

    def process_gone(self, client: Client, death: Death) -> None:
        """A process is dead: read what it left, and wait for its answers no more."""
        process = self._processes.pop(client.number, None)
        if process is None:
            return
        found = self._read(process)
        if found is not None:
            self.history.add(*found)
        if process.ring is not None:
            process.ring.close()
            process.ring = None
        process.death = death
        process.end_unix_s = time.time()
        self._dead[client.number] = process
        if len(self._dead) > MAX_DEAD_PROCESSES:
            del self._dead[next(iter(self._dead))]
        for number, question in list(self._questions.items()):
            if client.number in question.waiting:
                del question.waiting[client.number]
                question.ended.append(client.number)
                self._answer_if_complete(number)

    def _read(self, process: _Process) -> tuple[Piece, int] | None:
        """Return the records of a process and how many were overwritten; None when it has no ring."""
        if process.ring is None:
            return None
        from ftray._core.events import clock_pair

        try:
            return process.ring.read(*clock_pair(self._node.info["tsc"]))
        except (BadRing, OSError) as error:
            self._node.report(f"the task events of {process.client!r} cannot be read: {error}")
            process.ring.close()
            process.ring = None
            return None

    def close(self) -> None:
        """Close every ring."""
        for process in self._processes.values():
            if process.ring is not None:
                process.ring.close()
                process.ring = None

    # Queries --------------------------------------------------------------------------------------

    def task_events(self, client: Client) -> dict[str, Any]:
        """Return everything that is remembered of tasks, and what is needed to understand it."""
        living = [found for p in list(self._processes.values()) if (found := self._read(p)) is not None]
        return {
            "dead": [tuple(piece) for piece in self.history.pieces()],
            "living": [tuple(piece) for piece, _overwritten in living],
            "forgotten": self.history.dropped + sum(overwritten for _piece, overwritten in living),
            "functions": {
                short_id(p.client.worker_id): p.functions
                for p in (*self._dead.values(), *self._processes.values())
                if p.functions
            },
            "unix_offset_s": time.time() - time.monotonic(),
        }

    def processes(self, client: Client) -> list[dict[str, Any]]:
        """Return facts about every process of the session, dead ones included, the oldest first."""
        found = [*self._dead.values(), *self._processes.values()]
        return [self._facts(p) for p in sorted(found, key=lambda p: p.client.number)]

    def _facts(self, process: _Process) -> dict[str, Any]:
        client, death, worker = process.client, process.death, process.client.worker
        return {
            "worker_id": client.worker_id,
            "pid": client.pid,
            "is_driver": client.is_driver,
            "job_id": client.job_id if worker is None else worker.job_id,
            "actor_id": None if worker is None else worker.actor_id,
            "number": None if worker is None else worker.number,
            "label": "" if worker is None else self._node.logs.label_of(worker),
            "root": process.root,
            "namespace": client.namespace,
            "start_unix_s": process.start_unix_s,
            "end_unix_s": process.end_unix_s,
            "death": None if death is None else {n: getattr(death, n) for n in death._fields},
        }

    def inspect(self, client: Client, req: int, what: int, limit: int, timeout_s: float) -> None:
        """Ask every process what it owns; the reply goes when all have answered, or ``timeout_s`` is over."""
        if what not in (INSPECT_TASKS, INSPECT_OBJECTS):
            raise ValueError(
                f"what={what!r}; allowed are {INSPECT_TASKS} (tasks) and {INSPECT_OBJECTS} (objects)"
            )
        number = self._next_question
        self._next_question += 1
        asked = list(self._node.clients.registered())
        self._questions[number] = _Question(client, req, dict.fromkeys(c.number for c in asked), {}, [])
        due_s = time.monotonic() + timeout_s
        self._node.loop.set_timer(("inspect", number), due_s, lambda: self._finish(number))
        for other in asked:
            self._node.clients.send(other, Inspect(what, limit), number)
        self._answer_if_complete(number)

    def _answer_if_complete(self, number: int) -> None:
        if not self._questions[number].waiting:
            self._finish(number)

    def _finish(self, number: int) -> None:
        question = self._questions.pop(number)
        self._node.loop.set_timer(("inspect", number), None, lambda: None)
        found = {**self._dead, **self._processes}
        result = {
            "answers": [
                (found[n].client.worker_id, rows) for n, rows in question.answers.items() if n in found
            ],
            "missing": [
                {"pid": found[n].client.pid, "worker_id": found[n].client.worker_id}
                for n in question.waiting
                if n in found
            ],
        }
        self._node.clients.send(question.asker, RpcReply(1, pickle.dumps(result)), question.req)
