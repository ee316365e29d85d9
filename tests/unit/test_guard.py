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


def test_it_is_ended_where_there_is_a_line_to_tell() -> None:
    """pytest breaks down over a traceback without one, and the whole run with it."""
    with guard.time_limit(50):
        on_alarm: Any = signal.getsignal(signal.SIGALRM)
        on_alarm(signal.SIGALRM, SimpleNamespace(f_lineno=None))
        left_s, again_s = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left_s <= 50 and again_s == guard.AGAIN_S, "it is asked again"
        with pytest.raises(guard.HangError):
            on_alarm(signal.SIGALRM, SimpleNamespace(f_lineno=7))
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "once is enough"
