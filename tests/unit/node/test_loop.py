"""The event loop: stale events, timers, children."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from ftray._node.loop import READ, WRITE, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_an_event_of_a_closed_descriptor_does_not_reach_its_successor(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[str] = []

    def first_to_run(mine: int, other: int) -> None:
        # Close the other descriptor, which is ready too, and register a new one of the same number.
        called.append("first")
        loop.unregister(pairs[other][0].fileno())
        number = pairs[other][0].detach()
        os.close(number)
        fresh, _peer = socket.socketpair()
        if fresh.fileno() != number:
            os.dup2(fresh.fileno(), number)
        pairs.append((fresh, _peer))
        loop.register(number, lambda _events: called.append("successor"))
        loop.stop()

    loop.register(pairs[0][0].fileno(), lambda _events: first_to_run(0, 1))
    loop.register(pairs[1][0].fileno(), lambda _events: first_to_run(1, 0))
    for _mine, peer in pairs:
        peer.close()
    loop.run()
    assert called == ["first"]
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_timers_fire_in_their_time_once_and_can_be_replaced_or_cleared(loop: Loop) -> None:
    fired: list[str] = []
    now_s = time.monotonic()
    loop.set_timer("a", now_s, lambda: fired.append("old"))
    loop.set_timer("a", now_s + 0.001, lambda: fired.append("a"))
    loop.set_timer("b", now_s, lambda: fired.append("b"))
    loop.set_timer("b", None, lambda: None)
    loop.set_timer("end", now_s + 0.01, loop.stop)
    loop.run()
    assert fired == ["a"]


def test_a_timer_may_clear_another_that_is_due(loop: Loop) -> None:
    fired: list[str] = []

    def clear_other(name: str, other: str) -> None:
        fired.append(name)
        loop.set_timer(other, None, lambda: None)
        loop.stop()

    now_s = time.monotonic()
    loop.set_timer("a", now_s, lambda: clear_other("a", "b"))
    loop.set_timer("b", now_s, lambda: clear_other("b", "a"))
    loop.run()
    assert len(fired) == 1


def test_write_readiness_is_reported_when_asked_for(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    seen: list[int] = []

    def ready(events: int) -> None:
        seen.append(events)
        loop.stop()

    loop.register(ours.fileno(), ready)
    loop.modify(ours.fileno(), READ | WRITE)
    loop.run()
    assert seen == [WRITE]
    for sock in (ours, theirs):
        sock.close()


def test_children_wake_the_loop(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    try:
        loop.watch_children(loop.stop)
        pid = os.posix_spawn("/bin/true", ["true"], os.environ)
        loop.run()
        assert os.waitpid(pid, 0) == (pid, 0)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, before)
