"""Refs and generators of a Ray cluster as objects of ftray's classes.

Owns: the wrappers. Invariants: a wrapper holds one of Ray's refs and is pickled as one, so that Ray counts
it; it is a `ftray.ObjectRef` that the core knows nothing of. A top-level argument of a call is Ray's own ref
(`unwrapped`), so that Ray waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NoReturn

import ray

from ftray import _core
from ftray._core.pickler import note_ref
from ftray._ids import TaskID
from ftray._ray.errors import converted
from ftray.exceptions import NotSupportedError, RaySystemError, SerializationError

_replying = threading.local()


@contextmanager
def not_kept(name: str) -> Iterator[None]:
    """What is pickled inside is kept as the reply of `name`: it must not have refs."""
    _replying.name = name
    try:
        yield
    finally:
        _replying.name = None


def check_kept() -> None:
    """Refuse to pickle a ref where it is to be kept."""
    name = getattr(_replying, "name", None)
    if name is not None:
        raise TypeError(
            f"{name} returned something that contains an ObjectRef: an exactly-once actor keeps its replies,"
            " and a ref does not outlive its owner. Return the value itself"
        )


def note(ref: Any) -> None:
    """What is about to be pickled is a ref, or a handle: whoever pickles may have to know."""
    check_kept()
    note_ref(ref)


def _settle(out: Future[Any], done: Any) -> None:
    """Pass a result on."""
    if not out.set_running_or_notify_cancel():
        return
    error = done.exception()
    if error is None:
        out.set_result(adopted(done.result()))
    else:
        out.set_exception(converted(error))


class RayObjectRef(_core.ObjectRef[Any]):
    """A ref whose value is on a Ray cluster."""

    _ref: Any
    _call: tuple[Any, bytes, str] | None = None
    """Of a call to an exactly-once actor: Ray's handle, the call's head, and how Ray calls the method."""

    def __init__(self, ref: Any) -> None:
        self._ref = ref

    def _engine(self) -> Any:
        """Return what `get`, `wait` and `cancel` of this ref are done by."""
        from ftray._ray.engine import ENGINE

        return ENGINE

    def binary(self) -> bytes:
        """Return the 28 bytes of the object's id."""
        raw: bytes = self._ref.binary()
        return raw

    def hex(self) -> str:
        """Return the object's id in hexadecimal."""
        return self.binary().hex()

    def task_id(self) -> TaskID:
        """Return the id of the task that makes the object, or of the one that put it."""
        return TaskID(self._ref.task_id().binary())

    def is_nil(self) -> bool:
        return False

    def __await__(self) -> Any:
        guard = _core.the_guard()
        if guard is not None:
            return guard.awaited(self).__await__()
        return self._plain_await()

    def _plain_await(self) -> Any:
        return self._value().__await__()

    async def _value(self) -> Any:
        try:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return self._without_a_loop()
            return adopted(await self._ref)
        except Exception as error:
            failure = converted(error)
        raise failure

    def _without_a_loop(self) -> Any:
        """Return the value if it is there; nobody could wait for it."""
        if ray.wait([self._ref], timeout=0)[0]:
            return adopted(ray.get(self._ref))
        raise RuntimeError(
            "an ObjectRef can be awaited where an asyncio event loop runs; elsewhere use ftray.get(ref)"
        )

    def future(self) -> Future[Any]:
        """Return a `concurrent.futures.Future` of the value; cancelling it ends the waiting, not the task."""
        guard = _core.the_guard()
        if guard is not None:
            guard.refuse("ref.future()")
        out: Future[Any] = Future()
        self._ref.future().add_done_callback(lambda done: _settle(out, done))
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RayObjectRef) and bool(self._ref == other._ref)

    def __hash__(self) -> int:
        return hash(self._ref)

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        note(self)
        return RayObjectRef, (self._ref,)


class RayObjectRefGenerator(_core.ObjectRefGenerator[Any]):
    """The refs that a generator task on a Ray cluster yields."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    _engine = RayObjectRef._engine

    def __next__(self) -> RayObjectRef:
        if self._generator is None:
            raise StopIteration
        return RayObjectRef(next(self._generator))

    async def __anext__(self) -> RayObjectRef:
        if self._generator is None:
            raise StopAsyncIteration
        return RayObjectRef(await self._generator.__anext__())

    def _open(self) -> Any:
        if self._generator is None:
            raise ValueError("the generator is closed")
        return self._generator

    def completed(self) -> RayObjectRef:
        """Return a ref that becomes ready when the task ends."""
        return RayObjectRef(self._open().completed())

    @property
    def _generator_ref(self) -> RayObjectRef:
        return self.completed()

    def next_ready(self) -> bool:
        """Whether ``next()`` would return a ref at once."""
        return self._generator is not None and bool(self._generator.next_ready())

    def is_finished(self) -> bool:
        """Whether the task has ended and every ref was taken."""
        return self._generator is None or bool(self._generator.is_finished())

    def task_id(self) -> TaskID:
        """Return the id of the task that yields."""
        return self.completed().task_id()

    def close(self) -> None:
        """Take no more: what was not taken is freed, and the task is cancelled."""
        generator, self._generator = self._generator, None
        if generator is not None:
            ray.cancel(generator)

    async def aclose(self) -> None:
        """Take no more, as `close`."""
        self.close()

    def __repr__(self) -> str:
        if self._generator is None:
            return "ObjectRefGenerator(closed)"
        return f"ObjectRefGenerator({self.task_id().hex()})"

    def __reduce__(self) -> NoReturn:
        raise SerializationError(
            f"{self!r} cannot be passed to a task or actor, returned or put: it has one consumer, in the"
            " process that called the task. Pass the refs that it gives, e.g. list(generator)"
        )


def wrapped(made: Any) -> Any:
    """Return what a call of Ray's returns, as a call of ftray's does."""
    if isinstance(made, ray.ObjectRefGenerator):
        return RayObjectRefGenerator(made)
    if isinstance(made, list):
        return [RayObjectRef(ref) for ref in made]
    return None if made is None else RayObjectRef(made)


def unwrapped(value: Any) -> Any:
    """Return an argument as Ray takes it."""
    if type(value) is RayObjectRef:
        return value._ref
    if isinstance(value, _core.ObjectRef):
        raise not_here(value)
    return value


def not_here(ref: Any) -> RaySystemError:
    """Make the error for a ref that another engine has made."""
    return RaySystemError(f"{ref!r} belongs to a session of another engine: its value is not on this cluster")


def adopted(value: Any) -> Any:
    """Return a value that Ray has given out: its list of what a "dynamic" task yielded becomes ftray's."""
    if type(value) is ray.DynamicObjectRefGenerator:
        return _core.DynamicObjectRefGenerator([RayObjectRef(ref) for ref in value._refs])
    return value


def of_ray(item: Any) -> Any:
    """Return the ref or generator of Ray's in a wrapper."""
    if isinstance(item, RayObjectRefGenerator):
        return item._open()
    if isinstance(item, _core.ObjectRefGenerator):
        raise not_here(item)
    if not isinstance(item, _core.ObjectRef):
        raise NotSupportedError(f"a ref is needed, not {type(item).__name__}")
    return unwrapped(item)
