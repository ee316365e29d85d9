"""Objects: what a flat store of immutable blobs of bytes can do, and how its failures are met.

A `Medium` makes one attempt per call and says of each failure whether trying again may help. `Objects` is
what the stores use: the same with bounded retries, and with one answer to the question that every retry of
an exclusive creation raises: an object that is there already is our own if it has the very bytes that we
sent, since each creation carries a token of its own (see `pack`).
"""

from __future__ import annotations

import builtins
import hashlib
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from .. import format
from ..errors import CheckpointFormatError, CheckpointStoreError
from .outage import Outage

Bytes = bytes | bytearray | memoryview
T = TypeVar("T")


class TransientStoreError(CheckpointStoreError):
    """One request failed in a way that another may mend: timeouts, throttling, broken connections."""


class Entry(NamedTuple):
    """One object of a listing; `name` without the listed directory."""

    name: str
    size_bytes: int


class Upload(NamedTuple):
    """An upload in parts that was begun and neither completed nor aborted."""

    name: str
    id: str


class Medium(Protocol):
    """One attempt per call. Names are paths with ``/`` below the store's prefix.

    Raises `FileNotFoundError` for an object that is not there, `TransientStoreError` for what may pass,
    `CheckpointStoreError` for everything else; `NotImplementedError` from `create` where the medium has no
    exclusive creation. When a writing call returns, what it wrote is durable as far as `survives` goes.
    """

    @property
    def url(self) -> str:
        """The store's URL."""

    @property
    def survives(self) -> frozenset[str]:
        """As `Store.survives`."""

    @property
    def limit_bytes(self) -> int | None:
        """The largest object, None for no limit that matters."""

    @property
    def inline_bytes(self) -> int:
        """Snapshots up to this size are one object; larger ones are a blob and a manifest."""

    def create(self, name: str, data: bytes) -> bool:
        """Create an object unless one is there; False if there was one."""

    def write(self, name: str, data: bytes) -> None:
        """Create or replace an object."""

    def upload(self, name: str, parts: Sequence[Bytes], retry: Callable[[Callable[[], T]], T]) -> None:
        """Write a large object under a name that nobody else uses, with `retry` around each request."""

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `start` to before `end`, fewer where the object ends."""

    def size(self, name: str) -> int | None:
        """Return the size in bytes, None if there is no such object."""

    def list(self, directory: str, stem: str = "") -> list[Entry]:
        """Return the objects directly in `directory` whose names begin with `stem`, sorted by name."""

    def directories(self) -> builtins.list[str]:
        """Return the names of the first level of directories, in any order."""

    def walk(self, directory: str) -> builtins.list[Entry]:
        """Return all objects at any depth below `directory` with their full names, in any order."""

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, in no particular order; those that are not there are no error."""

    def uploads(self, directory: str) -> builtins.list[Upload]:
        """Return the uploads under `directory` that were begun and have not ended."""

    def abort(self, upload: Upload) -> None:
        """Give up an upload; one that has ended is no error."""


class Retry(NamedTuple):
    """How often a request is tried, and how long between.

    Attributes
    ----------
    attempts : int
        At least 1.
    base_s, cap_s : float
        The n-th pause is between half and all of ``min(cap_s, base_s * 2 ** n)``.
    """

    attempts: int = 8
    base_s: float = 0.1
    cap_s: float = 5.0

    def pause_s(self, failures: int, fraction: float) -> float:
        """Return the pause after so many failures; `fraction` in [0, 1) spreads those who wait."""
        longest = min(self.cap_s, self.base_s * 2.0 ** (failures - 1))
        return longest * (0.5 + fraction / 2)


class Objects:
    """A medium with retries.

    Parameters
    ----------
    medium : Medium
    retry : Retry, optional
    sleep : callable, optional
        Waits between attempts.
    outage : Outage, optional
        Is told of requests that fail again and again.
    """

    def __init__(
        self,
        medium: Medium,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
        outage: Outage | None = None,
    ) -> None:
        self.medium = medium
        self._outage = outage
        self._retry = retry or Retry()
        self._sleep = sleep
        self.exclusive = True
        """Whether `create` is left to the medium. If not, it is `replace_if_absent`: under a lease."""
        self.retries = 0
        """How many requests were repeated, for people."""

    def _tried(self, request: Callable[[], T]) -> T:
        outage = self._outage
        began_s = 0.0 if outage is None else outage.clock()
        failures, told = 0, False
        while True:
            try:
                result = request()
                break
            except TransientStoreError as error:
                failures += 1
                if failures == self._retry.attempts:
                    raise CheckpointStoreError(f"{error} (given up after {failures} attempts)") from error
                self.retries += 1
                if outage is not None and not told and outage.is_one(failures, began_s):
                    told = True
                    outage.begins(error)
            except Exception:
                if outage is not None and told:
                    outage.ends()  # by an answer, if not the wanted one
                raise
            self._sleep(self._retry.pause_s(failures, random.random()))
        if outage is not None and told:
            outage.ends()
        return result

    def create(self, name: str, data: bytes) -> bool:
        """Create an object; False if there is one that is not from this very call.

        `data` must have a token of its own in it: what is there already is then compared with it.
        """
        if not self.exclusive:
            return self.replace_if_absent(name, data)
        if self._tried(lambda: self.medium.create(name, data)):
            return True
        return self._holds(name, data)

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self._tried(lambda: self.medium.read(name)) == data
        except FileNotFoundError:
            return False

    def replace_if_absent(self, name: str, data: bytes) -> bool:
        """`create` for a medium without exclusive creation: the last of several at once wins."""
        if self.size(name) is not None:
            return self._holds(name, data)
        self._tried(lambda: self.medium.write(name, data))
        return self._holds(name, data)

    def write(self, name: str, data: bytes) -> None:
        """See `Medium.write`."""
        self._tried(lambda: self.medium.write(name, data))

    def upload(self, name: str, parts: Sequence[Bytes]) -> None:
        """See `Medium.upload`."""
        self.medium.upload(name, parts, self._tried)

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Medium.read`."""
        return self._tried(lambda: self.medium.read(name, start, end))

    def size(self, name: str) -> int | None:
        """See `Medium.size`."""
        return self._tried(lambda: self.medium.size(name))

    def list(self, directory: str, stem: str = "") -> list[Entry]:
        """See `Medium.list`."""
        return self._tried(lambda: self.medium.list(directory, stem))

    def directories(self) -> builtins.list[str]:
        """See `Medium.directories`."""
        return self._tried(self.medium.directories)

    def walk(self, directory: str) -> builtins.list[Entry]:
        """See `Medium.walk`."""
        return self._tried(lambda: self.medium.walk(directory))

    def delete(self, names: Sequence[str]) -> None:
        """See `Medium.delete`."""
        if names:
            self._tried(lambda: self.medium.delete(names))

    def abort_uploads(self, directory: str, wanted: Callable[[str], bool]) -> int:
        """Give up the unfinished uploads whose full names are `wanted`; return how many."""
        doomed = [u for u in self._tried(lambda: self.medium.uploads(directory)) if wanted(u.name)]
        for upload in doomed:
            self._tried(lambda upload=upload: self.medium.abort(upload))  # type: ignore[misc]
        return len(doomed)


def new_token() -> str:
    """Return a text that no other writer, and no other call of this one, uses."""
    return os.urandom(16).hex()


def pack(kind: str, payload: bytes, token: str, **fields: object) -> bytes:
    """Return an object: one line (CRC-32, JSON: kind, writer's token, length, SHA-256), then `payload`."""
    digest = hashlib.sha256(payload).hexdigest()
    head = {**fields, "kind": kind, "writer": token, "length": len(payload), "sha256": digest}
    return format.encode_record(head) + payload


def head_of(raw: bytes, kind: str) -> dict[str, object]:
    """Return the fields of `pack` from the beginning of an object that is at least as long as its head."""
    line, newline, _ = raw.partition(b"\n")
    if not newline:
        raise CheckpointFormatError(f"truncated: no whole head in {len(raw)} bytes")
    fields = format.decode_record(line)
    if fields.get("kind") != kind:
        raise CheckpointFormatError(f"it is a {fields.get('kind')!r}, not a {kind!r}")
    return fields


def unpack(raw: bytes, kind: str) -> tuple[dict[str, object], bytes]:
    """Undo `pack`: return its fields and the payload.

    Raises
    ------
    CheckpointFormatError
        A byte is not as it was written, or it is an object of another kind.
    """
    fields = head_of(raw, kind)
    payload = raw[raw.index(b"\n") + 1 :]
    if fields["length"] != len(payload):
        raise CheckpointFormatError(f"{len(payload)} bytes where {fields['length']} were written")
    if hashlib.sha256(payload).hexdigest() != fields["sha256"]:
        raise CheckpointFormatError("the object does not match its SHA-256")
    return fields, payload
