"""Opens an exactly-once actor: claim, fence, newest snapshot, the journal's tail through the same methods.

Owns the order of those steps and the comparison of replies. Invariants: nothing is sent while a finished
call is run again; what counts was decided before the first one is (`marks.survey`); a call that had begun
and sent something is run again at its place, before any other; the past is sealed before anything new is
written; replay that takes long is saved on the way, so that an actor that is killed again and again gets
ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ftray._core.records import CallRecord, ReleaseRecord, SeenRecord, StartRecord, ValueRecord, decode_record

from . import actor, engine, faults, holders, marks, parking
from .codec import Arguments, Codec, reply_difference
from .errors import (
    CheckpointCorruptedError,
    CheckpointError,
    PoisonCallError,
    ReplayCrashedError,
    ReplayDivergedError,
)
from .exactly_once import ExactlyOnce, describe
from .format import split_ledger
from .host import Host, Incident
from .journal import Durability, JournalRecord
from .membership import enter_group
from .options import Options
from .running import run_method
from .session import ActorSession
from .snapshots import Past, end_of_journal, present
from .state import attribute_names
from .values import CALL_ID, USER_VALUE, value_caller
from .watch import Row, Watch

if TYPE_CHECKING:
    from ftray._core.reruns import Reruns

REPLAY_BOUND_S = 1.0
"""Replay longer than this is saved, so that the next one is shorter."""
POISON_AFTER = 3


def hash_seed(host: Host) -> dict[str, Any]:
    """Return what tells whether two processes iterate over sets of text in the same order."""
    return {"PYTHONHASHSEED": host.hash_seed, "fingerprint": hash("ftray.checkpoint")}


async def open_exactly_once(
    session: ActorSession,
    host: Host,
    options: Options,
    codec: Codec,
    prepare: Callable[[ExactlyOnce], None] | None = None,
) -> ActorSession:
    """See `engine.open`. The session is new, and nothing has been touched yet."""
    instance, log = session.instance, session.log
    code = engine.code_version_of(instance, options)
    engine.before_claim(session, host, lambda: code)
    session.exactly_once = ExactlyOnce(session, host, options, log, codec, code)
    if prepare is not None:
        prepare(session.exactly_once)
    identity = {**holders.identify(host), **holders.fencing(log.store, options)}
    holder = {**engine.holder(host), **identity}
    _claim(session, host, options, holder)
    holders.open_here.add(identity["nonce"])
    session.exactly_once.nonce = identity["nonce"]
    actor.sessions[id(instance)] = session
    try:
        with parking.counted(log, host, lambda: code):
            await _recover(session, host, options, codec, holder)
    except Exception:
        session.exactly_once.let_go()
        actor.sessions.pop(id(instance), None)
        raise
    return session


async def _recover(
    session: ActorSession, host: Host, options: Options, codec: Codec, holder: Mapping[str, Any]
) -> None:
    if host.is_reconstructed:
        session.trial_capture()
    names_after_init = attribute_names(session.instance)
    session.member = enter_group(session)
    if session.member is not None and session.member.roll_back():
        _claim(session, host, options, holder)
    assert session.exactly_once is not None
    await _Recovery(session, session.exactly_once, host, options, codec).run(names_after_init)


def _claim(session: ActorSession, host: Host, options: Options, record: Mapping[str, Any]) -> None:
    log = session.log

    def check(epoch: int) -> None:
        engine.check_past(host, log, epoch)
        if epoch and not options.takeover:
            holders.check_free(log.store, log.key, epoch, host)

    log.claim(record, check)
    log.store.fence_journals(log.key, log.epoch)
    if faults.active:
        faults.hit("once.fenced")


class _Started(NamedTuple):
    """A call that had begun when the actor died, and what it had got from outside."""

    record: StartRecord
    args: bytes
    values: list[bytes]


class _Recovery:
    """One recovery."""

    def __init__(
        self, session: ActorSession, once: ExactlyOnce, host: Host, options: Options, codec: Codec
    ) -> None:
        self.session, self.once, self.host, self.options, self.codec = session, once, host, options, codec
        self.log, self.store, self.key = session.log, session.log.store, session.log.key
        self.past = Past(None, [], [], [], "")
        self.base = 0
        self.history = 1
        self.fresh = False  # begins a new history
        self.readable = True  # else what is set aside is damaged
        self.reading: Any = None  # which `_survey` has gone through
        self.started: _Started | None = None
        self.refused: dict[bytes, int] = {}  # in which epoch
        self.migrated = False
        self.other_hashing = ""
        self.replayed = 0
        self.watch: Watch | None = None
        self.began_s = self.saved_s = time.monotonic()

    async def run(self, names_after_init: frozenset[str]) -> None:
        """Make the session ready to serve."""
        self._restore()
        self.session.remember(names_after_init, self.past)
        tail = self._survey()
        self._find_poison()
        self._hash_alike(tail)
        await self._replay(tail)
        self._seal()
        self._open_journal(tail)
        rerun = self.started is not None
        self.session.start(names_after_init, self.past._replace(newest=None))
        await self._rerun()
        self._save_if_due(rerun)
        self._tell(tail, rerun)

    # -- the snapshot

    def _restore(self) -> None:
        self.fresh = engine.begins_anew(self.host, self.options, self.log)
        if self.fresh:
            self._set_aside()
        else:
            self.past = engine.restore(self.session.instance, self.host, self.options, self.log)
            self._take_over()
        self.once.position = self.base

    def _set_aside(self) -> None:
        """``restore='never'``: begin a new history behind all that there is."""
        sealed = present(self.store, self.key).sealed
        self.history = int(sealed.get("history_number", 0)) + 1
        self.base, self.readable = end_of_journal(self.store, self.key, sealed)
        self.once.ledger = self.once.make_ledger(self.history)

    def _take_over(self) -> None:
        loaded, sealed = self.past.newest, self.past.sealed
        self.history = int(sealed.get("history_number", 1))
        self.base = int(sealed.get("journal_position", 0))
        self.once.ledger = self.once.make_ledger(self.history)
        if loaded is None:
            return
        self.base = int(loaded.header.fields.get("journal_position", self.base))
        ledger = split_ledger(loaded.header, loaded.segments)[1]
        if ledger is not None:
            self.once.ledger.load(ledger)
            self.history = self.once.ledger.history
        self.once.contains(loaded.name, self.base)

    # -- the journal

    def _survey(self) -> marks.Tail:
        if not self.readable:
            return marks.Tail(self.base, [], None, 0)
        self.reading = reading = self.store.read_journal(self.key, self.base)
        past = self.past
        tail = marks.survey(
            reading, self.base, past.history, past.newest is not None, past.sealed.get("base")
        )
        for kind, lines in (("journal_lost", reading.lost), ("journal_note", reading.notes)):
            for line in lines:
                self._report(kind, line)
        return tail

    def _find_poison(self) -> None:
        row = self.store.last_running(self.key)
        # Where no predecessor of this session died, a driver or a machine was ended with all that it ran:
        # that says nothing of the call. Should it kill again, the row is long enough.
        if row is not None and row[1] >= POISON_AFTER and self.host.is_reconstructed:
            self.once.poison = frozenset({row[0]})

    def _hash_alike(self, tail: marks.Tail) -> None:
        """What is run again must see sets of text in the order that it saw the first time."""
        saved = self.past.sealed.get("hash_seed")
        if saved is None and self.past.newest is not None:
            saved = self.past.newest.header.fields.get("hash_seed")
        here = hash_seed(self.host)
        if not tail.calls or not saved or saved["fingerprint"] == here["fingerprint"]:
            return
        wanted = saved["PYTHONHASHSEED"]
        if wanted and wanted != here["PYTHONHASHSEED"]:
            self.host.restart_with_hash_seed(wanted)
        self.other_hashing = (
            f"the calls to be run again ran with another hash seed (PYTHONHASHSEED {wanted or 'not known'}) "
            f"than this process has ({here['PYTHONHASHSEED'] or 'not known'}): methods whose result depends "
            "on the order of a set of str may diverge"
        )
        self._report("hash_seed", self.other_hashing)

    async def _replay(self, tail: marks.Tail) -> None:
        if faults.active:
            faults.hit("once.replay_begin")
        self.saved_s = time.monotonic()  # reading the snapshot may have taken long: it is there already
        if tail.calls:
            suspicious = self.log.epoch - int(self.past.sealed.get("epoch", 0)) > 1
            self.watch = Watch(self.store, self.key, self.log.epoch, self.base + 1, tail.last, suspicious)
        try:
            await self._replay_all(tail)
        except Exception:
            if self.watch is not None:
                self.watch.close()
            raise
        if self.watch is not None:
            self.watch.over()
        self.once.position = tail.last
        if faults.active:
            faults.hit("once.replay_done")

    async def _replay_all(self, tail: marks.Tail) -> None:
        reruns = self.once.reruns() if self.once.reruns is not None and tail.calls else None
        for position, epoch, payload in self._read_again():
            if position > tail.last:
                break  # of a fenced writer that goes on: never answered, and our records take its place
            if tail.counts(position):
                special = self.started is not None or self.refused or self._is_suspect(position)
                if reruns is None or special or not self._rerun_plainly(reruns, position, payload):
                    await self._replay_record(position, epoch, payload)
                self._save_on_the_way()

    def _rerun_plainly(self, reruns: Reruns, position: int, payload: bytes) -> bool:
        """Run a record's call again if only its method has a part in it."""
        assert self.watch is not None
        self.watch.enter(position)
        same = reruns.run(payload, position)
        if same is None:
            self.watch.nowhere()
            return False
        if not same:
            record = decode_record(payload)
            assert isinstance(record, CallRecord) and record.reply is not None
            self._compare(position, record, record.reply, reruns.result, reruns.error)
        self.watch.leave(position)
        self._count()
        self.once.position = position
        return True

    def _is_suspect(self, position: int) -> bool:
        return self.watch is not None and position == self.watch.row.first and self.watch.row.too_many

    def _read_again(self) -> Iterable[JournalRecord]:
        """The records once more: of some stores they are in memory by now, others give them as needed."""
        if not self.readable:
            return ()
        reading, self.reading = self.reading, None
        if hasattr(reading, "again"):
            again: Iterable[JournalRecord] = reading.again()
            return again
        return self.store.read_journal(self.key, self.base)

    async def _replay_record(self, position: int, epoch: int, payload: bytes) -> None:
        mark = marks.decode(payload)
        if mark is not None:
            if mark.kind == marks.REFUSED:
                self.refused[bytes.fromhex(mark.fields["call_id"])] = epoch
        else:
            record = decode_record(payload)
            if isinstance(record, CallRecord):
                await self._replay_call(position, epoch, record)
            elif isinstance(record, StartRecord):
                self._note_start(position, record)
            elif isinstance(record, ValueRecord):
                self._note_value(position, record)
            elif isinstance(record, SeenRecord):
                self.once.ledger.see(record.head)
            else:
                assert isinstance(record, ReleaseRecord)
                for parent in record.parents:
                    self.once.ledger.release_caller(parent)
                for root in record.roots:
                    self.once.ledger.release_root(root)
        if self.started is None:
            self.once.position = position

    def _note_start(self, position: int, record: StartRecord) -> None:
        if self.started is not None:
            raise self._broken(position, "a call begins inside of another one")
        args = self._bytes_of(record.args, record.args_blob)
        self.started = _Started(record, args, list(record.values))

    def _note_value(self, position: int, record: ValueRecord) -> None:
        started = self.started
        if started is None or started.record.head[CALL_ID] != record.call_id:
            raise self._broken(position, "a value of a call that has not begun")
        if record.nth != len(started.values):
            raise self._broken(position, f"value {record.nth} of a call after {len(started.values)} values")
        started.values.append(record.data)

    def _broken(self, position: int, what: str) -> CheckpointCorruptedError:
        return CheckpointCorruptedError(
            f"the journal of checkpoint key {self.key!r} in {self.store.url} contradicts itself at position "
            f"{position}: {what}. Put back a good copy, or start anew with restore='never'"
        )

    def _bytes_of(self, data: bytes | None, blob: str | None) -> bytes:
        if data is not None:
            return data
        assert blob is not None
        try:
            return self.store.read_blob(self.key, blob)
        except (CheckpointError, OSError) as error:
            raise CheckpointCorruptedError(
                f"blob {blob} of checkpoint key {self.key!r} in {self.store.url}, which the journal names, "
                f"cannot be read: {error}"
            ) from error

    # -- calls

    async def _replay_call(self, position: int, epoch: int, record: CallRecord) -> None:
        call_id = record.head[CALL_ID]
        if self.started is not None and self.started.record.head[CALL_ID] != call_id:
            raise self._broken(position, "a call ends inside of another one")
        if self.started is not None:
            made = [index for index, value in enumerate(record.values) if value[0] == USER_VALUE]
            self.once.ended_calls += [call_id, *(value_caller(call_id, index) for index in made)]
        self.started = None
        args = self._bytes_of(record.args, record.args_blob)
        reply = self._bytes_of(record.reply, record.reply_blob)
        self._enter(record._replace(reply=reply, reply_blob=None), position)
        # A mark of an incarnation that died before the record says nothing of the record of another one.
        if self.refused.get(call_id) != epoch:
            assert self.watch is not None
            self._check_deaths(self.watch.row, position, record)
            self.watch.enter(position)
            await self._run_again(position, record, args, reply)
            self.watch.leave(position)
        self._count()

    def _count(self) -> None:
        self.session.calls.replayed()
        self.replayed += 1
        if faults.active:
            faults.hit("once.replayed")

    def _check_deaths(self, row: Row, position: int, record: CallRecord) -> None:
        """Do not run again what has ended each process so far that has run it again.

        As with poison, the first process of a session, or of an actor that was made anew, tries once more.
        """
        if position != row.first or not row.too_many or not self.host.is_reconstructed:
            return
        raise ReplayCrashedError(
            f"the actor's process died {row.deaths} times in a row while it ran {record.method!r}, "
            f"{describe(record.head)} at position {position} of the journal, again, and never got past it. "
            "Look at the actor's log for how it died. To give up what the journal has, start with "
            "restore='never'"
        )

    def _enter(self, record: CallRecord, position: int) -> None:
        try:
            self.once.ledger.replay(record.head, record.digest, record.status, record.reply, position)
        except ValueError as error:
            raise self._broken(position, str(error)) from error

    async def _run_again(self, position: int, record: CallRecord, args: bytes, reply: bytes) -> None:
        execution = self.once.replaying(record.head, record.method, args, record.values)
        function, arguments, migrated = self._prepare(record.method, args, record.code_version)
        result, error = await run_method(self.once, execution, function, arguments)
        if not migrated:
            execution.ended()
            self._compare(position, record, reply, result, error)

    def _compare(
        self, position: int, record: CallRecord, reply: bytes, result: object, error: Exception | None
    ) -> None:
        """Raise unless a call that has run again says what it said the first time."""
        again = self.codec.encode_outcome(record.method, result, error, self.codec.count_returns(reply))
        found = reply_difference(self.codec, (record.status, reply), again)
        if found is not None:
            where = (
                f"replay of {record.method!r}, {describe(record.head)} at position {position} of the journal,"
            )
            raise ReplayDivergedError(
                f"{where} gives another reply than the first time: {found} (recorded first). Its method "
                "depends on something besides state and arguments: pass it as an argument, get it through "
                "self.record(...), or mark the method @nondeterministic. Nothing was changed; to give up "
                "what the journal has, start with "
                f"restore='never'{self.other_hashing and f'. And {self.other_hashing}'}"
            )

    def _prepare(
        self, method: str, args: bytes, code_version: int
    ) -> tuple[Callable[..., Any], Arguments, bool]:
        """Return function and arguments; of a call of other code as `migrate_call` says."""
        arguments = self.codec.decode_args(args)
        migrated = code_version != self.once.code_version
        if migrated:
            name, positional, named = self.session.instance.migrate_call(method, *arguments, code_version)
            method, arguments, self.migrated = name, (positional, named), True
        function = self.once.find_method(method)
        if function is None:
            raise ReplayDivergedError(
                f"the journal has a call of {method!r}, and {type(self.session.instance).__name__} has no "
                "such method"
            )
        return function, arguments, migrated

    async def _rerun(self) -> None:
        """A call had begun and sent something: it goes on before any other, with what it had got."""
        if self.started is None:
            return
        (record, args, values), self.started = self.started, None
        call_id = record.head[CALL_ID]
        self.once.ledger.replay(record.head, record.digest, 0, None, 0)
        if call_id in self.once.poison:
            self.once.refuse(record.head, record.method, args, poisoned(record.head, record.method))
            return
        function, arguments, migrated = self._prepare(record.method, args, record.code_version)
        execution = self.once.resume(record.head, record.method, args, tuple(values))
        self.session.before_call(record.method)
        result, error = await run_method(self.once, execution, function, arguments)
        status, reply = self.codec.encode_outcome(record.method, result, error)
        self.once.finish(execution, status, reply, by_snapshot=migrated)
        self.session.after_call(record.method)
        if faults.active:
            faults.hit("once.resumed")

    # -- the new incarnation

    def _seal(self, whole: bool = True) -> None:
        """`whole`: all has run again; else this is on the way, and the rest takes its time."""
        if self.log.sealed:
            return
        base = self.past.newest.name if self.past.newest else None
        extra: dict[str, Any] = {
            "history_number": self.history,
            "journal_position": self.base,
            "hash_seed": hash_seed(self.host),
        }
        if self.session.member is not None:
            extra["group_generation"] = self.session.member.generation
        recovered = None if self.fresh else {"calls_replayed": self.replayed, "whole": whole}
        self.log.seal(base, self.past.history, extra, recovered)

    def _open_journal(self, tail: marks.Tail) -> None:
        last = max(tail.last, self.base)
        durability: Durability = "power" if self.options.durability == "power" else "process"
        journal = self.store.open_journal(self.key, self.log.epoch, last + 1, durability=durability)
        if faults.active:
            faults.hit("once.journal_opened")
        self.once.attach(journal)
        if tail.unwritten is not None:
            first, end = tail.unwritten
            journal.append(marks.encode(marks.VOID, first=first, last=end))
            if faults.active:
                faults.hit("once.void_appended")

    def _save_on_the_way(self) -> None:
        if self.started is not None or time.monotonic() - self.saved_s < REPLAY_BOUND_S:
            return
        self._seal(whole=False)
        self._save("replay")
        self.saved_s = time.monotonic()

    def _save_if_due(self, rerun: bool) -> None:
        if self.past.newest is None and not self.log.counted:
            self.once.require_base()
            self.session.want_now("base")
            return
        long = time.monotonic() - self.saved_s > REPLAY_BOUND_S
        if self.migrated or (long and (rerun or self.replayed)):
            self._save("replay")

    def _save(self, reason: str) -> None:
        try:
            self.session.save_at_once(reason)
        except CheckpointError as error:
            if self.migrated:
                raise
            self._report("save_failed", f"the replayed state could not be saved: {error}")

    def _tell(self, tail: marks.Tail, rerun: bool) -> None:
        duration_s = time.monotonic() - self.began_s
        self.log.recovered(
            whole=True,
            calls_replayed=self.replayed,
            calls_resumed=int(rerun),
            records_void=0 if tail.unwritten is None else tail.unwritten[1] - tail.unwritten[0] + 1,
        )
        if self.replayed or rerun:
            what = f"{self.replayed} calls replayed in {duration_s:.3f} s"
            self._report("replayed", what + (", one resumed that had begun" if rerun else ""))

    def _report(self, kind: str, what: str) -> None:
        message = f"checkpoint key {self.key!r} in {self.store.url}: {what}"
        self.host.report_incident(Incident(kind, message))


def poisoned(head: bytes, method: str) -> PoisonCallError:
    """Return the error that a call gets which has killed too often."""
    return PoisonCallError(
        f"{describe(head)} of {method!r} is not run again: the actor's process died in it {POISON_AFTER} "
        "times in a row. Look at the actor's log for how it died; a call under another identity is tried anew"
    )
