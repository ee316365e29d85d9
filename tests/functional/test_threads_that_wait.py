"""Threads of an actor's own that wait in ``get`` beside its calls."""

from __future__ import annotations

PROGRAM = """
import os, random, select, threading, time

import ftray as ray

ray.init()


@ray.remote
class Other:
    def answer(self):
        time.sleep(0.0002)


@ray.remote
class Beside:
    def __init__(self, other, path):
        self.other, self.asked = other, threading.Semaphore(0)
        self.pipe = os.open(path, os.O_WRONLY)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            self.asked.acquire()
            ray.get(self.other.answer.remote())
            os.write(self.pipe, b"x")

    def ask(self, for_s):
        self.asked.release()
        time.sleep(for_s)


path = os.environ["PIPE"]
os.mkfifo(path)
pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
beside = Beside.remote(Other.remote(), path)
chance = random.Random(7)
late = 0
for _ in range(400):
    ray.get(beside.ask.remote(chance.uniform(0.0001, 0.0008)))
    if not select.select([pipe], [], [], 5)[0]:
        late += 1
        break
    os.read(pipe, 1)
tell("late", late)
"""


def test_a_value_that_the_main_thread_takes_in_is_not_slept_over(start_driver, tmp_path):
    """The call ends as the answer comes, nothing comes after it, and the thread watches meanwhile."""
    driver = start_driver(PROGRAM, env={"FTRAY_SPIN_US": "300", "PIPE": str(tmp_path / "pipe")})
    assert driver.expect("late") == 0
    driver.finish()
