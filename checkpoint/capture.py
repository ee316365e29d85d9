"""Captures a state as bytes, fast: the only part of a save during which the actor pauses.

Owns the pickling and the warm memory that large buffers are copied into. Invariants: what `capture`
returned stays unchanged, whatever the actor does to its arrays, until the next `capture` on the same
object; the caller takes the next one only after the last has been written. Leaves the file format to
`format`.
"""

from __future__ import annotations

import importlib
import mmap
import pickle
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ftray._core.snapfile import Source

from .errors import CheckpointCaptureError

SMALL_BUFFER = 16 << 10
"""Buffers below this many bytes stay inside the pickle stream: one copy less to keep track of."""
_LARGE_BUFFER = 16 << 20  # is worth the threads that copy it
_ALIGN = 64
_LARGEST_FRAME = 160 << 10  # a frame ends after 64 KiB, and with it an object of less than that
_HUGE_PAGE = 2 << 20
_MAX_PARTS_TRIED = 10_000
_LARGE_STREAM = 4 << 20  # contents of that size may be in it, which then are copied as they should be


Pieces = list[bytes] | list[memoryview]


class Captured(NamedTuple):
    """A state as bytes: the pickle stream, then copies of its large buffers; each in one or more pieces."""

    segments: list[Pieces]

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(len(piece) for segment in self.segments for piece in segment)


class _Stream:
    """Takes what a pickler writes: frames, and large bytes as the very objects of the state.

    Those do not change, so they need no copy; a bytearray does, and gets one.
    """

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: bytes | bytearray | memoryview) -> int:
        self.pieces.append(piece if type(piece) is bytes else bytes(piece))
        return len(piece)

    def mentions(self, name: bytes) -> bool:
        """Whether a frame contains `name`; large contents, never part of a reference, are not searched."""
        return any(name in piece for piece in self.pieces if len(piece) < _LARGEST_FRAME)


def _by_value() -> ModuleType:
    return importlib.import_module("cloudpickle")


class _Now(threading.local):
    capturing = False


_now = _Now()


def capturing() -> bool:
    """Whether this thread pickles a state: for objects of an engine that are saved otherwise than sent."""
    return _now.capturing


class _Arena:
    """Warm anonymous memory for one capture at a time; it grows, and shrinks when mostly unused."""

    __slots__ = ("_memory", "_view")

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._view = memoryview(b"")

    def _resize(self, size: int) -> None:
        self._view.release()
        if self._memory is not None:
            self._memory.close()
        self._memory, self._view = None, memoryview(b"")
        if not size:
            return
        capacity = -(-(size + size // 8) // _HUGE_PAGE) * _HUGE_PAGE
        self._memory = mmap.mmap(-1, capacity)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:  # a kernel without huge pages: only slower
                pass
        self._view = memoryview(self._memory)

    def copy(self, buffers: Sequence[memoryview]) -> list[memoryview]:
        size = sum(len(b) + -len(b) % _ALIGN for b in buffers)
        if size > len(self._view) or size * 8 < len(self._view):
            self._resize(size)
        copies, at = [], 0
        for buffer in buffers:
            copy = self._view[at : at + len(buffer)]
            if len(buffer) < _LARGE_BUFFER:
                copy[:] = buffer
            else:
                from ftray._core.widecopy import copy_wide  # most actors never need it

                copy_wide(copy, buffer)
            copies.append(copy.toreadonly())
            at += len(buffer) + -len(buffer) % _ALIGN
            copy.release()
        return copies


class StateCapturer:
    """Captures states one after the other into the same memory."""

    __slots__ = ("_arena", "_last", "_pickle_by_value")

    def __init__(self) -> None:
        self._arena = _Arena()
        self._last: list[memoryview] = []
        self._pickle_by_value = False

    def capture(self, state: object) -> Captured:
        """Pickle `state` with protocol 5 and copy its large buffers once. Invalidates the previous result.

        Raises
        ------
        Exception
            What the state's own pickling raised.
        """
        for copy in self._last:
            copy.release()
        self._last = []
        buffers: list[memoryview] = []
        pickled: list[pickle.PickleBuffer] = []  # keeps temporary arrays alive until they are copied

        def take(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < SMALL_BUFFER:
                return True
            pickled.append(buffer)
            buffers.append(raw)
            return False

        _now.capturing = True
        try:
            stream = self._dump(state, take, buffers)
        finally:
            _now.capturing = False
        self._last = self._arena.copy(buffers)
        for raw in buffers:
            raw.release()
        return Captured([stream.pieces, *([copy] for copy in self._last)])

    def _dump(
        self, state: object, take: Callable[[pickle.PickleBuffer], bool], buffers: list[memoryview]
    ) -> _Stream:
        """Pickle by reference; by value as soon as something lives in ``__main__`` or cannot be imported.

        The next incarnation has another ``__main__``, so a reference into it would not load there. Once by
        value, always by value: the state will hardly lose what made it necessary.
        """
        if not self._pickle_by_value:
            stream = _Stream()
            try:
                pickle.Pickler(stream, 5, buffer_callback=take).dump(state)
                if not stream.mentions(b"__main__"):
                    return stream
            except (pickle.PicklingError, AttributeError, TypeError):
                pass  # by value it either works or raises what is the matter
            buffers.clear()
        stream = _Stream()
        _by_value().Pickler(stream, 5, buffer_callback=take).dump(state)
        self._pickle_by_value = True
        return stream

    def find_culprit(self, state: object, name: str) -> tuple[str, BaseException] | None:
        """Return the path of the smallest part of `state` that cannot be pickled, and what that raised."""
        tried = [0]

        def error_of(value: object) -> BaseException | None:
            tried[0] += 1
            _now.capturing = True
            try:
                _by_value().dumps(value, 5, buffer_callback=lambda _: False)
            except Exception as error:
                return error
            finally:
                _now.capturing = False
            return None

        error = error_of(state)
        if error is None:
            return None
        path, value, seen = name, state, {id(state)}
        while True:
            for suffix, child in _children(value):
                if id(child) in seen or tried[0] >= _MAX_PARTS_TRIED:
                    continue
                deeper = error_of(child)
                if deeper is not None:
                    path, value, error = path + suffix, child, deeper
                    seen.add(id(child))
                    break
            else:
                return path, error


def _children(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [
            (f".{k}" if isinstance(k, str) and k.isidentifier() else f"[{k!r}]", v) for k, v in value.items()
        ]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [("{" + type(v).__name__ + "}", v) for v in value]
    members = getattr(value, "__dict__", None)
    if isinstance(members, dict) and not isinstance(value, (type, ModuleType)):
        return [(f".{k}", v) for k, v in members.items()]
    return []


def capture_error(
    capturer: StateCapturer, state: object, class_name: str, raised: BaseException
) -> CheckpointCaptureError:
    """Turn what pickling raised into an error that names the attribute."""
    found = capturer.find_culprit(state, class_name)
    if found is None:  # each part can be pickled: memory, recursion, or a part that fails only at times
        return CheckpointCaptureError(
            f"the state of {class_name} could not be captured: {type(raised).__name__}: {raised}"
        )
    path, cause = found
    error = CheckpointCaptureError(
        f"{path} cannot be saved: {type(cause).__name__}: {cause}. Leave it out of what __getstate__ or "
        "save_checkpoint returns, and make it anew in __init__ (which runs before load_checkpoint)"
    )
    error.attribute = path
    return error


def load(segments: Sequence[bytes | bytearray | memoryview]) -> object:
    """Unpickle what `StateCapturer.capture` made. The buffers become the memory of the restored arrays."""
    stream, buffers = segments[0], segments[1:]
    if len(stream) < _LARGE_STREAM:
        return pickle.loads(stream, buffers=buffers)
    return pickle.Unpickler(Source(stream), buffers=buffers).load()
