"""`Apart`: requests of the runtime's own, which belong to no call and which no guard sees."""

from __future__ import annotations

import threading

import pytest

from ftray._core.context import Apart, is_apart


def test_only_inside_and_only_on_this_thread() -> None:
    elsewhere: list[bool] = []
    assert not is_apart()
    with Apart():
        with Apart():
            assert is_apart()
        assert is_apart()
        other = threading.Thread(target=lambda: elsewhere.append(is_apart()))
        other.start()
        other.join()
    assert not is_apart() and elsewhere == [False]


def test_over_with_an_error() -> None:
    with pytest.raises(ValueError, match="met inside"), Apart():
        raise ValueError("met inside")
    assert not is_apart()
