"""The machine's limit for a call and its reply: a bare ping-pong of one byte over a Unix-domain socket.

``python -m benchmarks.pingpong`` prints round trips per second between two processes on different cores, on
one core and unpinned; blocking, and spinning on a non-blocking socket. Whatever blocks on sockets is slower.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

END = b"\xff"
PING = b"\x01"


@dataclass(frozen=True)
class Layout:
    """Where the two processes run and how they wait."""

    key: str
    title: str
    cores: tuple[int, int] | None
    spinning: bool


def layouts() -> list[Layout]:
    """The layouts that this machine allows; spinning on one core would only keep the other from running."""
    cores = sorted(os.sched_getaffinity(0))
    found = [
        Layout("same_core", "blocking, one core", (cores[0], cores[0]), False),
        Layout("unpinned", "blocking, unpinned", None, False),
    ]
    if len(cores) > 1:
        found.insert(0, Layout("across", "blocking, across cores", (cores[0], cores[1]), False))
        found.append(Layout("spinning", "spinning, across cores", (cores[0], cores[1]), True))
    return found


def measure(layout: Layout, seconds: float) -> float:
    """Round trips per second of one layout."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.sched_getaffinity(0)
    child = os.fork()
    if child == 0:
        _echo_and_exit(ours, theirs, layout)
    theirs.close()
    try:
        _pin(layout, 0)
        return _drive(ours, layout.spinning, seconds)
    finally:
        os.sched_setaffinity(0, before)
        ours.close()  # ends the echo, should END not have been sent
        os.waitpid(child, 0)


def _echo_and_exit(ours: socket.socket, theirs: socket.socket, layout: Layout) -> None:
    status = 1
    try:
        ours.close()
        _pin(layout, 1)
        receive = _receiver(theirs, layout.spinning)
        while (byte := receive()) not in (END, b""):
            theirs.send(byte)
        status = 0
    finally:
        os._exit(status)


def _drive(ours: socket.socket, spinning: bool, seconds: float) -> float:
    receive = _receiver(ours, spinning)
    clock = time.perf_counter
    trips = 0
    start = clock()
    while (elapsed_s := clock() - start) < seconds:
        for _ in range(50):
            ours.send(PING)
            if receive() != PING:
                raise ConnectionError("the other side of the ping-pong ended")
        trips += 50
    ours.send(END)
    return trips / elapsed_s


def _receiver(end: socket.socket, spinning: bool) -> Callable[[], bytes]:
    if not spinning:
        return lambda: end.recv(1)
    end.setblocking(False)

    def spin() -> bytes:
        while True:
            try:
                return end.recv(1)
            except BlockingIOError:
                continue

    return spin


def _pin(layout: Layout, side: int) -> None:
    if layout.cores is not None:
        os.sched_setaffinity(0, {layout.cores[side]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each layout (default 1)")
    arguments = parser.parse_args()
    for layout in layouts():
        print(f"{layout.title:24} {measure(layout, arguments.seconds):>12,.0f} round trips/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
