"""Who waits may spin for a moment: one process of the machine (its CPUs less one), and never on one CPU.

The places for spinners stand on the board at offset 64. A place says until when it is taken, so that one
whose holder was killed comes back by itself.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.sync import eventually

PLACES_AT, MOST_PLACES = 64, 8
US = 1_000_000

SESSION = """
import os
import ftray as ray
context = ray.init(num_cpus=1)
tell("session", [context.address_info["address"], ray.nodes()[0]["pid"]])
await_word()
ray.shutdown()
"""

# Waits for what never comes, when it is told to.
WAITER = """
import sys, time
import ftray as ray
from ftray import _core
ray.init(address=sys.argv[1])

@ray.remote(num_cpus=2)         # more than there are: it waits in the queue
def never():
    pass

ref = never.remote()
def spins():
    counters = _core.debug_counters()
    return counters["spin_hits"], counters["spin_misses"]
while True:
    word = await_word()
    if not word:
        break
    before = spins()
    try:
        ray.get(ref, timeout=float(word))
    except ray.exceptions.GetTimeoutError:
        pass
    tell("spun", [after - b for b, after in zip(before, spins())])
"""


class Places:
    """The spinners' places of a session, as its board has them."""

    def __init__(self, node_pid: int) -> None:
        entries = Path(f"/proc/{node_pid}/fd").iterdir()
        board = next(entry for entry in entries if "ftray-board" in os.readlink(entry))
        with open(board, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 4096)

    def taken_until_ns(self) -> list[int]:
        """Of the places that are taken: until when (CLOCK_MONOTONIC)."""
        now = time.monotonic_ns()
        return [
            until for until in struct.unpack_from(f"<{MOST_PLACES}Q", self._memory, PLACES_AT) if until > now
        ]

    def close(self) -> None:
        self._memory.close()


def two_cpus() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def one_cpu() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.fixture
def session(start_driver):
    """A session whose own processes never spin: its address and the places on its board."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("on one CPU nobody spins")
    host = start_driver(SESSION, env={"FTRAY_SPIN_US": "0"}, preexec=two_cpus)
    address, node_pid = host.expect("session")
    places = Places(node_pid)
    yield address, places
    places.close()
    host.say("stop")
    host.finish()


@pytest.fixture
def waiter(start_driver, session):
    """``waiter(spin_s)``: a driver on two CPUs that spins for so long when it waits."""
    address, _ = session
    started = []

    def start(spin_s):
        env = {"FTRAY_SPIN_US": str(int(spin_s * US))}
        started.append(start_driver(WAITER, args=[address], env=env, preexec=two_cpus))
        return started[-1]

    yield start
    for driver in started:
        if processes.is_running(driver.pid):
            driver.say("")
            driver.finish()


def test_one_process_of_the_machine_spins(session, waiter):
    """While one spins, another, which could, sleeps; when the first has ended its turn, the other spins."""
    _, places = session
    first, second = waiter(600), waiter(0.02)
    second.say("0.01")
    assert second.expect("spun") == [0, 1]  # nobody else: it had the place, in vain
    assert places.taken_until_ns() == []
    first.say("0.01")
    eventually(places.taken_until_ns, "the first one spins")
    [until] = places.taken_until_ns()
    assert until > time.monotonic_ns() + 300 * 10**9
    for _ in range(5):
        second.say("0.01")
        assert second.expect("spun") == [0, 0]
    assert places.taken_until_ns() == [until]
    processes.end(first.pid)


def test_the_place_of_a_process_that_was_killed_while_it_span_comes_back(session, waiter):
    _, places = session
    first, second = waiter(3), waiter(0.02)
    second.say("0.01")
    assert second.expect("spun") == [0, 1]
    first.say("0.01")
    eventually(places.taken_until_ns, "the first one spins")
    [until] = places.taken_until_ns()
    first.signal(signal.SIGKILL)
    first.finish(status=-signal.SIGKILL)
    second.say("0.01")
    spun = second.expect("spun")
    if time.monotonic_ns() < until:  # else this machine was too slow to see it
        assert spun == [0, 0] and places.taken_until_ns() == [until]
    eventually(lambda: time.monotonic_ns() > until, "the turn of the dead one is over", 10)
    second.say("0.01")
    assert second.expect("spun") == [0, 1]
    assert places.taken_until_ns() == []


def test_nobody_spins_on_one_cpu(start_driver):
    driver = start_driver(
        """
        import ftray as ray
        from ftray import _core
        def spins():
            counters = _core.debug_counters()
            return counters["spin_hits"] + counters["spin_misses"]
        ray.init(num_cpus=2)
        @ray.remote
        class Echo:
            def echo(self, x):
                return x, spins()
        echo = Echo.remote()
        seen = [ray.get(echo.echo.remote(i)) for i in range(50)]
        assert [x for x, _ in seen] == list(range(50))
        tell("spins", [spins(), seen[-1][1]])
        ray.shutdown()
        """,
        env={"FTRAY_SPIN_US": "50000"},
        preexec=one_cpu,
    )
    assert driver.expect("spins") == [0, 0]
    driver.finish()


@pytest.mark.parametrize(
    ("spin_us", "cpus"),
    [("0", None), ("40", 1), ("0", 1), ("100000", None)],
    ids=["off", "one cpu", "both", "long"],
)
def test_spinning_is_no_condition_for_progress(start_driver, spin_us, cpus):
    """Off, on one CPU, and absurdly long: the same results, and no time limit missed."""
    driver = start_driver(
        """
        import signal, time
        import ftray as ray
        ray.init(num_cpus=2)
        @ray.remote
        def triple(x):
            return 3 * x
        @ray.remote(max_retries=0)
        def never():
            signal.pause()
        @ray.remote
        class Counter:
            def __init__(self):
                self.n = 0
            def add(self, k):
                self.n += k
                return self.n
        counter = Counter.remote()
        assert [ray.get(triple.remote(i)) for i in range(50)] == [3 * i for i in range(50)]
        assert ray.get([triple.remote(i) for i in range(500)]) == [3 * i for i in range(500)]
        assert [ray.get(counter.add.remote(1)) for _ in range(50)] == list(range(1, 51))
        pending = triple.remote(triple.remote(1))
        assert ray.get(pending) == 9
        waiting = never.remote()
        start = time.monotonic()
        try:
            ray.get(waiting, timeout=0.05)
            tell("no time-out")
        except ray.exceptions.GetTimeoutError:
            assert 0.05 <= time.monotonic() - start < 10
        ray.cancel(waiting, force=True)
        ray.shutdown()
        """,
        env={"FTRAY_SPIN_US": spin_us},
        preexec=one_cpu if cpus else None,
    )
    driver.finish()
    driver.check_nothing_left()
