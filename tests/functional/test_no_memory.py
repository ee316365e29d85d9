"""A process that has no memory left refuses new work with MemoryError, finishes the old, and goes on later.

The core grows its tables and queues where an exception of C++ would end the process: under its lock, without
the interpreter's. See `_core/spare.hpp`.
"""

from __future__ import annotations

LIMITED = """
import resource, time
import ftray as ray
ray.init(num_cpus=1, log_to_driver=False)

@ray.remote
def same(x=None):
    return x

@ray.remote(num_returns=3)
def three():
    return None, None, None

@ray.remote
class Actor:
    def same(self, x=None):
        return x

actor = Actor.remote()
assert ray.get([same.remote(1), actor.same.remote(2)]) == [1, 2]
KINDS = {
    "objects": (ray.put, ray.get, lambda n: n),
    "tasks": (lambda n: same.remote(), ray.get, lambda n: None),
    "actor calls": (lambda n: actor.same.remote(), ray.get, lambda n: None),
    "several returns": (lambda n: three.remote(), ray.get, lambda n: [None] * 3),
}

def limit(room_bytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + room_bytes, hard))

def fill(make):
    made = []
    ballast = bytearray(2 << 20)        # what this program needs for itself when it goes on
    try:
        while True:
            made.append(make(len(made)))
    except MemoryError as error:
        del ballast
        return made, str(error)

for kind, (make, get, right) in KINDS.items():
    limit(48 << 20)
    made, text = fill(make)
    some = len(made)
    while len(made) > 100:
        made.pop()                      # removing a slice needs memory
    again = None
    while again is None:                # memory comes back within a second or two
        try:
            again = ray.get([ray.put(5), same.remote(6), actor.same.remote(7)], timeout=30)
        except MemoryError:
            time.sleep(0.05)
    # What is left of it was not harmed.
    tell(kind, [some, text, again, [get(one) for one in made] == [right(n) for n in range(100)]])
    del made
ray.shutdown()
"""


def test_new_work_is_refused_and_later_is_not(start_driver):
    driver = start_driver(LIMITED)
    for kind in ("objects", "tasks", "actor calls", "several returns"):
        some, text, again, unharmed = driver.expect(kind, timeout_s=60)
        assert some > 1000 and again == [5, 6, 7] and unharmed, kind
        assert not text or " refs are open here" in text  # without one it is the interpreter's own
    driver.finish()
    driver.check_nothing_left()
