"""When what workers print appears: at once, and counts of equal lines when their time has come."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from ftray import _printer

LOG = 60


def said(pid: int, text: str, stream: int = 1) -> tuple[int, bytes]:
    """What ftrayd sends for a line that a worker named `talk` has printed."""
    return LOG, struct.pack("<IBH4sI", pid, stream, 4, b"talk", len(text)) + text.encode()


class Inbox:
    """In place of the core and of the clock: gives out messages; time passes only while nothing comes."""

    def __init__(self, *batches: list[tuple[int, bytes]]) -> None:
        self.now_s = 1000.0
        self.waits: list[float] = []
        self._batches = iter(batches)

    def monotonic(self) -> float:
        return self.now_s

    def inbox_next(self, timeout_s: float) -> list[tuple[int, bytes]] | None:
        self.waits.append(timeout_s)
        batch = next(self._batches, None)
        if batch is not None:
            return batch
        if timeout_s < 0:
            return None  # it would wait for ever; the runtime stops
        self.now_s += timeout_s
        return []


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """``printed(*batches)``: the lines on both streams, and how long each wait for messages was to be."""

    def run(*batches: list[tuple[int, bytes]]) -> tuple[list[str], list[str], list[float]]:
        inbox = Inbox(*batches)
        monkeypatch.setattr(_printer, "_core", inbox)
        monkeypatch.setattr(_printer, "time", inbox)
        _printer.run(True)
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines(), inbox.waits

    yield run
    capsys.readouterr()


def test_a_count_appears_although_nothing_else_is_printed(printed: Any) -> None:
    out, err, waits = printed([said(1, "same")], [said(2, "same")], [said(3, "same")])
    assert out == ["(talk pid=1) same", "(talk pid=3) same [repeated 2x across processes]"]
    assert (err, waits) == ([], [-1, -1, 5.0, 5.0, -1])


def test_each_stream_counts_for_itself(printed: Any) -> None:
    out, err, _waits = printed([said(1, "same"), said(2, "same", 2)], [said(1, "other"), said(3, "same", 2)])
    assert out == ["(talk pid=1) same", "(talk pid=1) other"]
    assert err == ["(talk pid=2) same", "(talk pid=3) same [repeated 1x across processes]"]


def test_without_counts_nothing_wakes_the_thread(printed: Any) -> None:
    _out, _err, waits = printed([said(1, "one")], [said(1, "one")], [said(2, "two")])
    assert waits == [-1] * 4
