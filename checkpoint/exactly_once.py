"""`ExactlyOnce`: what an exactly-once session is beside its snapshots.

Owns: the gate (ledger and journal), the answers held until the journal is durable, which journal position
each snapshot contains. Composed into `ActorSession`, which calls it around captures and saves; replay is in
`replay`, the running of calls in `serving` or in the engine.

For an engine with a path of its own per call: `gate`, `readonly_names`, `nondeterministic_names`, `hold`,
`wait`, `locate`, `begin`, `finish`, `ended`, `crash`; what each of them is for is said there. Threads:
`hold`, `wait`, `status` and `outcome` anywhere, the rest on the actor's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ftray._core.gate import Gate
from ftray._core.identity import derive_callee_key
from ftray._core.ledger import Ledger
from ftray._core.records import decode_head

from . import actor, faults, holders, marks, parking
from . import journal as journals
from .blob_writer import BlobWriter
from .codec import Codec
from .errors import (
    CheckpointError,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
    NoSessionError,
    ended_by,
)
from .figures import STATUS_METHOD
from .host import Host, Incident
from .journal import Durability, Journal
from .lineage import SnapshotName
from .options import Options
from .outcomes import OUTCOME_METHOD, CallOutcome
from .releases import NO_CEILING, Action, Releases
from .snapshots import SnapshotLog
from .values import CALL_ID, READING, Execution, located, user_value

if TYPE_CHECKING:
    from ftray._core.reruns import Reruns

    from .session import ActorSession
    from .stores.leases import Lease

UNJOURNALLED = frozenset(
    {"checkpoint", "_checkpoint_group", "__ray_ready__", "__ray_terminate__", STATUS_METHOD, OUTCOME_METHOD}
)
"""Methods of every actor that change no state of its own."""
DURABLE_TIMEOUT_S = 300.0
_CALL_BLOB = "call-"
_TOLD_S = 5.0  # how long a store that fails may take to be told who is not to blame


def _no_context(_execution: object) -> AbstractContextManager[object]:
    return nullcontext()


class ExactlyOnce:
    """The exactly-once part of one session. Made by `engine.open`."""

    def __init__(
        self,
        session: ActorSession,
        host: Host,
        options: Options,
        log: SnapshotLog,
        codec: Codec,
        code_version: int,
    ) -> None:
        cls = type(session.instance)
        self.session, self.host, self.options, self.log, self.codec = session, host, options, log, codec
        self.code_version = code_version
        self.callee_key = derive_callee_key(log.key)
        self.readonly_names = actor.readonly_names(cls) | UNJOURNALLED
        self.nondeterministic_names = actor.nondeterministic_names(cls)
        self.releases = Releases()
        self.nonce = ""
        self.ledger = self.make_ledger(0)
        self._gate: Gate | None = None
        self.journal: Journal | None = None
        self.position = 0  # of what the state contains, while no journal is open
        self.poison: frozenset[bytes] = frozenset()
        self.locate: Callable[[], Execution | object | None] = located
        """Returns the execution of the present context, `values.READING` in a read-only method, else None."""
        self.context: Callable[[object], AbstractContextManager[object]] = _no_context
        """What a method runs in, for engines whose calls need to know whose they are."""
        self.producing: Callable[[Execution], AbstractContextManager[object]] = _no_context
        """What a function given to `record` runs in, the first time."""
        self.find_method: Callable[[str], Callable[..., Any] | None] = lambda name: getattr(
            session.instance, name, None
        )
        """Returns a method by its name in calls; engines may have methods beside those of the class."""
        self.reruns: Callable[[], Reruns] | None = None
        """Makes what runs plain recorded calls again, in engines that need no toolkit for that; asked when
        the ledger is that of the snapshot."""
        self.ended_calls: list[bytes] = []
        """CallIDs of calls that recovery found, or has, finished after they had begun to send: for an
        engine that tells their callees that they will not be made again."""
        self.on_room: Callable[[], None] | None = None
        """Called, from any thread, when calls may find the room, in journal or ledger, that they wait for."""
        self._room_asked = False
        self.dead: BaseException | None = None
        self._barriers: list[int] = []
        self._barred = threading.Lock()
        self._contained: dict[SnapshotName, int] = {}
        self._blobs = self._blob_bytes = self._bytes_captured = 0
        self._ended = False
        self._base_due = False
        self._writer: BlobWriter | None = None

    def make_ledger(self, history: int) -> Ledger:
        """Return an empty ledger."""
        return Ledger(self.callee_key, history, **self._bounds())

    def _bounds(self) -> dict[str, int]:
        options = self.options
        return {
            "reply_bound_bytes": options.reply_bound_bytes,
            "reply_bound_calls": options.reply_bound_calls,
        }

    @property
    def gate(self) -> Gate:
        """What every call that changes the state goes through."""
        if self._gate is None:
            raise NoSessionError(f"checkpoint key {self.log.key!r}: the journal is not open yet")
        return self._gate

    # -- what may leave the actor

    @property
    def last_position(self) -> int:
        """Position of the last record: what the state contains between two methods."""
        return self.position if self.journal is None else self.journal.last_position

    def hold(self, position: int, action: Action) -> None:
        """Run `action` when what depends on `position` may leave, or with the error why it never may."""
        if self.journal is not None:
            self.releases.durable(self.journal.durable_position)
        self.releases.hold(position, action)

    def wait(self, position: int, timeout_s: float = DURABLE_TIMEOUT_S, in_method: bool = False) -> None:
        """Wait until what depends on `position` may leave; `in_method`: and end the process if it may not.

        Raises
        ------
        CheckpointTimeoutError, FencedError, CheckpointSaveError
        """
        if self.journal is not None:
            self.releases.durable(self.journal.durable_position)
            if self.releases.position < position:
                self.journal.flush()
        try:
            self.releases.wait(position, timeout_s)
        except CheckpointTimeoutError as error:
            if in_method:  # which would get this error now, and not when it runs again
                self.crash(error)
            raise

    def full(self) -> bool:
        """Whether so much waits for the journal that no call starts for now; after the end none waits."""
        return self.gate.full and self.releases.failed is None

    def ask_room(self) -> None:
        """The journal is full: have `on_room` called when it has moved, or never will any more."""
        if self._room_asked:
            return
        self._room_asked = True
        journal = self._open_journal()
        journal.flush()
        self.hold(min(journal.durable_position + 1, journal.last_position), self._moved)

    def _moved(self, _error: BaseException | None) -> None:
        self._room_asked = False
        if self.on_room is not None:
            self.on_room()

    def holds_key(self) -> bool:
        """Whether the key is still held: asked after each read, whose answer no record precedes."""
        return self.journal is not None and self.journal.holds()

    def attach(self, journal: Journal) -> None:
        """Begin to write `journal`; the ledger moves into a gate before it."""
        self.journal = journal
        journal.on_durable = self.releases.durable
        journal.on_failure = self._journal_failed
        outage = getattr(journal, "outage", None)
        if outage is not None:
            outage.on_change = self.session.journal_fails
        self.releases.durable(journal.durable_position)
        self._gate = Gate(
            journal,
            self.callee_key,
            self.ledger.history,
            self.code_version,
            put_blob=self._put_blob,
            most_waiting=journals.MOST_WAITING_BYTES,
            **self._bounds(),
        )
        if journal.hold_back(None):
            name, count = f"checkpoint {self.log.key}", self._gate.blobs_wait
            self._writer = BlobWriter(name, self._make_durable, journal, count, self.session.background)
        self._gate.ledger.load(self.ledger.dump())
        self.ledger = self._gate.ledger

    def _put_blob(self, content: bytes) -> str:
        """Keep a large argument or reply; in its name is the position of the record that will name it."""
        self._blobs += 1
        self._blob_bytes += len(content)
        epoch = self.log.epoch
        name = f"{_CALL_BLOB}{self.last_position + 1}-{epoch}-{self._blobs}"
        if self.journal_is_full():
            self.session.want("journal")
        if self._writer is not None:
            self._writer.write(name, content)
        else:
            self._make_durable(name, content)
        return name

    def _make_durable(self, name: str, content: bytes) -> None:
        put_blob = getattr(self.journal, "put_blob", None)
        if put_blob is not None:  # tries as long as the journal for its records
            put_blob(name, [content])
            return
        durability: Durability = "power" if self.options.durability == "power" else "process"
        self.log.store.put_blob(self.log.key, self.log.epoch, name, [content], durability=durability)

    def _bytes_written(self) -> int:
        """Bytes of the journal and its blobs by this incarnation, as far as the journal counts its own."""
        stats = getattr(self.journal, "stats", None)
        return self._blob_bytes + (int(stats()["bytes"]) if stats is not None else 0)

    def journal_is_full(self) -> bool:
        """Whether so much was written since the last capture that a snapshot has to make room."""
        return self._bytes_written() - self._bytes_captured >= self.options.journal_bound_bytes

    def _journal_failed(self, error: BaseException) -> None:
        """From the journal's thread: what was not answered yet never will be, so this process has to end."""
        self.releases.fail(error)
        if self._ended:
            return
        if isinstance(error, Exception):
            self.session.note_failure(error, journal=True)
        message = f"checkpoint key {self.log.key!r} in {self.log.store.url}: the journal ended: {error}"
        kind = "fenced" if isinstance(error, FencedError) else "journal_failed"
        self.host.report_incident(Incident(kind, message, error, fatal=True))
        self.crash(error)

    def crash(self, error: BaseException) -> None:
        """End this process as if it had been killed: its state may be half of a method's."""
        if self.dead is not None:
            return
        self.dead = error
        self.releases.fail(ended_by(error))
        self.abandon()
        if isinstance(error, FencedError):
            self.host.fenced(error)
            return
        if isinstance(error, parking.MEDIUM):
            self._blame_nobody()
        self.host.crashed(error)

    def _blame_nobody(self) -> None:
        """It is the store that ends this process, and not the call that runs."""

        def tell() -> None:
            try:
                if self.journal is not None:
                    self.journal.running(None)
            except (CheckpointError, OSError) as error:
                message = f"checkpoint key {self.log.key!r}: the present call is blamed for this: {error}"
                self.host.report_incident(Incident("journal_note", message, error))

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(_TOLD_S)

    # -- one call

    def begin(
        self, head: bytes, method: str, args: bytes, recorded: tuple[bytes, ...] = (), started: bool = False
    ) -> Execution:
        """A method that changes the state begins; the engine makes `locate` return what this returns."""
        call_id = head[CALL_ID]
        self._open_journal().running(call_id)
        return Execution(head, method, args, call_id, self.gate, recorded, started)

    def resume(self, head: bytes, method: str, args: bytes, recorded: tuple[bytes, ...]) -> Execution:
        """A call whose start an earlier incarnation has recorded goes on.

        What it sends first waits like all that it sends later: for the journal that cuts those of earlier
        incarnations, for what it had got then, and for a look at the epoch after that.
        """
        journal = self._open_journal()
        execution = self.begin(head, method, args, recorded, started=True)
        execution.position = journal.last_position
        self.wait(execution.position)
        if not self.holds_key():
            raise FencedError(f"checkpoint key {self.log.key!r} is held by a newer incarnation")
        return execution

    def seen(self) -> int:
        """What a read-only method that begins now depends on: its answer waits for this position."""
        return max(self.last_position, 1) if self._base_due else self.last_position

    def replaying(self, head: bytes, method: str, args: bytes, recorded: Sequence[bytes]) -> Execution:
        """A finished call is run again for recovery."""
        return Execution(head, method, args, head[CALL_ID], None, recorded)

    def finish(self, execution: Execution, status: int, reply: bytes, *, by_snapshot: bool = False) -> int:
        """The method has ended with this reply, which may leave once the position returned is released.

        With `by_snapshot`, or for a `nondeterministic` method, a snapshot takes the place of the record.
        """
        e = execution
        e.ended()
        if by_snapshot or e.method in self.nondeterministic_names:
            position = self._finish_by_snapshot(e, status, reply)
        else:
            position = self.gate.finish(e.head, e.method, e.args, e.recorded, status, reply)
        if faults.active:
            faults.hit("once.recorded")
        self._open_journal().running(None)
        return position

    def refuse(self, head: bytes, method: str, args: bytes, error: Exception) -> tuple[int, bytes, int]:
        """Give an accepted call an error for good, without running it; returns status, reply and position."""
        status, reply = self.codec.encode_outcome(method, None, error)
        self.will_not_run(head)
        return status, reply, self.gate.finish(head, method, args, [], status, reply)

    def will_not_run(self, head: bytes) -> None:
        """The reply that is recorded next, of this call, is an error that it gets without having run."""
        self._open_journal().append(marks.encode(marks.REFUSED, call_id=head[CALL_ID].hex()))

    def _finish_by_snapshot(self, e: Execution, status: int, reply: bytes) -> int:
        mark = marks.encode(marks.NONDETERMINISTIC, call_id=e.call_id.hex())
        with self._barred:  # before the record: it may be durable before `append` has returned
            self._barriers.append(self.last_position + 1)
        self._set_ceiling()
        position = self._open_journal().append(mark)
        with self._barred:
            self._barriers[-1] = position
        self._set_ceiling()
        self.ledger.finish(e.head, status, reply, position)
        if faults.active:
            faults.hit("once.barrier_appended")
        # The next method may wait for this snapshot before it sends, and no gap comes before it ends.
        self.session.want("nondeterministic", alone=True)
        return position

    def release(self, parents: list[bytes], roots: list[bytes]) -> None:
        """These callers, and all callers of these roots, can never run again: their replies go."""
        self.gate.release(parents, roots)
        if self.on_room is not None:
            self.on_room()

    def record(self, produce: Callable[[], Any]) -> Any:
        """See `Checkpointable.record`."""
        execution = self.locate()
        if execution is READING:
            return produce()
        if execution is None:
            raise NoSessionError(
                "record() works in the flow of a method: on its thread, or in tasks that it has started and "
                "awaits. What another thread gets would not come at the same place when the call runs again"
            )
        assert isinstance(execution, Execution)
        # Inside of another value it is a part of that, and so are its calls: their numbers go on.
        makes = nullcontext() if execution.producing else self.producing(execution)

        def produced() -> Any:
            with makes:
                return produce()

        return user_value(execution, produced)

    def recorded_or_plain(self, produce: Callable[[], Any]) -> Any:
        """`record` where a call runs, else just `produce`."""
        execution = self.locate()
        return user_value(execution, produce) if isinstance(execution, Execution) else produce()

    def is_crash(self, error: BaseException) -> bool:
        """Whether a method that raised `error` has no reply: run again it may give another one."""
        return isinstance(error, MemoryError) or not isinstance(error, Exception)

    # -- snapshots; called by ActorSession

    def captured(self) -> tuple[dict[str, Any], bytes]:
        """In the gap in which the state is captured: header fields, and the ledger."""
        from .replay import hash_seed

        self._bytes_captured = self._bytes_written()
        fields = {
            "journal_position": self.last_position,
            "ledger": True,
            "code_version": self.code_version,
            "hash_seed": hash_seed(self.host),
        }
        return fields, self.ledger.dump()

    def before_put(self, fields: Mapping[str, Any]) -> None:
        """On the saving thread: a snapshot must not be ahead of the journal."""
        if faults.active:
            faults.hit("once.save_waits")
        if self.journal is not None:
            _wait_durable(self.journal, int(fields["journal_position"]))

    def saved(self, name: SnapshotName, fields: Mapping[str, Any]) -> None:
        """On the saving thread: the snapshot is durable."""
        upto = int(fields["journal_position"])
        self._contained[name] = upto
        self._mark_saved(upto)

    def settled(self) -> None:
        """On the saving thread: claim and seal are durable; forget what earlier incarnations noted."""
        store, key, epoch = self.log.store, self.log.key, self.log.epoch
        parking.forget(store, key, epoch)
        stale = holders.stale_notes(store, key, epoch)
        if stale:
            store.delete_blobs(key, stale, epoch)

    def _mark_saved(self, upto: int) -> None:
        due = [b for b in self._barriers if b <= upto]
        if self.journal is None or not (due or self._base_due):
            return
        mark = self.journal.append(marks.encode(marks.SAVED, upto=upto, history=self.log.history))
        _wait_durable(self.journal, mark)
        self.releases.durable(self.journal.durable_position)  # a read may wait for this very record
        if faults.active:
            faults.hit("once.barrier_saved")
        with self._barred:
            self._base_due = False
            self._barriers = [b for b in self._barriers if b > upto]
        self._set_ceiling()

    def require_base(self) -> None:
        """Nothing leaves before the first snapshot: ``__init__`` may make another thing the next time."""
        self._base_due = True
        self._set_ceiling()

    def _set_ceiling(self) -> None:
        with self._barred:
            ceiling = 0 if self._base_due else min(self._barriers) - 1 if self._barriers else NO_CEILING
            self.releases.set_ceiling(ceiling)

    def contains(self, name: SnapshotName, position: int) -> None:
        """A snapshot of the past contains `position`."""
        self._contained[name] = position

    def retired(self) -> None:
        """On the saving thread: older snapshots went; forget what the oldest kept one contains."""
        kept = self.log.counted
        self._contained = {name: self._contained[name] for name in kept if name in self._contained}
        if not kept or kept[0] not in self._contained:
            return  # an older one whose position is not known: it goes soon
        if faults.active:
            faults.hit("once.trim_begin")
        store, key, epoch = self.log.store, self.log.key, self.log.epoch
        upto = self._contained[kept[0]]
        store.trim_journal(key, upto, epoch)
        # What was put before a record up to `upto` is named by none after: captures come between methods.
        gone = [name for name in store.list_blobs(key) if _blob_position(name, upto + 1) <= upto]
        if gone:
            store.delete_blobs(key, gone, epoch)
        if faults.active:
            faults.hit("once.trimmed")

    # -- for people

    def outcome(self, head: bytes) -> CallOutcome:
        """Return what is known of the call with this head; changes nothing."""
        state, status, reply, position = self.ledger.look(head)
        if state == "done":
            if self.journal is not None:
                self.releases.durable(self.journal.durable_position)
            if position > self.releases.position:
                return CallOutcome("unknown")
            return CallOutcome("committed", status, reply)
        return CallOutcome({"absent": "not committed", "expired": "committed"}.get(state, "unknown"))

    def look(self, head: bytes) -> tuple[str, bool, int, bytes | None]:
        """Return what the ledger has of a call, and whether that is durable; see `checkpoint.outcome`."""
        state, status, reply, position = self.ledger.look(head)
        if self.journal is not None:
            self.releases.durable(self.journal.durable_position)
        return state, position <= self.releases.position, status, reply

    def status(self, measured: bool = True) -> dict[str, Any]:
        """Figures for people; `measured`: with what the journal takes in the store."""
        counters = self.ledger.counters()
        journal = self.journal
        if journal is not None:
            self.releases.durable(journal.durable_position)
        return {
            "durability": self.options.durability,
            "code_version": self.code_version,
            **self._lease_figures(),
            "journal_position": self.last_position,
            "durable_position": journal.durable_position if journal else self.position,
            "released_position": self.releases.position if journal else 0,
            "answers_held": self.releases.held,
            "journal_records": self.last_position - min(self._contained.values(), default=0),
            "journal_written_bytes": self._bytes_written(),
            "journal_waiting_bytes": journal.waiting_bytes + self.gate.blobs_waiting if journal else 0,
            "journal_bytes": self._usage() if measured else None,
            "history_number": self.ledger.history,
            "callers": counters["callers"],
            "replies_kept": counters["calls"] - counters["accepted"],
            "reply_bytes": counters["reply_bytes"],
            "ledger": counters,
        }

    def _lease(self) -> Lease | None:
        lease_of = getattr(self.log.store, "lease_of", None)
        return None if lease_of is None else lease_of(self.log.key, self.log.epoch)

    def let_go(self) -> None:
        """The key was claimed in vain: recovery has failed."""
        self.abandon()
        lease = self._lease()
        if lease is not None:
            lease.stop()

    def _lease_figures(self) -> dict[str, Any]:
        """How the key is held, and for how long still if that is by a lease."""
        lease = self._lease()
        if lease is None:
            return {"fencing": "exclusive", "lease_left_s": None}
        return {"fencing": holders.LEASE, "lease_left_s": lease.left_s}

    def _usage(self) -> int | None:
        try:
            return self.log.store.usage(self.log.key).get("journal")
        except (CheckpointError, OSError):
            return None

    def close(self, timeout_s: float, planned: bool) -> None:
        """End the journal. What was held and does not become durable now is answered with an error."""
        self.abandon()
        if self.journal is None:
            return
        try:
            if planned:
                self._note_end()
            self.journal.close(timeout_s)
            if self._writer is not None:
                self._writer.stop(timeout_s)
            self.releases.durable(self.journal.durable_position)
        except CheckpointError as error:
            if not isinstance(error, FencedError):
                message = f"checkpoint key {self.log.key!r}: the journal could not be closed: {error}"
                self.host.report_incident(Incident("journal_failed", message, error, fatal=True))
        self.releases.fail(NoSessionError(f"the session of checkpoint key {self.log.key!r} has ended"))

    def abandon(self) -> None:
        """Do nothing more, as a process that died."""
        self._ended = True
        holders.open_here.discard(self.nonce)

    def _note_end(self) -> None:
        try:
            holders.ended(self.log.store, self.log.key, self.log.epoch)
        except CheckpointSaveError as error:
            if not isinstance(error, FencedError):
                message = f"checkpoint key {self.log.key!r}: that the holder ended could not be noted"
                self.host.report_incident(Incident("save_failed", message, error))

    def _open_journal(self) -> Journal:
        if self.journal is None:
            raise NoSessionError(f"checkpoint key {self.log.key!r}: the journal is not open yet")
        return self.journal


def _blob_position(name: str, otherwise: int) -> int:
    if not name.startswith(_CALL_BLOB):
        return otherwise
    return int(name[len(_CALL_BLOB) :].partition("-")[0])


def describe(head: bytes) -> str:
    """Name a call for people."""
    h = decode_head(head)
    caller = "named by its key" if h.keyed else f"number {h.n} of caller {h.parent.hex()}"
    retry = f", retry {h.retry}" if h.retry else ""
    return f"call {h.call_id.hex()} ({caller}{retry})"


def _wait_durable(journal: Journal, position: int) -> None:
    """Wait for a position; what is durable already (all, in `process`) needs no work of the medium."""
    if journal.durable_position < position:
        journal.flush()
    journal.wait(position, DURABLE_TIMEOUT_S)
