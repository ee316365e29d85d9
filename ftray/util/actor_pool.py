"""A pool of actors that share a stream of work.

Owns: which actor does what, and the order of results. Invariants: an actor has at most one call of the pool
under way, unless its result was given up (`ignore_if_timedout`); an actor that is dead gets no more work;
every submitted item is returned, raised or given up exactly once. Not for several threads at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import ftray
from ftray.exceptions import ActorDiedError, RayTaskError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[[ftray.ActorHandle, Any], Any]

_V = TypeVar("_V")


class _Item:
    """Something submitted; under way once an actor was free."""

    __slots__ = ("actor", "fn", "index", "refs", "several", "value")

    def __init__(self, index: int, fn: Call, value: Any) -> None:
        self.index = index
        self.fn = fn
        self.value = value
        self.actor: Any = None
        self.refs: list[ftray.ObjectRef[Any]] = []
        self.several = False

    def start(self, actor: Any) -> None:
        made = self.fn(actor, self.value)
        refs = list(made) if isinstance(made, list | tuple) else [made]
        if not refs or not all(isinstance(ref, ftray.ObjectRef) for ref in refs):
            raise TypeError(
                "the function given to an ActorPool must return the ObjectRef of a call, as in"
                f" `lambda actor, value: actor.method.remote(value)`; it returned {made!r:.200}"
            )
        self.actor, self.refs, self.several = actor, refs, made is not refs[0]
        self.fn = self.value = None  # type: ignore[assignment]

    def get(self) -> Any:
        return ftray.get(self.refs) if self.several else ftray.get(self.refs[0])


def _check_callable(fn: Any) -> None:
    if not callable(fn):
        raise TypeError(
            "an ActorPool calls a function of an actor and a value, such as"
            f" `lambda actor, value: actor.method.remote(value)`; {fn!r:.100} cannot be called"
        )


class ActorPool(Generic[_V]):
    """Spread calls over a fixed set of actors, one at a time to each.

    Parameters
    ----------
    actors : list of ActorHandle
        The actors; none may be there twice.

    Raises
    ------
    TypeError, ValueError
        Something that is no actor handle, or one given twice.
    """

    def __init__(self, actors: Iterable[ftray.ActorHandle]) -> None:
        self._idle: list[Any] = []
        self._started: dict[int, _Item] = {}
        self._pending: deque[_Item] = deque()
        self._next_index = 0
        self._last_death: BaseException | None = None
        if not isinstance(actors, Iterable):
            raise TypeError(f"an ActorPool takes a list of actor handles, not {actors!r:.100}")
        for actor in actors:
            self.push(actor)

    # --- submitting -----------------------------------------------------------------------------------------

    def submit(self, fn: Callable[[Any, _V], Any], value: _V) -> None:
        """Have ``fn(actor, value)`` called with an actor that is free, now or later.

        Parameters
        ----------
        fn : callable
            Returns the ref (or the list of refs) of a call to the actor.
        value : object
            Its second argument.

        Raises
        ------
        TypeError
            `fn` cannot be called, or returned something else.
        """
        _check_callable(fn)
        item = _Item(self._next_index, fn, value)
        self._next_index += 1
        self._pending.append(item)
        self._start_pending()

    def _start_pending(self) -> None:
        while self._pending and self._idle:
            item, actor = self._pending.popleft(), self._idle.pop()
            try:
                item.start(actor)
            except BaseException:
                self._idle.append(actor)  # it has nothing to do with what went wrong
                raise
            self._started[item.index] = item

    def map(self, fn: Callable[[Any, _V], Any], values: Iterable[_V]) -> Iterator[Any]:
        """Submit every value and return an iterator over the results, in the order of the values.

        What was submitted before, and not fetched, is given up.
        """
        self._submit_all(fn, values)
        return self._results(self.get_next)

    def map_unordered(self, fn: Callable[[Any, _V], Any], values: Iterable[_V]) -> Iterator[Any]:
        """As `map`; results come as they are there."""
        self._submit_all(fn, values)
        return self._results(self.get_next_unordered)

    def _submit_all(self, fn: Callable[[Any, _V], Any], values: Iterable[_V]) -> None:
        _check_callable(fn)
        if not isinstance(values, Iterable):
            raise TypeError(f"the values of an ActorPool's map must be iterable, not {values!r:.100}")
        self._pending.clear()
        for index in list(self._started):
            self._release(self._started.pop(index))
        for value in values:
            self.submit(fn, value)

    def _results(self, get_next: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield get_next()

    # --- results --------------------------------------------------------------------------------------------

    def has_next(self) -> bool:
        """Whether something was submitted whose result was not fetched."""
        return bool(self._started or self._pending)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return the result of what was submitted first, waiting for it.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits without bound.
        ignore_if_timedout : bool, default False
            Give the result up when it is not there in time: its actor gets other work, behind that call.

        Raises
        ------
        StopIteration
            There is nothing to fetch.
        TimeoutError
            The result was not there in time.
        ActorDiedError
            The actor died (the pool goes on without it), or no actor is left.
        """
        return self._next(ordered=True, timeout=timeout, give_up=ignore_if_timedout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return the result that is there first; arguments and errors as for `get_next`."""
        return self._next(ordered=False, timeout=timeout, give_up=ignore_if_timedout)

    def _next(self, *, ordered: bool, timeout: float | None, give_up: bool) -> Any:
        if not self.has_next():
            raise StopIteration("the pool has no results to fetch: submit() something first")
        if not self._started:
            self._fail_pending()
        item = self._wait(ordered, timeout)
        if item is None:
            text = f"no result of the pool was there within {timeout} s"
            if give_up:
                item = self._started.pop(min(self._started))
                self._release(item)
                text += f"; the result of {item.refs} is given up"
            raise TimeoutError(text)
        del self._started[item.index]
        return self._result(item)

    def _fail_pending(self) -> None:
        """Take out what cannot be done without an actor, so that a loop over results ends."""
        self._pending.popleft()
        raise ActorDiedError(
            "no actor is left in the pool for what was submitted: push() one"
        ) from self._last_death

    def _wait(self, ordered: bool, timeout: float | None) -> _Item | None:
        """Return what is done; None past the timeout."""
        if ordered:
            item = self._started[min(self._started)]
            ready, _rest = ftray.wait(item.refs, num_returns=len(item.refs), timeout=timeout)
            return item if len(ready) == len(item.refs) else None
        # One return of a call is there when all are.
        items = {item.refs[0]: item for item in self._started.values()}
        ready, _rest = ftray.wait(list(items), timeout=timeout)
        return items[ready[0]] if ready else None

    def _result(self, item: _Item) -> Any:
        try:
            value = item.get()
        except ActorDiedError as error:
            # A method may itself raise what it was told of another actor's death.
            if isinstance(error, RayTaskError) or error.actor_id != item.actor._actor_id.hex():
                self._release(item)
            else:
                self._last_death = error
                self._start_pending()
            raise
        except BaseException:
            self._release(item)
            raise
        self._release(item)
        return value

    def _release(self, item: _Item) -> None:
        self._idle.append(item.actor)
        self._start_pending()

    # --- actors ---------------------------------------------------------------------------------------------

    def has_free(self) -> bool:
        """Whether an actor has nothing to do."""
        return bool(self._idle) and not self._pending

    def pop_idle(self) -> Any:
        """Take an actor that has nothing to do out of the pool; None when there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: ftray.ActorHandle) -> None:
        """Add an actor.

        Raises
        ------
        TypeError
            It is no actor handle.
        ValueError
            It is in the pool already.
        """
        if not isinstance(actor, ftray.ActorHandle):
            raise TypeError(
                f"an ActorPool consists of actor handles, not {type(actor).__name__}: {actor!r:.100}"
            )
        if actor in self._idle or any(actor == item.actor for item in self._started.values()):
            raise ValueError(f"{actor!r} is in the pool already")
        self._idle.append(actor)
        self._start_pending()
