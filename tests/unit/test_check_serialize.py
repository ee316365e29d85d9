"""inspect_serializability names the innermost part that cannot be sent."""

from __future__ import annotations

import io
import threading

import pytest

from ftray.util import get_node_ip_address, inspect_serializability


def test_what_can_be_sent() -> None:
    out = io.StringIO()

    assert inspect_serializability({"a": [1]}, name="config", print_file=out) == (True, set())
    assert out.getvalue() == "config can be serialised\n"


def test_the_innermost_part_that_cannot() -> None:
    lock, out = threading.Lock(), io.StringIO()
    can, failures = inspect_serializability({"a": [1, lock], "b": 2}, name="config", print_file=out)
    (failure,) = failures

    assert not can
    assert (failure.obj, failure.name, failure.parent) == (lock, "[1]", [1, lock])
    assert "config cannot be serialised" in out.getvalue()
    assert "The reason: [1], a lock" in out.getvalue()


def test_a_function_that_captured_a_lock_and_the_depth() -> None:
    lock = threading.Lock()

    def f() -> object:
        return lock

    _can, failures = inspect_serializability(f, print_file=io.StringIO())
    assert [failure.obj for failure in failures] == [lock]
    _can, failures = inspect_serializability([[[[lock]]]], depth=1, print_file=io.StringIO())
    assert [failure.obj for failure in failures] == [[[[lock]]]]
    with pytest.raises(ValueError, match="depth=0"):
        inspect_serializability(f, depth=0)


def test_the_address_is_loopback() -> None:
    assert get_node_ip_address() == "127.0.0.1"
