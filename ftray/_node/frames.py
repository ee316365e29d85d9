"""Every frame of the control protocol between a process (C, a worker W, a driver D) and its node (N).

Owns: type numbers, fields and layouts; the meaning of flag and kind numbers. One class a frame, its
fields in wire order.
Leaves to others: the codec (``protocol``) and what is done about a frame (the daemon's handlers, the core).
"""

from __future__ import annotations

from ftray._node.protocol import VERSION, Frame, ProtocolError, Reader

# An observer may only call RPC methods; it is told of nothing and has no job (the command line).
KIND_DRIVER, KIND_WORKER, KIND_OBSERVER = 0, 1, 2
FLAG_MAY_DECLINE = 1  # on EXIT: the worker may answer EXIT_DECLINED when others need what it owns
FLAG_OPTIONAL = 2  # on SEG_RESERVE: only if there is room right now
RESERVE_REFUSED, RESERVE_OK, RESERVE_LOOK_AGAIN, RESERVE_NO_DISK = 0, 1, 2, 3
FLAG_GIVE_BACK = 1  # on SEG_RESERVE: the bytes are given back, no answer
DEATH_EXIT, DEATH_SIGNAL, DEATH_OOM, DEATH_HUNG, DEATH_INTENDED, DEATH_DRIVER_LEFT = 1, 2, 3, 4, 5, 6
DEATH_MEMORY, DEATH_MEMORY_FINAL = 7, 8  # the memory monitor; final: what it ran is not to be retried
DEATH_GROUP_REMOVED = 9
RETURN_SPENT = 2  # a returned worker that serves nobody any more
INFEASIBLE_NOW, INFEASIBLE_NEVER, INFEASIBLE_ENVIRONMENT, INFEASIBLE_GROUP_REMOVED = 0, 1, 2, 3
KILL_EXPLICIT, KILL_OUT_OF_SCOPE = 0, 1
CALL_ID_SIZE = 16
EXIT_ACTOR, EXIT_TERMINATED, EXIT_SIGTERM = 0, 1, 2
READY_FAILED, READY_MADE, READY_TRY_AGAIN, READY_PARKED = 0, 1, 2, 3


_MAX_TEXT_CHARS = 8000  # fits a text field whatever the characters are


def clip(text: str) -> str:
    """Return ``text`` short enough for a text field: its beginning and, as in tracebacks, its end."""
    if len(text) <= _MAX_TEXT_CHARS:
        return text
    return f"{text[: _MAX_TEXT_CHARS // 4]}\n[...]\n{text[-_MAX_TEXT_CHARS // 4 * 3 + 10 :]}"


class Register(Frame):
    """A process introduces itself; the first frame of every connection.

    The first four fields are the same in every version: a process of another one is refused with words.
    """

    TYPE = 1
    LAYOUT = "B I 28s str blob str str str blob"
    kind: int
    pid: int
    worker_id: bytes
    version: str
    token: bytes
    sock_name: str
    namespace: str
    job_key: str
    job: bytes

    @classmethod
    def parse(cls, payload: bytes) -> Frame:
        """Return the frame; of another version's at least what all versions have."""
        try:
            return super().parse(payload)
        except ProtocolError:
            kind, pid, worker_id, version = cls._read(Reader(payload), 2)
            if version == VERSION:
                raise
            return cls(kind, pid, worker_id, version, b"", "", "", "", b"")


class Registered(Frame):
    """The node's answer to ``Register``; carries the board when ``ok``. The same in every version."""

    TYPE = 2
    LAYOUT = "B I 28s I str blob"
    ok: int
    slot: int
    node_id: bytes
    job_id: int
    session_dir: str
    info: bytes

    def fds_needed(self) -> int:
        """One board descriptor when accepted."""
        return 1 if self.ok else 0


class LeaseRequest(Frame):
    """How many more grants the client wants for a scheduling class (absolute, 0 cancels)."""

    TYPE = 10
    LAYOUT = "Q H amounts str str B blob"
    class_key: int
    wanted: int
    resources: tuple[tuple[str, float], ...]
    strategy: str
    name: str
    retriable: int = 1
    runtime_env: bytes = b""


class LeaseGrant(Frame):
    """A worker is leased to the client."""

    TYPE = 11
    LAYOUT = "Q Q 28s I I str blob"
    class_key: int
    lease_id: int
    worker_id: bytes
    slot: int
    pid: int
    sock_name: str
    assigned: bytes


class LeaseReturn(Frame):
    """The client gives a lease back."""

    TYPE = 12
    LAYOUT = "Q B"
    lease_id: int
    worker_reusable: int


class LeaseReclaim(Frame):
    """Somebody waits: give leases back as soon as they idle (0 = any)."""

    TYPE = 13
    LAYOUT = "Q"
    lease_id: int


class LeaseInfeasible(Frame):
    """A scheduling class cannot be served now, or ever (``fatal``, an ``INFEASIBLE_*``)."""

    TYPE = 14
    LAYOUT = "Q B str"
    class_key: int
    fatal: int
    text: str


class Blocked(Frame):
    """The leased worker waits in ``get``; its CPUs are lent back."""

    TYPE = 20


class Unblocked(Frame):
    """The leased worker runs again."""

    TYPE = 21


class ActorCreate(Frame):
    """Create an actor from a pickled spec."""

    TYPE = 30
    LAYOUT = "16s blob"
    actor_id: bytes
    spec: bytes


class ActorSubscribe(Frame):
    """Tell me this actor's states from now on."""

    TYPE = 31
    LAYOUT = "16s"
    actor_id: bytes


class ActorState(Frame):
    """The state of an actor's current incarnation."""

    TYPE = 32
    LAYOUT = "16s B I 28s I I str blob"
    actor_id: bytes
    state: int
    incarnation: int
    worker_id: bytes
    slot: int
    pid: int
    sock_name: str
    cause: bytes


class ActorKill(Frame):
    """End an actor (``reason`` 0) or let it finish because no handle is left (1)."""

    TYPE = 33
    LAYOUT = "16s B B"
    actor_id: bytes
    no_restart: int
    reason: int


class ActorReady(Frame):
    """The constructor of an incarnation has ended."""

    TYPE = 34
    LAYOUT = "16s I B blob"
    actor_id: bytes
    incarnation: int
    ok: int
    error: bytes


class ActorStart(Frame):
    """Become this incarnation of an actor."""

    TYPE = 35
    LAYOUT = "16s I blob blob"
    actor_id: bytes
    incarnation: int
    spec: bytes
    assigned: bytes


class ActorExit(Frame):
    """The coming exit of this actor's process is intended."""

    TYPE = 36
    LAYOUT = "16s B"
    actor_id: bytes
    kind: int


class ActorTerminate(Frame):
    """Finish the queued calls, then ``ActorExit`` and exit 0."""

    TYPE = 37
    LAYOUT = "16s"
    actor_id: bytes


class CallersDone(Frame):
    """Callers of exactly-once actors (CallIDs), and roots of CallIDs, that can never ask again."""

    TYPE = 38
    LAYOUT = "blob blob blob"
    callers: bytes
    roots: bytes = b""
    nested: bytes = b""


class SegReserve(Frame):
    """Ask for room in the object store (or give it back, ``FLAG_GIVE_BACK``)."""

    TYPE = 40
    LAYOUT = "Q"
    size_bytes: int


class SegReserved(Frame):
    """The answer to ``SegReserve``: one of the ``RESERVE_*``; ``text`` says what holds the memory."""

    TYPE = 41
    LAYOUT = "B Q Q str"
    ok: int
    used_bytes: int
    capacity_bytes: int
    text: str = ""


class SegRegister(Frame):
    """A segment exists; its bytes were reserved before."""

    TYPE = 42
    LAYOUT = "Q Q"
    seg_id: int
    size_bytes: int

    def fds_needed(self) -> int:
        """The segment."""
        return 1


class SegRelease(Frame):
    """The producer destroyed its segment."""

    TYPE = 43
    LAYOUT = "Q"
    seg_id: int


class SegOpen(Frame):
    """A reader asks for a segment."""

    TYPE = 44
    LAYOUT = "Q"
    seg_id: int


class SegFd(Frame):
    """The answer to ``SegOpen``; carries the segment when ``ok``."""

    TYPE = 45
    LAYOUT = "B Q Q"
    ok: int
    seg_id: int
    size_bytes: int

    def fds_needed(self) -> int:
        """The segment when there is one."""
        return 1 if self.ok else 0


class SegGone(Frame):
    """Whoever opened this segment unmaps it."""

    TYPE = 46
    LAYOUT = "Q"
    seg_id: int


class SegShrink(Frame):
    """Give back warm segments now: somebody's reservation does not fit."""

    TYPE = 47


class SpillAsk(Frame):
    """Offer objects that could be spilled: so many bytes are missing."""

    TYPE = 54
    LAYOUT = "Q Q"
    turn: int
    wanted_bytes: int


class SpillOffer(Frame):
    """The answer to ``SpillAsk``; offers are spill, segment, offset, size, birth (ns) each."""

    TYPE = 55
    LAYOUT = "Q Q Q Q ids"
    turn: int
    pinned_bytes: int
    borrowed_bytes: int
    busy_bytes: int
    offers: tuple[int, ...]


class SpillDone(Frame):
    """An offered object is in a file (``ok``), or could not be written."""

    TYPE = 56
    LAYOUT = "Q B"
    spill_id: int
    ok: int


class SpillSettled(Frame):
    """The owner's record points to the file (``taken``), or it needs no file."""

    TYPE = 57
    LAYOUT = "Q B"
    spill_id: int
    taken: int


class SpillRestore(Frame):
    """Bring an object back into shared memory."""

    TYPE = 58
    LAYOUT = "Q"
    spill_id: int


class SpillRestored(Frame):
    """The answer to ``SpillRestore``: code 0 in this segment, 1 no memory, 2 lost."""

    TYPE = 59
    LAYOUT = "Q B Q str"
    spill_id: int
    code: int
    seg_id: int
    text: str


class DeathAck(Frame):
    """The channel to a dead process is drained; its segments named here are still needed."""

    TYPE = 48
    LAYOUT = "28s ids"
    worker_id: bytes
    held: tuple[int, ...]


class SegUnhold(Frame):
    """A dead producer's segment is not needed here any more."""

    TYPE = 49
    LAYOUT = "Q"
    seg_id: int


class WorkerDied(Frame):
    """A process of this session is gone."""

    TYPE = 50
    LAYOUT = "28s I B i d str"
    worker_id: bytes
    pid: int
    kind: int
    code: int
    unix_time_s: float
    text: str


class WorkerKill(Frame):
    """End a worker (``force``: SIGKILL, otherwise it is asked to exit)."""

    TYPE = 51
    LAYOUT = "28s B str"
    worker_id: bytes
    force: int
    why: str


class Exit(Frame):
    """Stop now (idle, shutdown)."""

    TYPE = 52


class ExitDeclined(Frame):
    """The worker stays: it owns objects that others need (answers EXIT with ``FLAG_MAY_DECLINE``)."""

    TYPE = 53


class Log(Frame):
    """Whole lines that a worker wrote (stream 1 or 2)."""

    TYPE = 60
    LAYOUT = "I B str blob"
    pid: int
    stream: int
    name: str
    text: bytes


class Warn(Frame):
    """Something that the user should know."""

    TYPE = 61
    LAYOUT = "str"
    text: str


class DeathAsk(Frame):
    """The socket of this process is gone, and no report of its death has come: tell."""

    TYPE = 62
    LAYOUT = "28s"
    worker_id: bytes


class DeathUnknown(Frame):
    """The answer where there is no report, and none is to be expected; else WORKER_DIED comes."""

    TYPE = 63
    LAYOUT = "28s"
    worker_id: bytes


class EventsRing(Frame):
    """The ring that a process writes its task events to (``_core/events.hpp``)."""

    TYPE = 70
    LAYOUT = "I"
    units: int

    def fds_needed(self) -> int:
        """The ring."""
        return 1


class FunctionName(Frame):
    """What a function's number in task events means (``kind`` 0 a function, 1 a method)."""

    TYPE = 71
    LAYOUT = "I B str"
    function: int
    kind: int
    name: str


class Inspect(Frame):
    """What do you know of your tasks (``what`` 1) or objects (2)? At most ``limit`` of them."""

    TYPE = 72
    LAYOUT = "B I"
    what: int
    limit: int


class Inspected(Frame):
    """The answer to ``Inspect``, same req; ``rows`` as in ``_core/inspect.pyx``."""

    TYPE = 73
    LAYOUT = "B blob"
    what: int
    rows: bytes


class Rpc(Frame):
    """Call a method of the node."""

    TYPE = 100
    LAYOUT = "blob"
    call: bytes


class RpcReply(Frame):
    """The result, or the exception when not ``ok``."""

    TYPE = 101
    LAYOUT = "B blob"
    ok: int
    result: bytes
