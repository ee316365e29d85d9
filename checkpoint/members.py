"""A group's member: what it does in a cut, and when its process opens.

Owns: the note in a member's own key that says which group it is in, the copy of its state while a cut is
being written, and the end of a hold whose coordinator has forgotten it.
Invariants: a member of a snapshot-mode group serves nothing before all processes of the generation before
are dead, and then begins from the cut that all others begin from; a step of a cut that was meant for an
earlier incarnation, or an earlier generation, is refused.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from . import actor, faults, format, generations, membership
from .capture import StateCapturer
from .cuts import Step, step_of_member
from .errors import (
    CheckpointError,
    CheckpointMismatchError,
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

WAIT_TIMEOUT_S = 60.0
_FIRST_NAP_S, _LONGEST_NAP_S = 0.001, 0.02


class GroupPort(Protocol):
    """What an engine does for members of groups, beside `Host`; its ``group_port`` returns one."""

    def describe(self) -> dict[str, Any]:
        """Return ``worker`` and ``actor`` (ids, bytes) and ``max_restarts``."""

    def hold(self, workers: Sequence[bytes]) -> None:
        """Let only calls of these processes begin, until `release` or the present caller's end."""

    def release(self) -> None:
        """Let all calls begin."""

    def begun(self) -> int | None:
        """How many calls began since `hold`; None if nothing is on hold."""

    def unanswered(self, actors: Sequence[bytes]) -> int:
        """How many calls of this process to these actors have no answer."""


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
        note = {name: fields[name] for name in ("group", "members", "keep")}
        membership.write_note(session.log.store, session.log.key, session.log.epoch, note)
        if faults.active:
            faults.hit("group.noted")
        session.member = Member(session, fields["group"], fields["members"], fields["keep"])
    session.member.generation = fields["generation"]
    return {}


class Member:
    """One process of a member."""

    def __init__(self, session: ActorSession, name: str, members: Sequence[str], keep: int) -> None:
        self.session, self.name, self.members, self.keep = session, name, list(members), keep
        self.generation = 0
        self._cut: str | None = None
        self._held = ""  # nonce of the cut that holds this member
        self._timer: threading.Timer | None = None
        self._actors: list[bytes] = []
        self._copy: _Copy | None = None

    # -- opening

    def enter(self) -> None:
        """Wait until the group's newest generation is in force; begin the next one if that is due."""
        session, once = self.session, self.session.exactly_once is not None
        store, key, epoch = session.log.store, session.log.key, session.log.epoch
        own = int(present(store, key).sealed.get("group_generation", 0))
        deadline_s, nap_s = time.monotonic() + WAIT_TIMEOUT_S, _FIRST_NAP_S
        while True:
            here = generations.standing(store, self.name, key)
            step = step_of_member(here, epoch, once, own)
            if step is Step.BEGIN:
                self._begin(here.generation, here.sealed)
            elif step is Step.WAIT:
                if time.monotonic() > deadline_s:
                    raise CheckpointTimeoutError(
                        f"generation {here.generation} of group {self.name!r} was not in force within "
                        f"{WAIT_TIMEOUT_S} s: the process that claimed it lives and does not go on"
                    )
                time.sleep(nap_s)
                nap_s = min(2 * nap_s, _LONGEST_NAP_S)
            else:
                break
        self.generation = here.generation
        self._cut = here.cut if step is Step.LOAD else None

    def _begin(self, seen: int, sealed: bool) -> None:
        log = self.session.log
        plan = generations.Plan(None, False)
        if not sealed:
            plan = generations.plan_of(log.store, self.name, seen)
        try:
            generations.begin(log.store, self.name, self.keep, self.members, (log.key, log.epoch), seen, plan)
        except (generations.Moved, FencedError):
            return  # another process takes the group back: look again
        what = f"group {self.name!r} goes back to its last cut, because {log.key!r} has a new process"
        self.session._host.report_incident(Incident("group_rolled_back", what))

    def _read_cut(self) -> Loaded | None:
        if self._cut is None:
            return None
        log = self.session.log
        return generations.read_state(log.store, self.name, self._cut, log.key)

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
        from . import rollback

        log, text = self.session.log, f"cut {self._cut} of group {self.name!r}"
        rollback.take_back(log.store, log.key, text, loaded, {"group_generation": self.generation})
        if faults.active:
            faults.hit("group.loaded")
        return True

    # -- a cut

    def steer(self, what: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Do one step of a cut."""
        if what == "release":
            self._release(fields["nonce"])
            return {}
        self._check(fields)
        steps = {"hold": self._hold, "poll": self._poll, "capture": self._capture, "written": self._written}
        return steps[what](fields)

    def _check(self, fields: dict[str, Any]) -> None:
        log = self.session.log
        if fields["generation"] != self.generation or fields["epoch"] != log.epoch:
            raise FencedError(
                f"{log.key!r} is in generation {self.generation} of group {self.name!r} with "
                f"epoch {log.epoch}: a cut "
                f"of generation {fields['generation']} with its epoch {fields['epoch']} cannot "
                f"be taken any more"
            )

    def _hold(self, fields: dict[str, Any]) -> dict[str, Any]:
        alive = port_of(self.session).begun() is not None  # else its coordinator is gone
        if alive and self._held not in ("", fields["nonce"]):
            raise CheckpointError(f"another cut of group {self.name!r} is being taken: one at a time")
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
            raise CheckpointError(f"there is no copy to write for this cut of group {self.name!r}")
        if copy.thread is None:
            work = (copy, fields["blob"])
            copy.thread = threading.Thread(target=self._write, args=work, name="checkpoint cut", daemon=True)
            copy.thread.start()
            return {"done": False}
        if copy.thread.is_alive():
            return {"done": False}
        self._copy = None
        if copy.error is not None:
            raise copy.error
        return {"done": True}

    def _write(self, copy: _Copy, blob: str) -> None:
        session = self.session
        try:
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
        except Exception as error:
            copy.error = error


class _Copy:
    """A member's state, on its way into a cut."""

    def __init__(self, nonce: str, captured: Captured, header: dict[str, Any]) -> None:
        self.nonce, self.captured, self.header = nonce, captured, header
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None


def _capture_apart(session: ActorSession) -> tuple[Captured, dict[str, Any]]:
    """Return the state, and header fields, in memory of its own: a save may be in flight.

    On the actor's thread, between two methods.
    """
    usual, session._capturer = session._capturer, StateCapturer()
    try:
        captured, extra = session._capture_all()
        return captured, {**session._header_fields("cut"), **extra, "calls": session._calls()}
    finally:
        session._capturer = usual


def check_same(expected: Sequence[str], found: Sequence[str], name: str) -> None:
    """Raise `CheckpointMismatchError` unless a group has just these members."""
    from .cuts import missing

    wrong = missing(expected, found)
    if wrong:
        raise CheckpointMismatchError(
            f"group {name!r} was made of {', '.join(map(repr, expected))}, and is given other "
            f"actors now: {wrong}. Give "
            "the same names (or checkpoint_keys), or another name for the group"
        )
