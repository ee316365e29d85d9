"""Methods of exactly-once actors on Ray that wait for each other (rule R42): found in a table that Ray keeps.

A method that has waited for long writes down, again and again (it *polls*), for calls to which actors it
waits, and follows what those have written. There is nobody in the middle: each that waits looks by itself.

Owns: this actor's row of the table, and the circle that it is confirming. Invariants: a circle is reported
only when each of its members has polled the very same wait `CONFIRMATIONS` times after all of its rows had
been seen, so that all of them waited at one instant; it is reported to its first member, in the order of
their ids, whose wait is over by that. (The first of all actors that wait for each other is the first of its
own circle: somebody hears of it.) A member that has answers which are not durable yet confirms nothing.
Leaves to others: who waits for how long before the first poll (``ftray/_long_waits.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ftray.exceptions import GetTimeoutError

CONFIRMATIONS = 3
MOST_LOOKED_AT = 1000
_NAMESPACE = b"ftray-waits"


class Row(NamedTuple):
    """A wait of one incarnation, as its last poll described it."""

    process: str
    number: int
    targets: tuple[str, ...]
    quiet_polls: int
    title: str
    method: str

    def same(self) -> tuple[object, ...]:
        """What stays as long as it is the same wait."""
        return self.process, self.number, self.targets


class Table(Protocol):
    """Rows by the ids of actors, for all processes."""

    def get(self, actor: str) -> bytes | None: ...
    def put(self, actor: str, row: bytes) -> None: ...
    def remove(self, actor: str) -> None: ...


class Waits:
    """The long waits of one incarnation. Pure but for the table.

    Parameters
    ----------
    actor, process : str
        Ids of the actor, and of its process.
    title : str
        What people call the actor.
    table : Table
    """

    def __init__(self, actor: str, process: str, title: str, table: Table) -> None:
        self._actor, self._process, self._title, self._table = actor, process, title, table
        self._own: Row | None = None
        self._seen: dict[str, Row] = {}

    def polled(
        self, number: int, method: str, targets: Sequence[str], quiet: bool
    ) -> list[tuple[str, Row]] | None:
        """A method still waits; see `ftray._node.waits.WaitTable.polled`.

        Returns
        -------
        list or None
            Actors and waits of a circle, this one first; its wait has to end with an error.
        """
        row = Row(self._process, number, tuple(sorted(targets)), int(quiet), self._title, method)
        if self._own is not None and self._own.same() == row.same():
            row = row._replace(quiet_polls=self._own.quiet_polls + quiet)
        self._own = row
        self._table.put(self._actor, json.dumps(row).encode())
        circle = self._circle()
        if {a: r.same() for a, r in circle.items()} != {a: r.same() for a, r in self._seen.items()}:
            self._seen = circle  # an edge is new: all are to be confirmed anew
            return None
        if any(r.quiet_polls < self._seen[a].quiet_polls + CONFIRMATIONS for a, r in circle.items()):
            return None
        if not circle or min(circle) != self._actor:
            return None
        self.over()
        return list(circle.items())

    def over(self) -> None:
        """The wait has ended."""
        if self._own is not None:
            self._own, self._seen = None, {}
            self._table.remove(self._actor)

    def _circle(self) -> dict[str, Row]:
        """The shortest way from this actor along the waits back to itself; empty if there is none."""
        assert self._own is not None
        rows = {self._actor: self._own}
        ways: dict[str, str] = {}
        at = [self._actor]
        while at and len(rows) < MOST_LOOKED_AT:
            following = []
            for waiting in at:
                for target in rows[waiting].targets:
                    if target == self._actor:
                        return self._way(ways, waiting, rows)
                    if target in ways:
                        continue
                    row = _read(self._table.get(target))
                    if row is not None:
                        rows[target], ways[target] = row, waiting
                        following.append(target)
            at = following
        return {}

    def _way(self, ways: dict[str, str], last: str, rows: dict[str, Row]) -> dict[str, Row]:
        way = [last]
        while way[-1] != self._actor:
            way.append(ways[way[-1]])
        return {actor: rows[actor] for actor in reversed(way)}


def _read(data: bytes | None) -> Row | None:
    if data is None:
        return None
    process, number, targets, quiet_polls, title, method = json.loads(data)
    return Row(process, number, tuple(targets), quiet_polls, title, method)


class _KeyValueStore:
    """Ray's internal one: it survives processes."""

    def get(self, actor: str) -> bytes | None:
        from ray.experimental.internal_kv import _internal_kv_get

        found: bytes | None = _internal_kv_get(bytes.fromhex(actor), namespace=_NAMESPACE)
        return found

    def put(self, actor: str, row: bytes) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(bytes.fromhex(actor), row, overwrite=True, namespace=_NAMESPACE)

    def remove(self, actor: str) -> None:
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(bytes.fromhex(actor), namespace=_NAMESPACE)


_of_process: Waits | None = None


def serve(actor: bytes, process: bytes, class_name: str, name: str, restarted: bool) -> None:
    """This process is an incarnation of an exactly-once actor."""
    global _of_process
    table = _KeyValueStore()
    title = f"{class_name} {repr(name) if name else actor.hex()}"
    if restarted:  # the one before may have died while it waited
        table.remove(actor.hex())
    _of_process = Waits(actor.hex(), process.hex(), title, table)


def actor_waits(
    number: int, inside: str, targets: Sequence[bytes], quiet: bool
) -> list[dict[str, str]] | None:
    """A method of this process waits for long, or does so no more (0).

    Returns
    -------
    list of dict or None
        Actors and methods that wait for each other in a circle, the caller's first.
    """
    if _of_process is None:
        raise ValueError("actor_waits is for the processes of exactly-once actors")
    if not number:
        _of_process.over()
        return None
    circle = _of_process.polled(number, inside, [target.hex() for target in targets], quiet)
    if circle is None:
        return None
    return [{"actor_id": actor, "title": row.title, "method": row.method} for actor, row in circle]


def watch_gets(patient: Callable[[Callable[[float | None], Any], list[Any], float | None], Any]) -> None:
    """Have ``ray.get`` of this process wait as `patient` does: plain Ray's own is not asked about circles.

    Parameters
    ----------
    patient : callable
        ``patient(attempt, refs, timeout)``: waits for `refs` by ``attempt(seconds)``, which raises ftray's
        `GetTimeoutError`.
    """
    import ray

    worker: Any = ray._private.worker.global_worker
    plain = worker.get_objects

    def get_objects(object_refs: Any, timeout: float | None = None, *args: Any, **kwargs: Any) -> Any:
        expired: list[BaseException] = []

        def attempt(left_s: float | None) -> Any:
            try:
                return plain(object_refs, left_s, *args, **kwargs)
            except ray.exceptions.GetTimeoutError as error:
                expired.append(error)
            raise GetTimeoutError()

        if timeout is not None and timeout < 0:  # Ray's way to say "for ever"
            timeout = None
        try:
            return patient(attempt, list(object_refs), timeout)
        except GetTimeoutError:
            if not expired:
                raise
        raise expired[-1]

    worker.get_objects = get_objects
