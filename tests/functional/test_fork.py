"""A process forked from the driver is a stranger: its calls raise at once and its end changes nothing."""

from __future__ import annotations

import signal

import pytest

from tests.helpers import processes

SETUP = """
import gc, os
import ftray as ray
ray.init(num_cpus=1)

@ray.remote
def square(x):
    return x * x

@ray.remote
class Counter:
    def __init__(self):
        self.n = 0
    def increment(self):
        self.n += 1
        return self.n

counter = Counter.remote()
assert ray.get(counter.increment.remote()) == 1
refs = [ray.put(i) for i in range(100)] + [ray.put(b"x" * 1_000_000)]
array = ray.get(refs[-1])

def use(call):
    try:
        call()
    except RuntimeError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]
"""

CALLS = {
    "get": "ray.get(refs[0])",
    "put": "ray.put(1)",
    "wait": "ray.wait(refs)",
    "task": "square.remote(1)",
    "actor call": "counter.increment.remote()",
    "actor": "Counter.remote()",
    "kill": "ray.kill(counter)",
    "resources": "ray.available_resources()",
}

STILL_WORKS = """
assert ray.get(refs[:-1]) == list(range(100))
assert len(array) == 1_000_000 and len(ray.get(refs[-1])) == 1_000_000
assert ray.get(counter.increment.remote()) == 2
assert ray.get([square.remote(i) for i in range(50)]) == [i * i for i in range(50)]
tell("parent works")
"""


@pytest.mark.parametrize("call", CALLS)
def test_calls_in_a_forked_child_raise(call, start_driver):
    driver = start_driver(
        f"""{SETUP}
pid = os.fork()
if pid == 0:
    tell("child", use(lambda: {CALLS[call]}))
    os._exit(0)
os.waitpid(pid, 0)
{STILL_WORKS}
"""
    )
    name, text = driver.expect("child")
    assert name != "nothing", f"{call} in a forked child did not raise RuntimeError"
    assert "fork" in text
    driver.expect("parent works")
    driver.finish()
    driver.check_nothing_left()


@pytest.mark.parametrize("ending", ["os._exit(0)", "raise SystemExit(0)", "os.kill(os.getpid(), 9)"])
def test_finalisers_of_the_child_change_nothing(ending, start_driver):
    """The child drops all refs, handles and the session, by hand or by its interpreter's end."""
    driver = start_driver(
        f"""{SETUP}
pid = os.fork()
if pid == 0:
    del refs, counter, array
    gc.collect()
    {ending}
os.waitpid(pid, 0)
{STILL_WORKS}
"""
    )
    driver.expect("parent works")
    driver.finish()
    driver.check_nothing_left()


def test_shutdown_in_the_child_does_not_end_the_session(start_driver):
    driver = start_driver(
        f"""{SETUP}
pid = os.fork()
if pid == 0:
    try:
        ray.shutdown()
    finally:
        os._exit(0)
os.waitpid(pid, 0)
{STILL_WORKS}
"""
    )
    driver.expect("parent works")
    driver.finish()
    driver.check_nothing_left()


@pytest.mark.parametrize("ending", ["normal", "sigkill"])
def test_a_child_that_outlives_the_driver_keeps_nothing_alive(ending, start_driver):
    """It has inherited descriptors, among them the lifeline; the node must see the driver go all the same."""
    driver = start_driver(
        f"""{SETUP}
pid = os.fork()
if pid == 0:
    import signal
    signal.pause()
    os._exit(0)
tell("child", pid)
await_word()
"""
    )
    child = driver.expect("child")
    others = [pid for pid in driver.started() if pid != child]
    if ending == "sigkill":
        driver.signal(signal.SIGKILL)
    else:
        driver.say("end")
    assert driver.process.wait(20) == (-signal.SIGKILL if ending == "sigkill" else 0)
    processes.wait_ended(others, 5)
    processes.end(child)
    driver.finish(status=None)
    driver.check_nothing_left()


def test_multiprocessing_pool_beside_the_runtime(start_driver):
    driver = start_driver(
        f"""{SETUP}
import multiprocessing
context = multiprocessing.get_context("fork")
def double(x):
    return 2 * x
def misuse(_):
    return use(lambda: ray.get(square.remote(1)))
with context.Pool(2) as pool:
    tell("pool", pool.map(double, range(5)))
    tell("misuse", pool.map(misuse, range(2)))
{STILL_WORKS}
"""
    )
    assert driver.expect("pool") == [0, 2, 4, 6, 8]
    assert all(name != "nothing" and "fork" in text for name, text in driver.expect("misuse"))
    driver.expect("parent works")
    driver.finish()
    driver.check_nothing_left()


def test_subprocesses_of_the_driver(start_driver):
    driver = start_driver(
        f"""{SETUP}
import subprocess
for _ in range(20):
    assert subprocess.run(["echo", "hello"], capture_output=True, text=True, check=True).stdout == "hello\\n"
assert os.system("exit 3") >> 8 == 3
{STILL_WORKS}
"""
    )
    driver.expect("parent works")
    driver.finish()
    driver.check_nothing_left()


def test_a_forked_child_of_a_worker(start_driver):
    driver = start_driver(
        f"""{SETUP}
@ray.remote
def fork_inside():
    import os
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ray.put(1)
            os.write(write, b"nothing")
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(read, 10_000).decode()
tell("text", ray.get(fork_inside.remote()))
{STILL_WORKS}
"""
    )
    assert "fork" in driver.expect("text")
    driver.expect("parent works")
    driver.finish()
    driver.check_nothing_left()


def test_a_child_that_returns_from_the_call_that_forked_it_answers_nothing(start_driver):
    driver = start_driver(
        f"""{SETUP}
import asyncio, os

def forks(how):
    pid = os.fork()
    if pid == 0 and how == "raises":
        raise ValueError("in the child")
    if pid == 0 and how == "exits":
        raise SystemExit(3)
    if pid:
        os.waitpid(pid, 0)  # it ends by itself
    return pid

@ray.remote(num_returns=2)
def forks_two(how):
    return forks(how), 0

@ray.remote
def generates(how):
    yield forks(how)

@ray.remote
class Made:
    def __init__(self, how):
        self.pid = forks(how)
    def forked(self):
        return self.pid

@ray.remote
class Plain:
    def forks(self, how):
        return forks(how)

@ray.remote
class Async:
    async def forks(self, how):
        return forks(how)

plain, loop = Plain.remote(), Async.remote()
for how in ("returns", "raises", "exits"):
    for call in (ray.remote(forks), forks_two, plain.forks, loop.forks):
        for _ in range(2):
            made = call.remote(how)
            pid = ray.get(made[0] if isinstance(made, list) else made)
            assert pid > 0, (call, how, pid)
    assert [ray.get(ref) > 0 for ref in generates.remote(how)] == [True]
    assert ray.get(Made.remote(how).forked.remote()) > 0
{STILL_WORKS}
"""
    )
    driver.expect("parent works")
    driver.finish()
    driver.check_nothing_left()
