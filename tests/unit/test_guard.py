"""The time limit of tests."""

from __future__ import annotations

import select
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import guard


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of these tests is the one under test: what would end the process is left out."""
    monkeypatch.setattr(guard.faulthandler, "dump_traceback", lambda **options: None)
    monkeypatch.setattr(guard.faulthandler, "dump_traceback_later", lambda *args, **options: None)


def test_a_test_that_hangs_is_ended() -> None:
    with pytest.raises(guard.HangError, match="longer than"), guard.time_limit(0.01):
        select.select([], [], [], 50)


def test_it_is_ended_where_there_is_a_line_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest breaks down over a traceback without one, and the whole run with it."""
    asked: list[float] = []
    with guard.time_limit(50):
        on_alarm: Any = signal.getsignal(signal.SIGALRM)
        with monkeypatch.context() as patch:
            patch.setattr(signal, "setitimer", lambda which, seconds: asked.append(seconds))
            on_alarm(signal.SIGALRM, SimpleNamespace(f_lineno=None))
        assert asked == [guard.BETWEEN_LINES_S]
        with pytest.raises(guard.HangError):
            on_alarm(signal.SIGALRM, SimpleNamespace(f_lineno=7))
