"""What the checkpoint tests share: actors in importable form, forked children that report before they die."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftray.checkpoint import Checkpointable, engine, readonly
from ftray.checkpoint.session import ActorSession
from ftray.checkpoint.testing import LocalHost

KEY = "test/counter"


class Counter(Checkpointable, every=1):
    def __init__(self) -> None:
        self.n = 0

    def incr(self, k: int = 1) -> int:
        self.n += k
        return self.n

    @readonly
    def value(self) -> int:
        return self.n

    def fail(self) -> None:
        self.n += 1
        raise ValueError("as asked")

    def incr_and_save(self) -> str:
        snapshot = self.checkpoint()
        self.n += 1
        return snapshot


def start(
    cls: type[Checkpointable] = Counter, store: Any = None, incarnation: int = 1, **options: Any
) -> tuple[LocalHost, ActorSession]:
    """Create an actor as an engine does; `store` is a path or a store object."""
    host = LocalHost("counter", class_name=cls.__name__, incarnation=incarnation)
    overrides = dict(options)
    if isinstance(store, (str, Path)):
        overrides["store"] = store
        store = None
    spec = engine.spec_of(cls, overrides)
    return host, engine.open(cls(), host, spec, store=store)


def settle(session: ActorSession) -> None:
    """Wait until no save is in flight and none is wanted."""
    with session._saved:
        assert session._saved.wait_for(lambda: not session._scheduler.in_flight, 10)


def call(host: LocalHost, session: ActorSession, method: str, *args: Any) -> Any:
    """Call, then wait for the save that the call has caused."""
    result = host.call(session, method, *args)
    settle(session)
    host.run_actions()
    settle(session)
    return result


def ruin(path: Path) -> None:
    """Put another file in the place of one that a process may still have mapped."""
    path.unlink()
    path.write_bytes(b"x" * 8192)


def in_child(body: Callable[[Callable[[Any], None]], None]) -> tuple[int, list[Any]]:
    """Run `body(tell)` in a forked child; return its exit status and what it told before it ended."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        status = 99
        try:
            os.close(read_end)
            body(lambda value: _write(write_end, value))
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end) as lines:
        told = [json.loads(line) for line in lines]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def _write(fd: int, value: Any) -> None:
    os.write(fd, json.dumps(value).encode() + b"\n")
