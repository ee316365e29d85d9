"""How a driver may end: with whatever it holds, in the order of ``atexit``, and beneath busy threads."""

from __future__ import annotations

import pytest

AT_EXIT = """
import atexit, gc, os, sys, threading
import ftray as ray

def early():
    sys.stdout.write(f"early: {ray.is_initialized()}\\n")
atexit.register(early)          # runs after everything that is registered later

ray.init(num_cpus=2)

@ray.remote
def big(n):
    return bytes(n)

@ray.remote
class Counter:
    def count(self):
        return 1

def late():
    sys.stdout.write(f"late: {ray.get(ray.put(5))}, {ray.get(big.remote(3))!r}\\n")
atexit.register(late)           # the runtime is still there
"""

HELD_AT_EXIT = {
    "refs": "refs = [ray.put(i) for i in range(100)] + [big.remote(10) for _ in range(50)]",
    "views": "view = memoryview(ray.get(ray.put(bytes(1_000_000)))); array = ray.get(big.remote(500_000))",
    "handles": "a = Counter.remote(); method = a.count; ref = method.remote()",
    "cycles": """
class Node: pass
node = Node(); node.me = node; node.ref = ray.put(1); node.handle = Counter.remote(); gc.disable()""",
    "modules": "sys.modules['later'] = type(sys)('later'); sys.modules['later'].ref = big.remote(300_000)",
    "finaliser": """
class Last:
    def __del__(self):
        del self.ref
keep = Last(); keep.ref = big.remote(5); sys.keep = keep""",
    "waiting thread": """
@ray.remote
def never(): import signal; signal.pause()
def wait():
    try:
        ray.get(never.remote())
    except ray.exceptions.RayError as error:    # told, not left waiting, if there is time
        assert "ftray" in str(error)
threading.Thread(target=wait, daemon=True).start()""",
    "thread that submits": """
def work():
    try:
        while True: ray.get(big.remote(10))
    except ray.exceptions.RayError as error:
        assert "ftray" in str(error)
threading.Thread(target=work, daemon=True).start(); ray.get(big.remote(1))""",
}


@pytest.mark.parametrize("what", HELD_AT_EXIT)
@pytest.mark.parametrize("end", ["", "ray.shutdown()", "sys.exit(3)", "raise SystemExit(3)"])
def test_whatever_is_held_when_the_interpreter_ends(start_driver, what, end):
    """No crash, no message, no hang, nothing left; what others registered with atexit runs while it may."""
    shut = end == "ray.shutdown()"
    source = AT_EXIT + HELD_AT_EXIT[what] + "\n" + ("atexit.unregister(late)\n" if shut else "") + end + "\n"
    driver = start_driver(source)
    out = driver.finish(status=3 if "3" in end else 0)
    assert out.splitlines() == [*([] if shut else [f"late: 5, {bytes(3)!r}"]), "early: False"]
    assert driver.err == []
    driver.check_nothing_left()


BUSY = """
import ctypes, os, sys, threading
import ftray as ray
ray.init(num_cpus=2)

@ray.remote
def big(n):
    return bytes(n)

def work(size):
    while True:
        refs = [big.remote(size) for _ in range(20)]
        ray.wait(refs, num_returns=5)
        ray.put(refs)

libc = ctypes.CDLL(None)        # the lock of the interpreter is free during its calls
for size in (10, 200_000):
    threading.Thread(target=work, args=(size,), daemon=True).start()
ray.get(big.remote(200_000))
"""


def test_the_process_ends_beneath_busy_threads(start_driver):
    """exit() of the C library destroys what is static, while nobody has stopped the runtime."""
    drivers = [start_driver(BUSY + "libc.exit(3)\n") for _ in range(3)]
    for driver in drivers:
        driver.finish(status=3)
        assert driver.err == []
        driver.check_nothing_left()


def test_forked_children_end_on_what_busy_threads_had_half_done(start_driver):
    driver = start_driver(
        BUSY
        + """
statuses = []
for _ in range(40):
    child = os.fork()
    if child == 0:
        libc.exit(5)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
tell("statuses", statuses)
libc.exit(0)
"""
    )
    assert driver.expect("statuses") == [5] * 40
    driver.finish()
    driver.check_nothing_left()
