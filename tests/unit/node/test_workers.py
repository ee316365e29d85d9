"""What the node knows of a worker while it starts, in the orders in which that can come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ftray._node.workers import Workers


class Told:
    """A pool that notes which events it is given."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, event: str) -> Any:
        return lambda *args: self.events.append((event, args[0]))


class Node:
    """As much of a node as a worker needs to start and to end."""

    def __init__(self, directory: Path) -> None:
        self.pool = Told()
        self.tokens: dict[int, bytes] = {}
        self.session = SimpleNamespace(path=str(directory))
        self.loop = SimpleNamespace(set_timer=lambda *_: None)
        self.zygote = SimpleNamespace(pid=0, fork=self._fork)
        self.logs = SimpleNamespace(open_pipes=lambda _: [], close_pipes=lambda _: "", label_of=lambda _: "")

    def _fork(self, number: int, token: bytes, _directory: str, _fds: list[int]) -> None:
        self.tokens[number] = token

    def pool_event(self, event: Any) -> None:
        event(self.pool, 0.0)


def test_one_that_has_ended_before_its_registration_is_read_is_refused(tmp_path: Path) -> None:
    """And before what made it has said so: it was found dead, and nobody knew whose process that was."""
    node = Node(tmp_path)
    workers: Any = Workers(node, hang_timeout_s=0)  # type: ignore[arg-type]
    workers.start(7, "")
    process = subprocess.Popen([sys.executable, "-c", ""])
    status = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    workers._reap_one(status)
    client = SimpleNamespace(pid=process.pid, worker=None)
    assert workers.claim(client, node.tokens[7]) == "it has ended meanwhile"
    assert client.worker is None and workers.all() == []
    assert node.pool.events == [("start_failed", 7)]
    workers.on_forked(7, process.pid)  # which comes last
    process.wait()  # it was reaped above
