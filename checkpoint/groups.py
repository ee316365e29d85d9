"""Groups: one consistent cut over several actors, saved and restored as one.

Owns talking to the members while a cut is taken (`cuts` decides what is asked next) and who may be a member.
Leaves to others: what a member does (`members`), what is stored and who begins a generation (`generations`).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from . import actor, faults, generations
from .cuts import HOLD, WRITTEN, Ask, Cut, Finish, Nap, Publish
from .errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    CheckpointTimeoutError,
    FencedError,
)
from .members import check_same
from .membership import group_key
from .options import validate
from .snapshots import SnapshotLog, boot_id, present
from .stores import connect, resolve_url

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")


class CutInfo(NamedTuple):
    """One cut of a group.

    Attributes
    ----------
    id : str
    counts : bool
        False for one that the group was taken back behind.
    created_unix_s : float
    members : tuple of str
        Checkpoint keys.
    note : object
        What `Group.save` was given.
    error : str
        Why the manifest does not verify, else "".
    """

    id: str
    counts: bool
    created_unix_s: float
    members: tuple[str, ...]
    note: Any
    error: str


def _refuse(what: str, why: str) -> BaseException:
    from ftray.exceptions import NotSupportedError

    return NotSupportedError(f"{what} is not supported by ftray.checkpoint.group: {why}")


class Group:
    """Several actors whose state is saved, and taken back, as one. Made by `group`."""

    def __init__(self, handles: Sequence[Any], name: str, keep: int, timeout_s: float) -> None:
        self._handles, self.name, self._keep, self._timeout_s = list(handles), name, keep, timeout_s
        self._about: list[dict[str, Any]] = []
        self._log: SnapshotLog | None = None
        self.is_new = False
        """Whether the group had no cut before."""

    # -- making

    def _open(self, store: str | None) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            try:
                self._find(store, deadline_s)
                break
            except (FencedError, generations.Moved):  # members that have just started take each other back
                if time.monotonic() > deadline_s:
                    raise
        if self.is_new:
            self.save()

    def _find(self, store: str | None, deadline_s: float) -> None:
        self._about = self._describe(deadline_s)
        _check_members(self.name, self._about, store)
        where = connect(self._about[0]["store"])
        self._log = SnapshotLog(where, group_key(self.name), self._keep)
        keys = [about["key"] for about in self._about]
        here = present(self._log.store, self._log.key)
        if here.counted:
            newest = generations.read_cut(self._log.store, self._log.key, here.counted[-1])
            check_same(list(newest.blobs), keys, self.name)
        if not here.listing.newest_epoch:
            epochs = {about["key"]: about["epoch"] for about in self._about}
            generations.found(self._log.store, self.name, self._keep, epochs)
        self._join(deadline_s)
        self.is_new = not here.counted

    def _join(self, deadline_s: float) -> None:
        fields = {
            "group": self.name,
            "members": [about["key"] for about in self._about],
            "keep": self._keep,
            "generation": self._log_now().epoch,
        }
        self._all("join", [{**fields, "epoch": about["epoch"]} for about in self._about], deadline_s)

    def _log_now(self) -> SnapshotLog:
        assert self._log is not None
        self._log.join()
        return self._log

    # -- talking to members

    def _call(self, member: int, what: str, fields: Mapping[str, Any]) -> Any:
        return self._handles[member]._checkpoint_group.remote(what, dict(fields))

    def _all(self, what: str, fields: Sequence[Mapping[str, Any]], deadline_s: float) -> list[dict[str, Any]]:
        import ftray

        refs = [self._call(i, what, given) for i, given in enumerate(fields)]
        try:
            answers: list[dict[str, Any]] = ftray.get(refs, timeout=max(0.0, deadline_s - time.monotonic()))
        except ftray.exceptions.GetTimeoutError as error:
            raise CheckpointTimeoutError(
                f"group {self.name!r}: not every member was free in time for its step {what!r}. "
                f"End methods that wait, "
                "or allow more time with timeout_s"
            ) from error
        return answers

    def _describe(self, deadline_s: float) -> list[dict[str, Any]]:
        return self._all("describe", [{}] * len(self._handles), deadline_s)

    # -- the public part

    @property
    def members(self) -> tuple[str, ...]:
        """Checkpoint keys of the members, in the order given."""
        return tuple(about["key"] for about in self._about)

    @property
    def generation(self) -> int:
        """How often the group has begun: 1, and one more each time it was taken back."""
        return self._log_now().epoch

    def save(
        self, note: object = None, *, timeout_s: float | None = None, generation: int | None = None
    ) -> str:
        """Take a cut and return its id once it is durable.

        While it is taken, calls from outside of the group wait in the members' queues; calls of members to
        members go on until none is under way. Then all members copy their states, and go on; the copies are
        written beside.

        Parameters
        ----------
        note : object, optional
            A small value that is kept with the cut, such as how far a program has come; see `list`.
        timeout_s : float, optional
            Bound on the whole, in seconds; by default that of the group. Nobody is held for longer.
        generation : int, optional
            Only if the group is still in this generation.

        Raises
        ------
        FencedError
            The group is in another generation: it was taken back meanwhile.
        CheckpointTimeoutError
            Members never came to rest: methods that run for long or wait for something from outside of the
            group (also for a task, which counts as outside), or members that call each other for ever.
        CheckpointError, RayActorError
            A member died or could not be captured. No cut has come into being; the ones before stand.
        """
        self._refuse_inside()
        bound_s = self._timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)
        generations.capture_note(note)
        log = self._log_now()
        if generation is not None and log.epoch != generation:
            raise FencedError(
                f"group {self.name!r} is in generation {log.epoch}, not {generation}: it was "
                f"taken back meanwhile"
            )
        return _Taking(self, log, bound_s).run(note)

    def restore(self, id: str | None = None, *, timeout_s: float | None = None) -> str:
        """Take all members back to a cut: end their processes, and let them begin from it.

        Parameters
        ----------
        id : str, optional
            Of `list`; the newest by default. Newer cuts do not count any more.
        timeout_s : float, optional
            Bound on the whole, in seconds; by default that of the group.

        Returns
        -------
        str
            The cut that every member has begun from; they answer calls again.

        Raises
        ------
        CheckpointNotFoundError, CheckpointCorruptedError, CheckpointTimeoutError, RayActorError
        """
        self._refuse_inside()
        bound_s = self._timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)
        deadline_s = time.monotonic() + bound_s
        log = self._log_now()
        here = present(log.store, log.key)
        counted = [name.id for name in here.counted]
        if not counted or (id is not None and id not in counted):
            raise CheckpointNotFoundError(
                f"group {self.name!r} has no cut {id or 'at all'} that counts; there are: "
                f"{', '.join(counted) or 'none'}"
            )
        generation = self._begin(generations.Plan(id, True), deadline_s)
        while True:  # those that answer are of this generation, or of a later one
            self._about = self._describe(deadline_s)
            if all(about["generation"] >= generation for about in self._about):
                return str(present(log.store, log.key).sealed["base"])

    def _begin(self, plan: generations.Plan, deadline_s: float) -> int:
        """Begin a generation, also when a member that crashed begins one at the same time."""
        while True:
            log = self._log_now()
            try:
                return generations.begin(
                    log.store, self.name, self._keep, self.members, None, log.epoch, plan
                )
            except (generations.Moved, FencedError):
                if time.monotonic() > deadline_s:
                    raise

    def list(self) -> Sequence[CutInfo]:
        """Return the cuts, oldest first."""
        log = self._log_now()
        here = present(log.store, log.key)
        return [self._info(log, name, name in here.counted) for name in here.listing.snapshots]

    def _info(self, log: SnapshotLog, name: Any, counts: bool) -> CutInfo:
        try:
            cut = generations.read_cut(log.store, log.key, name)
        except (CheckpointError, OSError) as error:
            return CutInfo(name.id, counts, 0.0, (), None, str(error))
        return CutInfo(name.id, counts, cut.header.fields["created_unix_s"], tuple(cut.blobs), cut.note, "")

    def _refuse_inside(self) -> None:
        for session in actor.sessions.values():
            if not hasattr(session._host, "group_port"):
                continue  # not the actor that this process is
            if session.exactly_once is not None:
                raise _refuse("a cut that an exactly-once actor takes", "use a plain actor, or the driver")
            if session.log.key in self.members:
                raise _refuse("a cut that a member takes", "use the driver, or an actor outside of the group")

    def __repr__(self) -> str:
        return f"Group({self.name!r}, {len(self._handles)} members)"


class _Taking:
    """One cut being taken."""

    def __init__(self, group: Group, log: SnapshotLog, timeout_s: float) -> None:
        self._group, self._log, self._timeout_s = group, log, timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._nonce = os.urandom(8).hex()
        self._about = group._about
        self._machine = Cut(len(self._about))
        self._open: dict[Any, Ask] = {}
        self._blobs = {
            about["key"]: f"cut-{log.epoch}-{self._nonce}-{i}" for i, about in enumerate(self._about)
        }
        self._id = ""
        self._over = False

    def run(self, note: object) -> str:
        self._refresh()
        commands = list(self._machine.start())
        try:
            while True:
                while commands:
                    command = commands.pop(0)
                    if isinstance(command, Finish):
                        return self._end(command)
                    commands += self._obey(command, note)
                commands += self._await()
        except BaseException:
            self._release_all()
            raise

    def _refresh(self) -> None:
        """Members may have been restarted since the group was made."""
        self._about[:] = self._group._describe(self._deadline_s)
        old = [about["key"] for about in self._about if about["generation"] != self._log.epoch]
        if old:
            raise FencedError(
                f"group {self._group.name!r} was taken back just now ({', '.join(old)}): save again"
            )

    def _end(self, command: Finish) -> str:
        if command.error is not None:
            raise command.error
        generations.retire_cuts(self._log)
        return self._id

    def _obey(self, command: Any, note: object) -> Sequence[Any]:
        if isinstance(command, Ask):
            return self._ask(command)
        if isinstance(command, Nap):
            time.sleep(command.seconds)
            return self._machine.rested()
        assert isinstance(command, Publish)
        try:
            self._id = generations.save_cut(self._log, self._group.name, self._blobs, note).id
        except Exception as error:
            return self._machine.failed(None, error)
        return self._machine.published()

    def _ask(self, ask: Ask) -> Sequence[Any]:
        about = self._about[ask.member]
        fields: dict[str, Any] = {
            "nonce": self._nonce,
            "generation": self._log.epoch,
            "epoch": about["epoch"],
        }
        if ask.what == HOLD:
            fields["workers"] = [one["worker"] for one in self._about]
            fields["actors"] = [one["actor"] for one in self._about]
            fields["timeout_s"] = max(0.001, self._deadline_s - time.monotonic())
        elif ask.what == WRITTEN:
            fields["blob"] = self._blobs[about["key"]]
        try:
            self._open[self._group._call(ask.member, ask.what, fields)] = ask
        except Exception as error:
            return self._machine.failed(ask, error)
        return []

    def _await(self) -> list[Any]:
        import ftray

        left_s = self._deadline_s - time.monotonic()
        ready = ftray.wait(list(self._open), num_returns=1, timeout=max(0.0, left_s))[0] if self._open else []
        if not ready:
            return self._late()
        commands: list[Any] = []
        for ref in ready:
            ask = self._open.pop(ref)
            try:
                answer = ftray.get(ref)
            except Exception as error:
                commands += self._machine.failed(ask, error)
            else:
                if faults.active:
                    faults.hit(f"group.answered.{ask.what}")
                commands += self._machine.answered(ask, answer)
        return commands

    def _late(self) -> list[Any]:
        phase, waits = self._machine.phase.value, sorted({ask.member for ask in self._open.values()})
        error = CheckpointTimeoutError(
            f"group {self._group.name!r}: no cut within {self._timeout_s} s; it was {phase}, "
            f"after {self._machine.waves} "
            f"rounds, and waited for "
            f"{', '.join(self._about[i]['key'] for i in waits) or 'nobody'}. Members must come to "
            "rest: end methods that wait for something outside of the group, and calls that go round for ever"
        )
        if self._over:  # they do not even answer that they go on: their own clocks make them
            raise error
        self._over, self._open = True, {}
        self._deadline_s = time.monotonic() + min(1.0, self._timeout_s)
        return list(self._machine.failed(None, error))

    def _release_all(self) -> None:
        """Nobody waits any more. A member that cannot be asked is dead, or its clock makes it go on."""
        for i in range(len(self._about)):
            with contextlib.suppress(Exception):
                self._group._call(i, "release", {"nonce": self._nonce})


def _check_members(name: str, about: Sequence[Mapping[str, Any]], store: str | None) -> None:
    first = about[0]
    keys = [one["key"] for one in about]
    if len(set(keys)) != len(keys):
        raise CheckpointOptionError(
            f"group {name!r}: an actor was given twice, or two share a checkpoint key"
        )
    if store is not None and resolve_url(store) != first["store"]:
        raise CheckpointOptionError(
            f"group {name!r}: store={store!r} was given, and {keys[0]!r} keeps its state in "
            f"{first['store']}: a cut is "
            "kept where its members' states are"
        )
    for one in about:
        _check_member(name, one, first)


def _check_member(name: str, one: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    key = one["key"]
    if one["group"] not in (None, name):
        raise CheckpointOptionError(
            f"{key!r} is a member of group {one['group']!r}: an actor is in one group only"
        )
    if one["store"] != first["store"]:
        raise CheckpointOptionError(
            f"{key!r} is in store {one['store']}, {first['key']!r} in {first['store']}"
        )
    if (one["machine"], one["boot"]) != (os.uname().nodename, boot_id()):
        raise _refuse(
            f"a member on another machine ({key!r} is on {one['machine']})",
            "files that are copied between machines are not one store. Keep the members on one machine "
            "(NodeAffinitySchedulingStrategy)",
        )
    if not one["serial"]:
        raise _refuse(
            f"{key!r}, an async actor or one with max_concurrency > 1,", "members run one call at a time"
        )
    if one["exactly_once"] != first["exactly_once"]:
        raise _refuse(
            "a group of exactly-once and other members",
            "a crash takes the others back, and exactly-once members never go back by themselves",
        )
    if one["max_restarts"] != -1:
        raise CheckpointOptionError(
            f"{key!r} has max_restarts={one['max_restarts']}: members need max_restarts=-1, "
            f"since going back restarts all"
        )
    if one["restore"] != "auto":
        raise CheckpointOptionError(f"{key!r} has restore={one['restore']!r}: members need restore='auto'")


def seconds(name: str, value: Any) -> float:
    """Check a number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CheckpointOptionError(
            f"{name}={value!r} is not allowed; {name} is a positive number of seconds"
        )
    return float(value)


def group(
    handles: Iterable[Any],
    *,
    name: str,
    store: str | os.PathLike[str] | None = None,
    keep: int = 2,
    timeout_s: float = 60.0,
) -> Group:
    """Make a group of actors that are saved, and taken back, as one; or find the one of that name again.

    A group without a cut takes its first one here.

    Parameters
    ----------
    handles : iterable of ActorHandle
        `Checkpointable` actors with one store, ``max_restarts=-1``, one call at a time; all of them
        exactly-once or none.
    name : str
        1 to 80 letters, digits, ``_``, ``-``, ``.``; the group is found again by it in the members' store.
    store : str or path, optional
        Checked to be the members' store, which is where cuts are kept.
    keep : int
        Newest cuts to keep, at least 2.
    timeout_s : float
        Bound on `Group.save` and `Group.restore`, in seconds.

    Raises
    ------
    CheckpointOptionError, CheckpointMismatchError
        Wrong arguments or actors; the group was made of others.
    NotSupportedError
        Members on several machines, concurrent or async ones, mixed modes, members that save their own group.

    Notes
    -----
    Without exactly-once: any new process of a member, for whatever reason, takes the whole group back to its
    last cut before that process answers its first call; effects since are lost in all members alike. With
    exactly-once members a crash takes nobody back, and `Group.restore` begins a new history in each.
    """
    handles = list(handles)
    if not handles:
        raise CheckpointOptionError("group([]): a group has at least one member")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointOptionError(
            f"name={name!r} is not allowed; 1 to 80 letters, digits, '_', '-' and '.'"
        )
    validate({"keep": keep})
    for handle in handles:
        if not hasattr(handle, "_checkpoint_group"):
            raise CheckpointOptionError(f"{handle!r} is not a handle of a Checkpointable actor")
    found = Group(handles, name, keep, seconds("timeout_s", timeout_s))
    found._refuse_inside()
    _check_not_self(handles)
    found._open(None if store is None else os.fspath(store))
    return found


def _check_not_self(handles: Sequence[Any]) -> None:
    """A member that asks itself would wait for its own end."""
    for session in actor.sessions.values():
        port = getattr(session._host, "group_port", None)
        own = port().describe()["actor"].hex() if port is not None else ""
        if any(handle._actor_id.hex() == own for handle in handles):
            raise _refuse("a cut that a member takes", "use the driver, or an actor outside of the group")
