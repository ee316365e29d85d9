"""`crash_everywhere`: crashes an exactly-once actor at every step, without processes, and compares.

A fault point raises `SimulatedCrash`, which nobody catches; the objects of the 'process' are dropped; a new
incarnation opens the same store, and the caller sends its call again. What the actor answered, and what its
state is in the end, must be what they are without a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import actor, engine, faults, values
from .background import Background
from .callers import Call, Caller
from .compare import difference
from .errors import CheckpointError, CheckpointOptionError
from .keys import key_of
from .options import validate
from .session import ActorSession
from .stores.protocol import Store
from .testing import InlineBackground, LocalHost, MemoryStore, crash

_ROOT = b"crash_everywhere"
_MAX_LIVES = 20


class CrashReport(NamedTuple):
    """What `crash_everywhere` has done.

    Attributes
    ----------
    runs : int
        Runs with a crash.
    points : dict of str to int
        Crashes by fault point.
    replies : list
        Of the undisturbed run; an exception stands for itself.
    state : object
        Of the undisturbed run, in the end.
    """

    runs: int
    points: dict[str, int]
    replies: list[Any]
    state: Any


class _Ended(NamedTuple):
    replies: list[Any]
    state: Any


def crash_everywhere(
    cls: type[actor.Checkpointable],
    calls: Sequence[str | tuple[Any, ...]],
    *,
    make: Callable[[], actor.Checkpointable] | None = None,
    options: Mapping[str, object] | None = None,
    store: Callable[[], Store] | None = None,
    twice: bool = True,
    points: Iterable[str] | None = None,
) -> CrashReport:
    """Crash an actor at every fault point over these calls and compare with an undisturbed run.

    Parameters
    ----------
    cls : type
        A `Checkpointable` class; it runs as ``exactly_once`` whether it says so or not.
    calls : sequence
        Each a method name, or a tuple of a method name and its arguments.
    make : callable, optional
        Makes the object. Default: ``cls()``.
    options : mapping, optional
        Class keywords for these runs, such as ``{"every": 3}``. Default: ``every=3``, so that snapshots,
        replay and their meeting are all tried.
    store : callable, optional
        Makes a new, empty store for each run. Default: one in memory.
    twice : bool
        Also crash the incarnation that recovers from a crash, at every point of its recovery.
    points : iterable of str, optional
        Only these of `ftray.checkpoint.faults.POINTS`.

    Returns
    -------
    CrashReport

    Raises
    ------
    AssertionError
        A reply or the state differs, or recovery raised an error; says where the crash was and what differs.
    CheckpointOptionError
        There is nothing to try: no calls, a method that the class has not, an unknown fault point.
    """
    _check(cls, calls)
    runner = _Runner(cls, calls, make or cls, options, store)
    wanted = set(faults.POINTS if points is None else points)
    unknown = wanted - set(faults.POINTS)
    if unknown:
        raise CheckpointOptionError(
            f"unknown fault points {sorted(unknown)}; known: {', '.join(faults.POINTS)}"
        )
    before, values.simulated = values.simulated, {}
    try:
        return _compare_all(runner, wanted, twice)
    finally:
        values.simulated = before


def _check(cls: type, calls: Sequence[str | tuple[Any, ...]]) -> None:
    """Refuse what would compare nothing, or one error with the same error."""
    if not (isinstance(cls, type) and issubclass(cls, actor.Checkpointable)):
        raise CheckpointOptionError(
            f"crash_everywhere takes a Checkpointable class as it is without @ftray.remote, not {cls!r}"
        )
    if not calls:
        raise CheckpointOptionError("crash_everywhere was given no calls: it would try nothing")
    for call in calls:
        name = call if isinstance(call, str) else call[0]
        if not callable(getattr(cls, name, None)):
            raise CheckpointOptionError(f"crash_everywhere: {cls.__name__} has no method {name!r}")


def _compare_all(runner: _Runner, wanted: set[str], twice: bool) -> CrashReport:
    with faults.traced() as hits:
        expected = runner.run([])
    done: dict[str, int] = {}
    for first in _each(hits, wanted):
        runner.compare(expected, [first], done)
    if twice:
        for first, second in _pairs(runner, hits, wanted):
            runner.compare(expected, [first, second], done)
    return CrashReport(sum(done.values()), done, *expected)


_Crash = tuple[str, int]


def _each(hits: Mapping[str, int], wanted: set[str]) -> Iterator[_Crash]:
    for point in faults.POINTS:
        if point in wanted:
            for nth in range(1, hits.get(point, 0) + 1):
                yield point, nth


def _pairs(runner: _Runner, hits: Mapping[str, int], wanted: set[str]) -> Iterator[tuple[_Crash, _Crash]]:
    """The last time each kind of point is reached, then each point of the recovery from there."""
    for point in (
        "once.started",
        "once.ran",
        "once.recorded",
        "once.answered",
        "once.barrier_appended",
        "restore.sealed",
    ):
        if not hits.get(point):
            continue
        first = (point, hits[point])
        recovery = runner.recovery_of(first)
        for second in _each(recovery, wanted):
            yield first, second


class _Runner:
    def __init__(
        self,
        cls: type[actor.Checkpointable],
        calls: Sequence[str | tuple[Any, ...]],
        make: Callable[[], actor.Checkpointable],
        options: Mapping[str, object] | None,
        store: Callable[[], Store] | None,
    ) -> None:
        given = {"every": 3, **(options or {}), "exactly_once": True}
        self._spec = {**(engine.spec_of(cls, given) or {})}
        identity = LocalHost("actor").identity
        self.key = key_of(identity, validate(self._spec).checkpoint_key).text
        self._cls, self._make = cls, make
        self._calls = [(c,) if isinstance(c, str) else tuple(c) for c in calls]
        self._store = store or (lambda: MemoryStore(survives=("process", "power")))

    def compare(self, expected: _Ended, crashes: list[_Crash], done: dict[str, int]) -> None:
        where = ", then ".join(f"{point} (time {nth})" for point, nth in crashes)
        try:
            got = self.run(crashes)
        except CheckpointError as error:
            raise AssertionError(f"crashed at {where}: {type(error).__name__}: {error}") from error
        for index, (want, have) in enumerate(zip(expected.replies, got.replies, strict=True)):
            found = difference(want, have, "reply")
            assert found is None, (
                f"crashed at {where}: call {index} {self._calls[index]}: {found} (undisturbed first)"
            )
        found = difference(expected.state, got.state, "state")
        assert found is None, f"crashed at {where}: {found} (undisturbed first)"
        for point, _ in crashes[-1:]:
            done[point] = done.get(point, 0) + 1

    def recovery_of(self, first: _Crash) -> dict[str, int]:
        """Count what the life after a crash reaches."""
        life = _Life(self, self._store())
        hits: dict[str, int] = {}

        def watch(number: int) -> Any:
            return faults.traced() if number == 2 else _armed(first) if number == 1 else _nothing()

        life.run(watch, hits)
        return hits

    def run(self, crashes: list[_Crash]) -> _Ended:
        """One run: the n-th life crashes at the n-th of `crashes`."""

        def watch(number: int) -> Any:
            return _armed(crashes[number - 1]) if number <= len(crashes) else _nothing()

        return _Life(self, self._store()).run(watch, {})


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _armed(crash_at: _Crash) -> Any:
    return faults.armed(crash_at[0], faults.SimulatedCrash(f"{crash_at[0]} {crash_at[1]}"), crash_at[1])


class _Life:
    """The lives of one actor over one store, until all calls are answered."""

    def __init__(self, runner: _Runner, store: Store) -> None:
        self._runner, self._store = runner, store
        caller = Caller(_ROOT)
        self._unsent = [caller.call(runner.key, *c) for c in runner._calls]
        self._replies: list[Any] = []

    def run(self, watch: Callable[[int], Any], hits: dict[str, int]) -> _Ended:
        for number in range(1, _MAX_LIVES + 1):
            with watch(number) as seen:
                try:
                    ended = self._live(number)
                except faults.SimulatedCrash:
                    ended = None
            if seen is not None:
                hits.update(seen)
            if ended is not None:
                return ended
        raise AssertionError(f"the calls were not answered within {_MAX_LIVES} lives")

    def _live(self, number: int) -> _Ended:
        runner = self._runner
        host = LocalHost("actor", class_name=runner._cls.__name__, incarnation=number)
        instance = runner._make()
        try:
            session = engine.open(instance, host, runner._spec, store=self._store, background=_inline)
            while self._unsent:
                self._replies.append(_answer(host, session, self._unsent[0]))
                self._unsent.pop(0)
            state = _copied(instance)
            crash(session)
            return _Ended(self._replies, state)
        finally:
            _drop(instance)


def _inline(
    name: str, on_timer: Callable[[float], None], on_error: Callable[[BaseException], None]
) -> Background:
    made: Any = InlineBackground(name, on_timer, on_error)
    background: Background = made
    return background


def _answer(host: LocalHost, session: ActorSession, call: Call) -> Any:
    try:
        return host.send(session, call)
    except CheckpointError:
        raise
    except Exception as error:
        return error


def _copied(instance: actor.Checkpointable) -> Any:
    from . import capture

    captured = capture.StateCapturer().capture(instance.save_checkpoint())
    return capture.load([bytearray(b"".join(segment)) for segment in captured.segments])


def _drop(instance: actor.Checkpointable) -> None:
    session = actor.sessions.get(id(instance))
    if session is not None:
        crash(session)
