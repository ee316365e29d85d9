"""`ActorSession`: the life of one actor process as the toolkit sees it, from its first call to its planned
end.

Owns: taking the capture in a gap between calls, handing it to the background thread, what people are told.
Decides nothing about when (`scheduler`) and nothing about files (`snapshots`); `counting` counts the calls.

Threads: `after_call`, `close` and the gap action run on the actor's thread (for ``max_concurrency > 1``: on
any of its threads, serialised by ``_gate``); saves run on the background thread; `request` and `status`
anywhere. ``_lock`` guards the numbers and is never held while user code or I/O runs. ``_gate`` is held
during a capture.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ftray._core.callcount import CallCounter

from . import actor, faults
from .background import Background
from .capture import Captured, Pieces, StateCapturer, capture_error
from .counting import CallCount
from .errors import (
    CheckpointCaptureError,
    CheckpointError,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
    NoSessionError,
    lighten,
)
from .figures import STATUS_METHOD, Figures, figures
from .host import Host, Incident
from .idle import RunningMethods
from .keys import ActorKey
from .lineage import SnapshotName
from .options import Options, final_timeout_s
from .outcomes import OUTCOME_METHOD
from .pace import Pace
from .scheduler import CAPTURE, EVERY, STARVED, SaveScheduler
from .snapshots import Past, SnapshotLog
from .state import attribute_names, own_dict

if TYPE_CHECKING:
    from .exactly_once import ExactlyOnce
    from .members import Member

OUT_OF_SCOPE = "out of scope"
"""Reason of `ActorSession.close`: nobody can reach the actor. An unnamed one's snapshots are removed."""
SESSION_OVER = "the session ends"
"""Reason of `ActorSession.close`: whatever could restart the actor ends, too. As with `OUT_OF_SCOPE`."""
_NEVER = sys.maxsize
_LOOK_EVERY = 64
_OUTCOMES_KEPT = 64


class ActorSession:
    """Drives the snapshots of one actor process. Made by `engine.open`."""

    def __init__(
        self,
        instance: actor.Checkpointable,
        host: Host,
        options: Options,
        key: ActorKey,
        log: SnapshotLog,
        background: Callable[..., Background] = Background,
    ) -> None:
        self._instance, self._host, self._options, self._key = instance, host, options, key
        self._made_s = time.monotonic()
        self.log = log
        self.exactly_once: ExactlyOnce | None = None
        self.member: Member | None = None  # of a group whose cuts it begins from
        self._cls = type(instance)
        uncounted = {"checkpoint", "_checkpoint_group", "__ray_ready__", STATUS_METHOD}
        self._uncounted = actor.readonly_names(self._cls) | uncounted
        self._after = frozenset(options.after)
        # How many calls may pass without a look at the size of the journal.
        stride = _LOOK_EVERY if options.exactly_once else _NEVER
        self.calls = CallCount(self._uncounted, options.every or _NEVER, stride, self._count_due)
        # A method has ended, by return or by exception: called on the thread that ran it.
        self.after_call: Callable[[str], None] = self.calls.counter.after_call
        self._capturer = StateCapturer()
        self._gate = threading.RLock()
        self.running = RunningMethods(self._gate)
        self._concurrent = host.max_concurrency > 1
        self._lock = threading.Lock()
        self._saved = threading.Condition(self._lock)
        self._outcomes: dict[int, Exception | None] = {}
        now_s = time.monotonic()
        self._scheduler = SaveScheduler(now_s, options.interval_s, pace=Pace(now_s, options.save_share))
        self.background = background
        self._background = background(f"checkpoint {key.text}", self._timer, self._unexpected)
        self._owner_pid = os.getpid()
        self._end: str | None = None  # why nothing is saved any more
        self._names_after_init: frozenset[str] = frozenset()
        self._status = Figures()
        if self._concurrent:
            self.count_beside()
        elif self._after:
            self.after_call = self._after_named_call

    @property
    def instance(self) -> actor.Checkpointable:
        """The actor object."""
        return self._instance

    @property
    def counter(self) -> CallCounter | None:
        """What does the work of `after_call`, for engines that need no Python for it; None: more is to do."""
        return None if self._concurrent or self._after else self.calls.counter

    @property
    def is_async(self) -> bool:
        """Whether the methods run on an event loop."""
        return self._host.is_async

    # -- start

    def trial_capture(self) -> None:
        """Capture once without saving, so that a state that cannot be saved fails at creation."""
        started = time.perf_counter()
        self._capture_state()
        self._status.paused(time.perf_counter() - started)

    def start(self, names_after_init: frozenset[str], past: Past) -> None:
        """Begin to save; the state has been restored and the past sealed."""
        self.log.ahead = None
        self.remember(names_after_init, past)
        self._status.restore_s = time.monotonic() - self._made_s
        self._background.submit(self._settle)
        self._background.set_timer(self._scheduler.deadline_s)

    def remember(self, names_after_init: frozenset[str], past: Past) -> None:
        """Take over what was found: attributes that ``__init__`` made, and the snapshot restored."""
        self._names_after_init = names_after_init
        own_dict(self._instance)
        self._status.restored(past)
        if past.newest:
            self.calls.continue_from(past.newest.header.fields["calls"])

    def _settle(self) -> None:
        try:
            self.log.settle()
            if self.exactly_once is not None:
                self.exactly_once.settled()
        except Exception as error:  # the next save tries again, and fails if this does
            self._tell_failure(error, "the claim and the seal of this incarnation could not be made durable")

    @functools.cached_property
    def entry_points(self) -> Mapping[str, Callable[..., Any]]:
        """Actor methods that the engine runs from here in place of the instance's, by name."""
        own: dict[str, Callable[..., Any]] = {STATUS_METHOD: functools.partial(self.status, measured=False)}
        if self.exactly_once is not None:
            own[OUTCOME_METHOD] = self.exactly_once.look
        elif self._options.verify:
            from .verify import ReadonlyCheck

            own |= ReadonlyCheck(self).methods()
        if self._cls.checkpoint is actor.Checkpointable.checkpoint:
            own["checkpoint"] = self.save_now_async if self._host.is_async else self.save_now
        return own

    def count_beside(self) -> None:
        """Methods may run beside each other, or on several threads: each is announced by `before_call`."""
        self._concurrent = True
        self.after_call = self._after_concurrent_call

    # -- calls

    def before_call(self, method_name: str) -> None:
        """A method begins. Needed only when ``max_concurrency > 1``; waits while a capture is being taken."""
        if self._concurrent and method_name not in self._uncounted:
            self.running.begin()

    def _after_concurrent_call(self, method_name: str) -> None:
        if method_name in self._uncounted:
            return
        with self._gate:
            self.running.number -= 1
            if not self._counts_down(method_name) and self._scheduler.wanted is not None:
                self._gap()
            self.running.tell()

    def _after_named_call(self, method_name: str) -> None:
        if method_name in self._uncounted:
            return
        self._counts_down(method_name)

    def _counts_down(self, method_name: str) -> bool:
        """Count a call; whether that has led to a look at what is due."""
        self.calls.counter.left -= 1
        if self.calls.counter.left > 0 and method_name not in self._after:
            return False
        self._count_due("after" if method_name in self._after else EVERY)
        return True

    def _count_due(self, reason: str = EVERY) -> None:
        with self._lock:
            waited = self._scheduler.wanted is not None
            self.calls.go_on()
            if reason != EVERY or self.calls.is_due:
                self._scheduler.want(reason, time.monotonic())
            elif self.exactly_once is not None and self.exactly_once.journal_is_full():
                self._scheduler.want("journal", time.monotonic())
            if waited and not self._scheduler.may_capture:
                if self.exactly_once is None:
                    self.calls.only_count()  # until the capture, which comes by itself
                return  # and goes on waiting
        self._gap()
        if self._scheduler.wanted is not None:  # for the pace, a save in flight or methods that run
            self._background.set_timer(self._scheduler.deadline_s)

    # -- capture

    def request(self) -> str:
        """Want a snapshot at the next gap; returns the id that it will have. From any thread."""
        self._check_usable()
        with self._lock:
            name = SnapshotName(self.log.epoch, self.log.last_sequence + 1)
            commands = self._scheduler.want("request", time.monotonic())
        self._obey(commands)
        return name.id

    def want(self, reason: str, alone: bool = False) -> None:
        """Want a snapshot at the next gap; on the actor's thread, in a method. `alone`: none is in flight."""
        with self._saved:
            self._saved.wait_for(lambda: not (alone and self._scheduler.in_flight) or self._end is not None)
            commands = self._scheduler.want(reason, time.monotonic())
        self._obey(commands)

    def want_now(self, reason: str) -> None:
        """Capture on the present thread, between two methods; the save goes on beside the calls."""
        with self._lock:
            self._scheduler.want(reason, time.monotonic())
        self._gap()

    def save_at_once(self, reason: str) -> None:
        """Save on the present thread, between two methods, before the session has begun to serve."""
        with self._lock:
            name = self.log.next_name()
        captured, extra = self._capture_all()
        fields = {**self._header_fields(reason), **extra}
        self._written(name, fields, captured)
        self._after_written(name, fields)

    def _check_usable(self) -> None:
        if os.getpid() != self._owner_pid:
            raise NoSessionError(
                "this process was forked from the actor's: only the actor itself saves checkpoints"
            )
        if self._end is not None:
            raise NoSessionError(f"checkpoints of key {self._key.text!r} have ended: {self._end}")

    def _obey(self, commands: tuple[str, ...]) -> None:
        """Carry out the scheduler's commands outside of `_lock`."""
        for command in commands:
            if command == CAPTURE:
                self._host.run_between_calls(self._gap)
            elif command == STARVED:
                self._report("save_starved", "a snapshot is due and no gap between calls has come for 60 s")
        self._background.set_timer(self._scheduler.deadline_s)

    def _gap(self) -> None:
        """No method of a serial actor runs now: capture if one is wanted and no save is in flight."""
        with self._gate:
            if self.running.number:
                return  # the last of them to end comes here
            with self._lock:
                if self._end is not None or not self._scheduler.may_capture:
                    return
                reason = self._scheduler.started()
                name = self.log.next_name()
                self.calls.capture()
            self._capture(name, reason)

    def _capture(self, name: SnapshotName, reason: str) -> None:
        started, cpu_s = time.perf_counter(), self._background.cpu_s()
        try:
            captured, extra = self._capture_all()
            fields = {**self._header_fields(reason), **extra}
            self._status.paused(time.perf_counter() - started)
            cost_s = self._background.cpu_s() - cpu_s
            self._background.submit(lambda: self._save(name, fields, captured, cost_s))
        except Exception as error:
            self._save_ended(name, error)
        except BaseException as error:  # a cancelled call: it goes on, the save will be tried again
            why = f"the capture was interrupted by {type(error).__name__}"
            self._save_ended(name, CheckpointCaptureError(why))
            raise

    def _header_fields(self, reason: str) -> dict[str, Any]:
        return {
            "class": self._host.identity.class_name,
            "module": self._cls.__module__,
            "state_version": self._options.checkpoint_version,
            "created_unix_s": time.time(),
            "calls": self.calls.captured,
            "reason": reason,
            "deleted": self._deleted_attributes(),
            "python": ".".join(map(str, sys.version_info[:3])),
        }

    def _capture_all(self) -> tuple[Captured, dict[str, Any]]:
        """Return the state, with the ledger behind it if there is one, and the header fields that say so."""
        captured = self._capture_state()
        if self.exactly_once is None:
            return captured, {}
        fields, ledger = self.exactly_once.captured()
        segments: list[Pieces] = [*captured.segments, [ledger]]
        return Captured(segments), fields

    def _capture_state(self) -> Captured:
        name = self._cls.__name__
        try:
            state = self._instance.save_checkpoint()
        except Exception as error:
            raise CheckpointCaptureError(
                f"{name}.save_checkpoint (or __getstate__) raised {type(error).__name__}: {error}"
            ) from error
        try:
            return self._capturer.capture(state)
        except Exception as error:
            raise capture_error(self._capturer, state, name, error) from error

    def _deleted_attributes(self) -> list[str]:
        base = actor.Checkpointable
        if (
            self._cls.save_checkpoint is not base.save_checkpoint
            or self._cls.load_checkpoint is not base.load_checkpoint
        ):
            return []
        return sorted(self._names_after_init - attribute_names(self._instance))

    def in_background(self, job: Callable[[], None]) -> None:
        """Run `job`, which handles its own errors, on the thread that saves, after what it has to save."""
        self._background.submit(job)

    # -- background thread

    def _save(
        self, name: SnapshotName, fields: Mapping[str, Any], captured: Captured, cost_s: float
    ) -> None:
        """Save what was captured; `cost_s`: CPU time of the capture."""
        cost_s -= self._background.cpu_s()
        try:
            self._written(name, fields, captured)
        except Exception as error:
            self._save_ended(name, error, cost_s + self._background.cpu_s())
            return
        leftover: Exception | None = None
        try:
            self._after_written(name, fields)
        except Exception as error:
            leftover = error
        if leftover is not None:
            self._tell_failure(leftover, f"snapshot {name.id} is saved, but older ones could not be deleted")
        self._save_ended(name, None, cost_s + self._background.cpu_s())

    def _written(self, name: SnapshotName, fields: Mapping[str, Any], captured: Captured) -> None:
        began_s = time.perf_counter()
        if self.exactly_once is not None:
            self.exactly_once.before_put(fields)
        size_bytes = self.log.save(name, fields, captured)
        with self._lock:
            self._status.unsaved(self.calls.total - self.calls.saved)
            self.calls.saved = fields["calls"]
            self._status.saved(name, size_bytes, time.perf_counter() - began_s)

    def _after_written(self, name: SnapshotName, fields: Mapping[str, Any]) -> None:
        if faults.active:
            faults.hit("save.announced")
        if self.exactly_once is not None:
            self.exactly_once.saved(name, fields)
        self.log.retire()
        if self.exactly_once is not None:
            self.exactly_once.retired()

    def _save_ended(self, name: SnapshotName, error: Exception | None, cost_s: float = 0.0) -> None:
        if error is not None:
            lighten(error)
            self._tell_failure(error, f"snapshot {name.id} was not saved")
        with self._saved:
            self._outcomes[name.sequence] = error
            while len(self._outcomes) > _OUTCOMES_KEPT:
                self._outcomes.pop(next(iter(self._outcomes)))
            self._status.save_cpu_s_total += cost_s
            commands = self._scheduler.ended(error is None, time.monotonic(), cost_s)
            if isinstance(error, FencedError):
                self._end = str(error)
            self._saved.notify_all()
        if self._end is None:
            self._obey(commands)

    def journal_fails(self, error: Exception | None) -> None:
        """The store does not answer the journal, which tries again; None: it does again. From any thread."""
        if error is None:
            with self._lock:
                self._status.journal_goes_on()
        elif self._end is None:
            self.note_failure(error, journal=True)
            self._report("journal_fails", "answers wait until the store answers again", error)

    def note_failure(self, error: Exception, journal: bool = False) -> None:
        """Show a failure in the status, and tell the actor of it in a gap between two calls."""
        with self._lock:
            self._status.failed(error, journal)
        if self._cls.on_checkpoint_error is not actor.Checkpointable.on_checkpoint_error:
            self._host.run_between_calls(lambda: self._call_hook(error))

    def _tell_failure(self, error: Exception, what: str) -> None:
        """Tell everybody who should know, before those who wait for the save go on."""
        self.note_failure(error)
        if isinstance(error, FencedError):
            self._report("fenced", what, error, fatal=True)
            self._host.fenced(error)
        else:
            self._report("save_failed", what, error)

    def _call_hook(self, error: Exception) -> None:
        try:
            self._instance.on_checkpoint_error(error)
        except Exception as raised:
            self._report("hook_failed", "on_checkpoint_error raised", raised)

    def _timer(self, now_s: float) -> None:
        with self._lock:
            if self._end is not None:
                return
            commands = self._scheduler.timer(now_s, dirty=self.calls.total != self.calls.captured)
        self._obey(commands)

    def _unexpected(self, error: BaseException) -> None:
        self._report("save_failed", "the background thread met an unexpected error", error)

    def _report(self, kind: str, what: str, error: BaseException | None = None, fatal: bool = False) -> None:
        message = f"checkpoint key {self._key.text!r} in {self.log.store.url}: {what}"
        if error is not None:
            message += f": {type(error).__name__}: {error}"
        self._host.report_incident(Incident(kind, message, error, fatal))

    # -- waiting

    def save_now(self, timeout_s: float = 300.0) -> str:
        """Capture now and wait until the snapshot is durable. On the actor's thread, between two methods.

        With ``max_concurrency > 1`` it may be any thread that runs no other method; the capture waits for a
        gap.

        Returns
        -------
        str
            Id of the snapshot, which is durable.

        Raises
        ------
        CheckpointTimeoutError
            It was not durable within `timeout_s`; the save goes on.
        CheckpointError
            What capturing or saving raised.
        """
        alone = self.exactly_once is not None and not self._host.is_async  # its engine gives this a turn
        return self._save_and_wait(timeout_s, in_gap=alone or not self._concurrent)

    def _save_and_wait(self, timeout_s: float, in_gap: bool) -> str:
        """Request a save and wait for it; `in_gap`: no method runs while the present thread waits."""
        name = self.request()
        sequence = int(name.partition("-")[2])
        deadline = time.monotonic() + timeout_s
        while True:
            if in_gap:
                self._gap()
            with self._saved:
                if sequence in self._outcomes:
                    break
                if self._end is not None:
                    raise NoSessionError(f"checkpoints of key {self._key.text!r} have ended: {self._end}")
                if not self._saved.wait(max(0.0, deadline - time.monotonic())):
                    raise CheckpointTimeoutError(
                        f"snapshot {name} of checkpoint key {self._key.text!r} was not durable within "
                        f"{timeout_s} s; it may still become so. Look at the store, or allow more time"
                    )
        error = self._outcomes[sequence]
        if error is not None:
            raise error
        return name

    async def save_now_async(self, timeout_s: float = 300.0) -> str:
        """`save_now` for an actor on an asyncio loop: the loop goes on while the save is under way."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(None, self.save_now, timeout_s)

    def close(
        self, final: bool, reason: str, timeout_s: float | None = None, *, inside: str | None = None
    ) -> str | None:
        """End the session, on the actor's thread. Never raises for a failed save: it reports.

        Parameters
        ----------
        final : bool
            Wait for the methods that run, save once more if anything has changed since the last snapshot,
            and wait for that. On the methods' own event loop its engine waits for them, before.
        reason : str
            For people; `OUT_OF_SCOPE` and `SESSION_OVER` also remove the snapshots of an unnamed actor.
        timeout_s : float, optional
            Bound on all waiting. Default: `options.final_timeout_s`.
        inside : str, optional
            The method that ends the actor, if one does: this is its end, and it counts like any other.

        Returns
        -------
        str or None
            Id of the newest durable snapshot.
        """
        bound_s = final_timeout_s() if timeout_s is None else timeout_s
        deadline = time.monotonic() + bound_s
        gone = self.goes(reason)
        if inside is not None:
            self.after_call(inside)
        if self._end is None and final and not gone:
            self._final_save(bound_s)
        with self._lock:
            self._end = self._end or f"closed ({reason})"
            self._saved.notify_all()
        stopped = self._background.stop(max(0.0, deadline - time.monotonic()) if final or gone else 0.0)
        if self.exactly_once is not None:
            self.exactly_once.close(max(0.0, deadline - time.monotonic()), planned=final)
        if final and not stopped:
            self._report(
                "final_save_failed",
                f"a save was still being written {bound_s} s after the end began ({reason})",
            )
        if gone:
            self.log.store.remove(self._key.text)
        actor.sessions.pop(id(self._instance), None)
        return None if gone else self._status.last_snapshot

    def goes(self, reason: str) -> bool:
        """Whether an end for this reason removes the snapshots, so that there is nothing to wait for."""
        return reason in (OUT_OF_SCOPE, SESSION_OVER) and self._key.ephemeral

    def _final_save(self, bound_s: float) -> None:
        deadline = time.monotonic() + bound_s
        self.running.wait(bound_s, self._host.is_async)
        with self._lock:
            unsaved = self.calls.total - self.calls.saved
            due = unsaved or self._scheduler.wanted is not None or self._scheduler.failures
        if not due:
            return
        try:
            if self.running.number:
                raise CheckpointSaveError(
                    f"{self.running.number} methods were still running, and a capture needs a gap"
                )
            self._save_final_state(max(0.0, deadline - time.monotonic()))
        except CheckpointError as error:
            self._report("final_save_failed", f"the effects of {unsaved} calls were not saved", error)

    def _save_final_state(self, bound_s: float) -> None:
        deadline = time.monotonic() + bound_s
        with self._saved:
            while self._scheduler.in_flight:
                if not self._saved.wait(max(0.0, deadline - time.monotonic())):
                    raise CheckpointTimeoutError(f"the save in flight did not end within {bound_s} s")
            if self.calls.total == self.calls.saved and self._scheduler.wanted is None:
                return
        self._save_and_wait(max(0.0, deadline - time.monotonic()), in_gap=True)

    def status(self, measured: bool = True) -> dict[str, Any]:
        """Return what people want to know, as plain values; `measured`: with what the store holds."""
        durable = self.exactly_once.status(measured) if self.exactly_once is not None else {}
        with self._lock:
            return {**figures(self._status, self._scheduler, self._end), **durable, **self._own_figures()}

    def _own_figures(self) -> dict[str, Any]:
        return {
            "mode": "snapshot" if self.exactly_once is None else "exactly_once",
            "store": self.log.store.url,
            "key": self._key.text,
            "group": self.member.name if self.member is not None else None,
            "class": self._host.identity.class_name,
            "incarnation": self._host.incarnation,
            "epoch": self.log.epoch,
            "history": self.log.history,
            "calls": self.calls.total,
            "calls_since_saved": self.calls.total - self.calls.saved,
            "every": self._options.every,
            "save_share": self._options.save_share,
            "interval_s": self._options.interval_s,
            "keep": self._options.keep,
            "recoveries": [dict(each) for each in self.log.recoveries],
        }
