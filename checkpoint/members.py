"""A group's member: what it does in a cut, and when its process opens.

Owns: the note in a member's own key that says which group it is in, the copy of its state while a cut is
being written, and the end of a hold whose coordinator has forgotten it.
Invariants: a member of a snapshot-mode group serves nothing before all processes of the generation before
are dead, and then begins from the cut that all others begin from; nothing that those had sent to it runs
then, since calls queue at a process while it opens; a step of a cut that was meant for an
earlier incarnation, or an earlier generation, is refused.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from . import actor, cutfiles, faults, format, generations, membership
from .capture import StateCapturer
from .cuts import Step, step_of_member
from .errors import (
    CheckpointError,
    CheckpointOptionError,
    CheckpointTimeoutError,
    FencedError,
    NoSessionError,
)
from .host import Incident
from .snapshots import Past, boot_id, present

if TYPE_CHECKING:
    from .capture import Captured
    from .session import ActorSession
    from .snapshots import Loaded


class GroupPort(Protocol):
    """What an engine does for members of groups, beside `Host`; its ``group_port`` returns one."""

    def describe(self) -> dict[str, Any]:
        """Return ``worker`` and ``actor`` (ids, bytes) and ``max_restarts``."""

    def meet(self, actors: Sequence[bytes]) -> None:
        """These are the members now: the ids that `describe` gives."""

    def hold(self, workers: Sequence[bytes]) -> None:
        """Let only calls of these processes begin, until `release` or the present caller's end."""

    def release(self) -> None:
        """Let all calls begin."""

    def begun(self) -> int | None:
        """How many calls began since `hold`; None if nothing is on hold."""

    def unanswered(self, actors: Sequence[bytes]) -> int:
        """How many calls of this process to these actors have no answer, and how many may yet begin here."""

    def end(self, claim: Mapping[str, Any]) -> None:
        """End the process that a claim of this machine names, and wait until it has ended."""

    def settle_deaths(self, timeout_s: float) -> None:
        """Drop the calls that processes which have ended had sent to this one and that have not begun.

        Waits until none of those can come any more, nor any of what ends with them: tasks and actors that
        they had started. Raises `TimeoutError`.
        """


def port_of(session: ActorSession) -> GroupPort:
    """Return what the engine offers; `NotSupportedError` if groups are not among it."""
    make = getattr(session._host, "group_port", None)
    if make is None:
        from ftray.exceptions import NotSupportedError

        raise NotSupportedError("ftray.checkpoint.group is not supported by the engine that runs this actor")
    port: GroupPort = make()
    return port


def steer(instance: object, what: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Do one step of a cut, inside of an actor's method."""
    session = actor.sessions.get(id(instance))
    if session is None:
        raise NoSessionError("groups are made of running actors")
    if what == "describe":
        return _describe(session)
    if what == "join":
        return _join(session, fields)
    if session.member is None:
        raise CheckpointOptionError("this actor is not a member of a group (or has left it)")
    return session.member.steer(what, fields)


def _describe(session: ActorSession) -> dict[str, Any]:
    once = session.exactly_once
    return {
        **port_of(session).describe(),
        "key": session.log.key,
        "store": session.log.store.url,
        "epoch": session.log.epoch,
        "class": type(session.instance).__name__,
        "exactly_once": once is not None,
        "serial": session._host.max_concurrency == 1 and not session.is_async,
        "restore": session._options.restore,
        "machine": os.uname().nodename,
        "boot": boot_id(),
        "group": session.member.name if session.member is not None else None,
        "generation": session.member.generation if session.member is not None else 0,
    }


def _join(session: ActorSession, fields: dict[str, Any]) -> dict[str, Any]:
    if session.log.epoch != fields["epoch"]:
        raise FencedError(f"{session.log.key!r} was restarted while it was to join a group")
    if session.member is None:
        session.log.settle()  # a note is for a key that is held durably
        note = {name: fields[name] for name in ("group", "keep")}
        membership.write_note(session.log.store, session.log.key, session.log.epoch, note)
        if faults.active:
            faults.hit("group.noted")
        session.member = Member(session, fields["group"], fields["keep"])
    session.member.generation = fields["generation"]
    port_of(session).meet(fields["actors"])
    return {}


class Member:
    """One process of a member."""

    def __init__(self, session: ActorSession, name: str, keep: int) -> None:
        self.session, self.name, self.keep = session, name, keep
        self.generation = 0
        self._cut: str | None = None
        self._held = ""  # nonce of the cut that holds this member
        self._timer: threading.Timer | None = None
        self._actors: list[bytes] = []
        self._copy: _Copy | None = None

    # -- opening

    def enter(self) -> bool:
        """Wait until the group's newest generation is in force; begin the next one if that is due.

        False if this is no member any more.
        """
        session, once = self.session, self.session.exactly_once is not None
        store, key, epoch = session.log.store, session.log.key, session.log.epoch
        own = int(present(store, key).sealed.get("group_generation", 0))
        deadline_s, nap_s = time.monotonic() + generations.WAIT_TIMEOUT_S, generations.FIRST_NAP_S
        while True:
            here = generations.standing(store, self.name, key)
            step = step_of_member(here, epoch, once, own)
            if step is Step.BEGIN:
                self._begin(here.generation, here.sealed)
            elif step is Step.WAIT:
                if time.monotonic() > deadline_s:
                    raise generations.not_in_force(self.name, here.generation)
                time.sleep(nap_s)
                nap_s = min(2 * nap_s, generations.LONGEST_NAP_S)
            else:
                break
        if step is Step.LEAVE:
            if here.generation:
                store.settle(membership.group_key(self.name), here.generation)
            membership.forget(store, key, epoch)
            return False
        self.generation = here.generation
        self._cut = here.cut if step is Step.LOAD else None
        if step is Step.LOAD:
            self._settle_deaths()
        return True

    def _settle_deaths(self) -> None:
        """What the processes of the generation before have sent belongs to the past that is given up."""
        try:
            port_of(self.session).settle_deaths(generations.WAIT_TIMEOUT_S)
        except TimeoutError as error:
            raise CheckpointTimeoutError(
                f"group {self.name!r} goes back, and the node has not settled within "
                f"{generations.WAIT_TIMEOUT_S:g} s what processes of its past had started"
            ) from error
        if faults.active:
            faults.hit("group.settled")

    def _begin(self, seen: int, sealed: bool) -> None:
        log, end = self.session.log, port_of(self.session).end
        if sealed:
            plan = generations.Plan(generations.members_of(log.store, self.name))
        else:
            plan = generations.plan_of(log.store, self.name, seen)
        try:
            generations.begin(log.store, self.name, self.keep, seen, plan, end, (log.key, log.epoch))
        except (generations.Moved, FencedError):
            return  # another process takes the group back: look again
        what = f"group {self.name!r} goes back to its last cut, because {log.key!r} has a new process"
        self.session._host.report_incident(Incident("group_rolled_back", what))

    def _read_cut(self) -> Loaded | None:
        if self._cut is None:
            return None
        log = self.session.log
        return cutfiles.read_state(log.store, self.name, self._cut, log.key)

    def load(self) -> Past | None:
        """Give the instance its state of the cut that the group began from; None if there is none to load."""
        from .engine import load_into

        session, loaded = self.session, self._read_cut()
        if loaded is None:
            return None
        load_into(session.instance, session._host, session._options, session.log, loaded)
        if faults.active:
            faults.hit("group.loaded")
        return Past(loaded, [], [], [], "")

    def roll_back(self) -> bool:
        """Take the key of an exactly-once member back to the cut that the group began from, if it has to be.

        A new history of the key then, which somebody has to claim anew.
        """
        loaded = self._read_cut()
        if loaded is None:
            return False
        from . import engine, rollback

        log, text = self.session.log, f"cut {self._cut} of group {self.name!r}"
        log.store.settle(membership.group_key(self.name), self.generation)  # or the others would not, too
        holder = engine.holder(self.session._host)
        said = {"group_generation": self.generation}
        rollback.take_back(log.store, log.key, text, loaded, said=said, holder=holder)
        if faults.active:
            faults.hit("group.loaded")
        return True

    # -- leaving

    def _part(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Save what this member will begin from when it is alone; it is not yet."""
        if self.session.exactly_once is None:
            self.session.save_now()
        if faults.active:
            faults.hit("group.parted")
        return {}

    def _leave(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The group's new generation is without this member."""
        log = self.session.log
        if log.epoch != fields["epoch"]:
            raise FencedError(f"{log.key!r} was restarted while it was to leave a group")
        log.settle()
        membership.forget(log.store, log.key, log.epoch)
        self.session.member = None
        if faults.active:
            faults.hit("group.left")
        return {}

    # -- a cut

    def steer(self, what: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Do one step of a cut."""
        if what == "release":
            self._release(fields["nonce"])
            return {}
        if what == "leave":
            return self._leave(fields)
        self._check(fields)
        steps = {
            "hold": self._hold,
            "poll": self._poll,
            "capture": self._capture,
            "written": self._written,
            "part": self._part,
        }
        return steps[what](fields)

    def _check(self, fields: dict[str, Any]) -> None:
        log = self.session.log
        if fields["generation"] != self.generation or fields["epoch"] != log.epoch:
            raise FencedError(
                f"{log.key!r} is in generation {self.generation} of group {self.name!r} with epoch "
                f"{log.epoch}: a cut of generation {fields['generation']} with its epoch {fields['epoch']} "
                "cannot be taken any more"
            )

    def _hold(self, fields: dict[str, Any]) -> dict[str, Any]:
        alive = port_of(self.session).begun() is not None  # else its coordinator is gone
        if alive and self._held not in ("", fields["nonce"]):
            raise cutfiles.Busy(f"another cut of group {self.name!r} is being taken: one at a time")
        self._copy = None  # of a cut that was given up; what is still being written, no manifest will name
        port_of(self.session).hold(fields["workers"])
        self._held, self._actors = fields["nonce"], fields["actors"]
        self._watch(fields["timeout_s"])
        if faults.active:
            faults.hit("group.held")
        return {}

    def _watch(self, timeout_s: float) -> None:
        """However the coordinator fares, the calls of others do not wait for longer than it said."""
        if self._timer is not None:
            self._timer.cancel()
        nonce, host = self._held, self.session._host
        timer = threading.Timer(timeout_s, lambda: host.run_between_calls(lambda: self._release(nonce)))
        timer.daemon = True
        timer.start()
        self._timer = timer

    def _begun(self, nonce: str) -> int:
        begun = port_of(self.session).begun()
        if self._held != nonce or begun is None:
            raise CheckpointError(f"the cut of group {self.name!r} took too long, and its members went on")
        return begun

    def _poll(self, fields: dict[str, Any]) -> dict[str, Any]:
        begun = self._begun(fields["nonce"])
        if faults.active:
            faults.hit("group.polled")
        return {"begun": begun, "unanswered": port_of(self.session).unanswered(self._actors)}

    def _capture(self, fields: dict[str, Any]) -> dict[str, Any]:
        begun = self._begun(fields["nonce"])
        port_of(self.session).hold([])
        self._copy = _Copy(fields["nonce"], *_capture_apart(self.session))
        if faults.active:
            faults.hit("group.captured")
        return {"begun": begun}

    def _release(self, nonce: str) -> None:
        if self._held != nonce:
            return
        self._held = ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        port_of(self.session).release()
        if faults.active:
            faults.hit("group.released")

    def _written(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Begin to write the copy, or tell whether it is durable."""
        copy = self._copy
        if copy is None or copy.nonce != fields["nonce"]:
            raise cutfiles.Busy(
                f"another cut of group {self.name!r} was begun before this one was written: one at a time"
            )
        if not copy.begun:
            copy.begun = True
            self.session.in_background(lambda: self._write(copy, fields["blob"]))
        if not copy.over:
            return {"done": False}
        self._copy = None
        if copy.error is not None:
            raise copy.error
        return {"done": True, "size_bytes": copy.size_bytes}

    def _write(self, copy: _Copy, blob: str) -> None:
        try:
            copy.size_bytes = self._write_durably(copy, blob)
        except Exception as error:
            copy.error = error
        copy.over = True

    def _write_durably(self, copy: _Copy, blob: str) -> int:
        session = self.session
        if session.exactly_once is not None:
            session.exactly_once.before_put(copy.header)
        log = session.log
        fields = {
            **copy.header,
            "key": log.key,
            "history": log.history,
            "epoch": log.epoch,
            "sequence": 0,
            "boot_id": boot_id(),
        }
        parts = format.encode(fields, copy.captured.segments)
        if faults.active:
            faults.hit("group.writing")
        log.store.put_blob(membership.group_key(self.name), self.generation, blob, parts)
        if faults.active:
            faults.hit("group.written")
        return sum(len(part) for part in parts)


class _Copy:
    """A member's state, on its way into a cut."""

    def __init__(self, nonce: str, captured: Captured, header: dict[str, Any]) -> None:
        self.nonce, self.captured, self.header = nonce, captured, header
        self.begun = self.over = False
        self.error: Exception | None = None
        self.size_bytes = 0


def _capture_apart(session: ActorSession) -> tuple[Captured, dict[str, Any]]:
    """Return the state, and header fields, in memory of its own: a save may be in flight.

    On the actor's thread, between two methods.
    """
    usual, session._capturer = session._capturer, StateCapturer()
    try:
        captured, extra = session._capture_all()
        return captured, {**session._header_fields("cut"), **extra, "calls": session.calls.total}
    finally:
        session._capturer = usual
