"""Groups: one consistent cut over several actors, saved and restored as one.

Owns the group as programs see it. Leaves to others: what is asked in which order while a cut is taken
(`cuts`, `taking`), what a member does (`members`), what is stored (`cutfiles`) and who begins a generation
(`generations`), and what is done to a group without its actors (`regroup`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from . import cutfiles, generations, membership, regroup
from .eligible import check_members, check_same, seconds
from .errors import (
    CheckpointError,
    CheckpointKeyInUseError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    FencedError,
)
from .generations import Moved, Plan
from .membership import group_key
from .options import validate
from .snapshots import SnapshotLog, present
from .taking import Taking
from .wire import Wire

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_About = dict[str, Any]
_DYING_S = 5.0  # how long a process that was killed may take to be gone


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


class Group:
    """Several actors whose state is saved, and taken back, as one. Made by `group`."""

    def __init__(self, wire: Wire, name: str, keep: int, timeout_s: float) -> None:
        self._wire, self.name, self._keep, self._timeout_s = wire, name, keep, timeout_s
        self._about: list[_About] = []
        self._log: SnapshotLog | None = None
        self._ended = False
        self.is_new = False
        """Whether the group had no cut before."""

    # -- making

    def _open(self, store: str | None, gone: Sequence[str]) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        self._try(lambda: self._find(store, gone, deadline_s), deadline_s)
        if self.is_new:
            self._take_first_cut(deadline_s)

    def _take_first_cut(self, deadline_s: float) -> None:
        """Several programs may make the group at the same time: one of them takes the cut."""
        while self.is_new:
            try:
                self.save()
                return
            except cutfiles.Busy:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(generations.LONGEST_NAP_S)
            log = self._log_now()
            self.is_new = not present(log.store, log.key).counted

    def _try(self, step: Callable[[], None], deadline_s: float) -> None:
        """Members that have just started take each other back: then it is done once more."""
        while True:
            try:
                return step()
            except (FencedError, Moved):
                if time.monotonic() > deadline_s:
                    raise

    def _find(self, store: str | None, gone: Sequence[str], deadline_s: float) -> None:
        self._about = self._describe(deadline_s)
        self._free(deadline_s)
        check_members(self.name, self._about, store)
        where = self._wire.connect(self._about[0]["store"])
        self._log = SnapshotLog(where, group_key(self.name), self._keep)
        generation = self._settled(deadline_s)
        expected = generations.members_of(where, self.name)
        if generation and not expected:  # who disbanded it did not live to remove it
            where.remove(group_key(self.name))
            generation = 0
        if generation:
            check_same(expected, [*self.members, *gone], self.name)
        elif gone:
            raise CheckpointNotFoundError(f"there is no group {self.name!r} that {gone[0]!r} could leave")
        else:
            generation = self._begin(0, self._living())
        self._join(generation, deadline_s)
        if gone:
            self._go_on_without(gone)
        self.is_new = not present(where, group_key(self.name)).counted

    def _free(self, deadline_s: float) -> None:
        """Who left a group when its coordinator had died, has not heard of it."""
        for i, about in enumerate(self._about):
            if about["group"] in (None, self.name):
                continue
            where = self._wire.connect(about["store"])
            if about["key"] not in generations.members_of(where, about["group"]):
                self._all("leave", {i: {"epoch": about["epoch"]}}, deadline_s)
                about["group"] = None

    def _living(self, leaving: Sequence[int] = (), disbanded: bool = False) -> Plan:
        """The plan of a generation in which the members live on, but those that leave."""
        staying = [about for i, about in enumerate(self._about) if i not in leaving]
        ended = {about["key"]: about["epoch"] - 1 for about in staying}
        return Plan(list(ended), ended=ended, disbanded=disbanded)

    def _begin(self, seen: int, plan: Plan) -> int:
        store = self._log_now().store
        return generations.begin(store, self.name, self._keep, seen, plan, self._wire.end)

    def _settled(self, deadline_s: float) -> int:
        """The number of the generation that is in force."""
        assert self._log is not None
        return generations.settle(self._log.store, self.name, self._keep, self._wire.end, deadline_s)

    def _join(self, generation: int, deadline_s: float, dead: Collection[int] = ()) -> None:
        """Tell members that live on which generation this is; raises `FencedError` for those that do not."""
        log = self._log_now()
        ended = present(log.store, log.key).sealed.get("ended", {})
        alive = {i: about for i, about in enumerate(self._about) if i not in dead}
        stale = [about["key"] for about in alive.values() if about["epoch"] <= ended.get(about["key"], 0)]
        if stale or log.epoch != generation:
            raise FencedError(f"group {self.name!r} was taken back just now ({', '.join(stale)}): try again")
        actors = [about["actor"] for about in self._about]
        fields = {"group": self.name, "keep": self._keep, "generation": generation, "actors": actors}
        self._all("join", {i: {**fields, "epoch": one["epoch"]} for i, one in alive.items()}, deadline_s)
        for about in alive.values():
            about["generation"] = generation

    def _log_now(self) -> SnapshotLog:
        assert self._log is not None
        self._log.join()
        return self._log

    # -- talking to members

    def _all(self, what: str, fields: Mapping[int, Mapping[str, Any]], deadline_s: float) -> dict[int, Any]:
        answers: dict[int, Any] = self._wire.ask(self.name, what, fields, deadline_s)
        return answers

    def _describe(self, deadline_s: float) -> list[_About]:
        everybody = range(len(self._wire.handles))
        return list(self._all("describe", {i: {} for i in everybody}, deadline_s).values())

    def _refresh(self, deadline_s: float) -> SnapshotLog:
        """Members may have been restarted since the group was made, or one may have left it."""
        self._check_there()
        generation = self._settled(deadline_s)
        self._about[:] = self._describe(deadline_s)
        log = self._log_now()
        if log.epoch != generation:
            raise FencedError(f"group {self.name!r} was taken back just now: try again")
        check_same(generations.members_of(log.store, self.name), self.members, self.name)
        if any(about["generation"] != generation for about in self._about):
            self._join(generation, deadline_s)
        return log

    # -- the public part

    @property
    def members(self) -> tuple[str, ...]:
        """Checkpoint keys of the members, in the order given."""
        return tuple(about["key"] for about in self._about)

    @property
    def handles(self) -> tuple[Any, ...]:
        """Handles of the members, in the same order."""
        return tuple(self._wire.handles)

    @property
    def generation(self) -> int:
        """How often the group has begun: 1, and one more each time it was taken back or a member left."""
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
            A member died or could not be captured. The cuts before stand.
        """
        self._wire.check_outside(self.members)
        bound_s = self._bound(timeout_s)
        cutfiles.capture_note(note)
        deadline_s = time.monotonic() + bound_s
        log = self._refresh(deadline_s)
        if generation is not None and log.epoch != generation:
            raise FencedError(
                f"group {self.name!r} is in generation {log.epoch}, not {generation}: it was "
                "taken back meanwhile"
            )
        return Taking(self._wire, self.name, log, self._about, bound_s).run(note)

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
        CheckpointNotFoundError, CheckpointCorruptedError
            There is no such cut, or it is not whole. Nothing was touched.
        CheckpointMismatchError
            The group has other members now. Nothing was touched.
        CheckpointTimeoutError, RayActorError
        """
        self._wire.check_outside(self.members)
        self._check_there()
        deadline_s = time.monotonic() + self._bound(timeout_s)
        log = self._log_now()
        check_same(generations.members_of(log.store, self.name), self.members, self.name)
        generation = regroup.go_back(log.store, self.name, id, self._keep, self._wire.end, deadline_s)
        while True:  # those that answer are of this generation, or of a later one, or have left since
            self._about = self._describe(deadline_s)
            sealed = present(log.store, log.key).sealed
            if not sealed.get("members"):
                raise self._disbanded()
            here = [about for about in self._about if about["key"] in sealed["members"]]
            if all(about["generation"] >= generation for about in here):
                return str(sealed["base"])

    def remove(self, *members: Any, timeout_s: float | None = None) -> None:
        """Take actors out of the group: they go on by themselves. The others stay a group.

        Cuts that have been taken stay; the next ones are without them. A member that is dead for good keeps
        its part of the newest cut, should there be an actor of that name again.

        Parameters
        ----------
        *members : ActorHandle or str
            Handles that the group was made of, or checkpoint keys of members.
        timeout_s : float, optional
            Bound on the whole, in seconds; by default that of the group.

        Raises
        ------
        CheckpointOptionError
            Not a member, or nobody would be left: see `disband`.
        CheckpointTimeoutError, CheckpointSaveError, RayActorError
        """
        leaving = sorted({self._number_of(member) for member in members})
        if not leaving or len(leaving) == len(self._about):
            raise CheckpointOptionError(
                f"remove() is given some of the members of group {self.name!r}, not {len(leaving)} of "
                f"{len(self._about)}; disband() ends the group"
            )
        self._part(leaving, self._bound(timeout_s), disbanded=False)

    def disband(self, *, timeout_s: float | None = None) -> None:
        """End the group: its members go on by themselves, from where they are; its cuts are removed.

        Parameters
        ----------
        timeout_s : float, optional
            Bound on the whole, in seconds; by default that of the group.

        Raises
        ------
        CheckpointTimeoutError, CheckpointSaveError
            A member could not save its state. The group stands.
        """
        self._part(range(len(self._about)), self._bound(timeout_s), disbanded=True)
        log = self._log_now()
        log.store.remove(log.key)
        self._ended = True

    def list(self) -> Sequence[CutInfo]:
        """Return the cuts, oldest first."""
        log = self._log_now()
        here = present(log.store, log.key)
        return [self._info(log, name, name in here.counted) for name in here.listing.snapshots]

    def _info(self, log: SnapshotLog, name: Any, counts: bool) -> CutInfo:
        try:
            cut = cutfiles.read_cut(log.store, log.key, name)
        except (CheckpointError, OSError) as error:
            return CutInfo(name.id, counts, 0.0, (), None, str(error))
        return CutInfo(name.id, counts, cut.header.fields["created_unix_s"], tuple(cut.blobs), cut.note, "")

    def _bound(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)

    def _check_there(self) -> None:
        assert self._log is not None
        if self._ended or not generations.members_of(self._log.store, self.name):
            raise self._disbanded()

    def _disbanded(self) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(f"group {self.name!r} was disbanded")

    # -- leaving

    def _number_of(self, member: Any) -> int:
        for number, about in enumerate(self._about):
            handle = self._wire.handles[number]
            same = hasattr(member, "_actor_id") and member._actor_id == getattr(handle, "_actor_id", None)
            if same or member is handle or member == about["key"]:
                return number
        raise CheckpointOptionError(
            f"{member!r:.100} is no member of group {self.name!r}; members are {', '.join(self.members)}"
        )

    def _part(self, leaving: Sequence[int], bound_s: float, disbanded: bool) -> None:
        self._wire.check_outside(self.members)
        self._check_there()
        deadline_s = time.monotonic() + bound_s
        self._try(lambda: self._part_once(leaving, deadline_s, disbanded), deadline_s)

    def _part_once(self, leaving: Sequence[int], deadline_s: float, disbanded: bool) -> None:
        """Those that leave save what they will begin from; the others' new generation is without them."""
        generation = self._settled(deadline_s)
        check_same(generations.members_of(self._log_now().store, self.name), self.members, self.name)
        dead = self._ask_who_lives(leaving, deadline_s)
        alive = [i for i in leaving if i not in dead]
        self._join(generation, deadline_s, dead)
        fields = {i: {"generation": generation, "epoch": self._about[i]["epoch"]} for i in alive}
        self._all("part", fields, deadline_s)
        for i in dead:
            store, key = self._log_now().store, self._about[i]["key"]
            generations.end_holder(store, key, self._wire.end)  # it is on its way
            regroup.take_out(store, self.name, key)
        self._begin(generation, self._living(leaving, disbanded))  # it is done, whoever dies now
        self._log_now().settle()
        self._leave_all(alive, deadline_s)
        for i in dead:
            membership.forget_unheld(self._log_now().store, self._about[i]["key"])
        self._wire = self._wire.without(leaving)  # the others hear of it when the next cut is taken
        self._about = [about for i, about in enumerate(self._about) if i not in leaving]

    def _ask_who_lives(self, leaving: Sequence[int], deadline_s: float) -> set[int]:
        """Ask all members who they are; the numbers of those that leave and are dead for good."""
        dead, refs = set(), [self._wire.send(i, "describe", {}) for i in range(len(self._about))]
        for i, ref in enumerate(refs):
            try:
                self._about[i] = self._wire.answer_by(self.name, "describe", ref, deadline_s)
            except Exception as error:
                if i not in leaving or not self._wire.is_death(error):
                    raise
                dead.add(i)
        return dead

    def _leave_all(self, leaving: Sequence[int], deadline_s: float) -> None:
        """They leave now or, should they die first, when they open: the generation says so already."""
        for i in leaving:
            try:
                self._all("leave", {i: {"epoch": self._about[i]["epoch"]}}, deadline_s)
            except CheckpointError:
                continue
            except Exception as error:
                if not self._wire.is_death(error):
                    raise

    def _go_on_without(self, gone: Sequence[str]) -> None:
        """Members leave of which there are no handles any more."""
        log, patience_s = self._log_now(), time.monotonic() + _DYING_S
        for key in gone:
            while True:
                try:
                    regroup.take_out(log.store, self.name, key)
                    break
                except CheckpointKeyInUseError:
                    if time.monotonic() > patience_s:
                        raise
                    time.sleep(generations.LONGEST_NAP_S)
        self._begin(log.epoch, self._living())
        self._log_now().settle()
        for key in gone:
            membership.forget_unheld(log.store, key)

    def __repr__(self) -> str:
        return f"Group({self.name!r}, {len(self._wire.handles)} members)"


def group(
    handles: Iterable[Any],
    *,
    name: str,
    store: str | os.PathLike[str] | None = None,
    keep: int = 2,
    timeout_s: float = 60.0,
    gone: Iterable[str] = (),
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
    gone : iterable of str
        Checkpoint keys of members that are dead for good: the group goes on without them; see `Group.remove`.

    Raises
    ------
    CheckpointOptionError, CheckpointMismatchError
        Wrong arguments or actors; the group was made of others.
    CheckpointKeyInUseError
        One of those that are said to be gone lives.
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
    for handle in handles:
        if not hasattr(handle, "_checkpoint_group"):
            raise CheckpointOptionError(f"{handle!r} is not a handle of a Checkpointable actor")
    return open_group(Wire(handles), name, store, keep, timeout_s, gone)


def open_group(
    wire: Wire,
    name: str,
    store: str | os.PathLike[str] | None = None,
    keep: int = 2,
    timeout_s: float = 60.0,
    gone: Iterable[str] = (),
) -> Group:
    """`group`, over whatever reaches the members."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointOptionError(
            f"name={name!r} is not allowed; 1 to 80 letters, digits, '_', '-' and '.'"
        )
    if isinstance(gone, str) or not all(isinstance(key, str) for key in gone):
        raise CheckpointOptionError(f"gone={gone!r} is not allowed; it is a list of checkpoint keys")
    validate({"keep": keep})
    found = Group(wire, name, keep, seconds("timeout_s", timeout_s))
    wire.check_outside(())
    found._open(None if store is None else os.fspath(store), list(gone))
    return found
