"""Output of workers reaches the driver; owner duties go on while the driver does something else."""

from __future__ import annotations

import re

import pytest


def test_output_of_workers_is_printed_with_its_source(start_driver):
    driver = start_driver(
        """
        import os, sys
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def chatty(i):
            print("line", i)
            print("error", i, file=sys.stderr)
            return os.getpid()
        @ray.remote
        class Talker:
            def say(self, text):
                print(text)
                return os.getpid()
        tell("task", ray.get(chatty.remote(7)))
        tell("actor", ray.get(Talker.remote().say.remote("hello")))
        await_word()
        """
    )
    task, actor = driver.expect("task"), driver.expect("actor")
    assert f"(chatty pid={task})" in driver.expect_output(lambda line: line.endswith("line 7"))
    assert f"(chatty pid={task})" in driver.expect_output(lambda line: line.endswith("error 7"), stream="err")
    assert f"(Talker pid={actor})" in driver.expect_output(lambda line: line.endswith("hello"))
    driver.say("end")
    driver.finish()


def test_output_is_complete_and_in_order(start_driver):
    driver = start_driver(
        """
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def chatty(n):
            for i in range(n):
                print("row", i, "." * 50)
        ray.get(chatty.remote(5000))
        print("the driver has its result")
        """
    )
    out = driver.finish()
    rows = [int(number) for number in re.findall(r"row (\d+) ", out)]
    assert rows == list(range(5000))


def test_equal_lines_of_several_processes_are_printed_once_and_counted(start_driver):
    driver = start_driver(
        """
        import os, time
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote(num_cpus=0)
        class Talker:
            def warm(self):
                return os.getpid()
            def say(self):
                print("all of us")
                print("one of us:", os.getpid())
        talkers = [Talker.remote() for _ in range(3)]
        tell("pids", ray.get([talker.warm.remote() for talker in talkers]))
        begin = time.monotonic()
        ray.get([talker.say.remote() for talker in talkers])
        ray.shutdown()  # when all has been printed
        tell("took", time.monotonic() - begin)
        """
    )
    pids = driver.expect("pids")
    took_s = driver.expect("took", timeout_s=60)
    out = driver.finish()
    assert sorted(int(pid) for pid in re.findall(r"one of us: (\d+)", out)) == sorted(pids)
    lines = re.findall(r"all of us(?: \[repeated (\d+)x across processes\])?$", out, re.M)
    assert sum(int(count or 1) for count in lines) == 3
    if took_s < 4:  # lines are counted together that come within five seconds
        assert lines == ["", "2"]


def test_output_of_a_crashing_worker_is_not_lost(start_driver):
    driver = start_driver(
        """
        import os
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote(max_retries=0)
        def last_words():
            os.write(1, b"last words without newline")
            os._exit(1)
        try:
            ray.get(last_words.remote())
        except ray.exceptions.WorkerCrashedError:
            tell("crashed")
        await_word()
        """
    )
    driver.expect("crashed")
    driver.expect_output(lambda line: "last words without newline" in line)
    driver.say("end")
    driver.finish()


def test_log_to_driver_can_be_switched_off(start_driver):
    driver = start_driver(
        """
        import ftray as ray
        ray.init(num_cpus=1, log_to_driver=False)
        @ray.remote
        def chatty():
            print("unwanted")
        ray.get(chatty.remote())
        """
    )
    assert "unwanted" not in driver.finish()


def test_a_driver_that_does_not_read_its_output_holds_up_nobody(start_driver):
    """Its standard output is a full pipe: forwarding must not block calls."""
    driver = start_driver(
        """
        import os
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def chatty(i):
            print("x" * 10_000)
            return i
        read, write = os.pipe()
        saved = os.dup(1)
        os.dup2(write, 1)
        ok = ray.get([chatty.remote(i) for i in range(100)], timeout=20) == list(range(100))
        os.dup2(saved, 1)
        os.close(read)
        print()  # what was stuck in the pipe may have left half a line behind
        tell("ok", ok)
        """
    )
    assert driver.expect("ok", timeout_s=30) is True
    driver.process.stdin.close()
    driver.finish(status=None)


# -- owner duties

SETUP = """
import sys, threading, time
import ftray as ray
from tests.helpers.sync import Sender
ray.init(num_cpus=2)
box = Sender(sys.argv[1])

@ray.remote
def step(x):
    return x + 1

@ray.remote
def post(box, value):
    box.post(value)

@ray.remote
def read(refs, box):
    box.post(len(ray.get(refs[0])))

@ray.remote
def warm():
    return 1
assert ray.get([warm.remote() for _ in range(10)]) == [1] * 10
"""

IDLING = {
    "time.sleep": "time.sleep(1000)",
    "python-loop": "while True: pass",
    "input": "sys.stdin.readline()",
    "thread-join": "t = threading.Thread(target=time.sleep, args=(1000,)); t.start(); t.join()",
}
idling = pytest.mark.parametrize("how", IDLING)


def idle_after(start_driver, mailbox, how, work):
    """Start a driver that submits ``work`` and never enters the runtime again."""
    driver = start_driver(f"{SETUP}\n{work}\ntell('idle')\n{IDLING[how]}\n", args=[mailbox.path])
    driver.expect("idle")
    return driver


def stop(driver):
    import signal

    driver.signal(signal.SIGKILL)
    driver.finish(status=None)
    driver.check_nothing_left()


@idling
def test_a_chain_of_tasks_finishes(how, start_driver, mailbox):
    """Each link is resolved by the owner, which is the idle driver."""
    work = """
ref = ray.put(0)
for _ in range(50):
    ref = step.remote(ref)
last = post.remote(box, ref)
"""
    driver = idle_after(start_driver, mailbox, how, work)
    assert mailbox.take() == 50
    stop(driver)


@idling
def test_many_queued_tasks_finish(how, start_driver, mailbox):
    driver = idle_after(start_driver, mailbox, how, "refs = [post.remote(box, i) for i in range(500)]")
    assert sorted(mailbox.take() for _ in range(500)) == list(range(500))
    stop(driver)


@idling
def test_borrowers_get_what_the_idle_driver_owns(how, start_driver, mailbox):
    work = """
small, large = ray.put(b"s" * 10), ray.put(b"l" * 1_000_000)
refs = [read.remote([ref], box) for ref in (small, large)]
"""
    driver = idle_after(start_driver, mailbox, how, work)
    assert sorted([mailbox.take(), mailbox.take()]) == [10, 1_000_000]
    stop(driver)


@idling
def test_crashed_tasks_are_retried(how, start_driver, mailbox, tally):
    work = f"""
from tests.helpers.sync import Tally
from tests.helpers.processes import crash
tally = Tally({tally.path!r})
@ray.remote
def shaky(box):
    if tally.bump() < 2:
        crash("sigkill")
    box.post("survived")
ref = shaky.remote(box)
"""
    driver = idle_after(start_driver, mailbox, how, work)
    assert mailbox.take() == "survived"
    stop(driver)


@idling
def test_actor_restarts_and_its_calls_are_retried(how, start_driver, mailbox, tally):
    work = f"""
from tests.helpers.sync import Tally
from tests.helpers.processes import crash
tally = Tally({tally.path!r})
@ray.remote(max_restarts=-1, max_task_retries=-1)
class Shaky:
    def call(self, box, value):
        if value == 5 and tally.bump() < 2:
            crash("sigkill")
        box.post(value)
actor = Shaky.remote()
refs = [actor.call.remote(box, i) for i in range(10)]
"""
    driver = idle_after(start_driver, mailbox, how, work)
    seen = [mailbox.take()]
    while seen[-1] != 9:
        seen.append(mailbox.take())
    assert set(seen) == set(range(10))
    stop(driver)


def test_memory_is_given_back_while_the_driver_idles(start_driver, mailbox):
    """Borrowed objects are freed by the idle owner; otherwise the small store would be full."""
    work = """
import numpy as np
@ray.remote
def churn(box):
    for i in range(100):
        ref = ray.put(np.zeros(2_000_000, dtype=np.uint8))
        assert len(ray.get(length.remote([ref]))) == 1
    box.post("churned")
@ray.remote
def length(refs):
    return [len(ray.get(refs[0]))]
ref = churn.remote(box)
"""
    source = SETUP.replace("num_cpus=2", "num_cpus=2, object_store_memory=100 * 2**20")
    driver = start_driver(f"{source}\n{work}\ntell('idle')\ntime.sleep(1000)\n", args=[mailbox.path])
    driver.expect("idle")
    assert mailbox.take(40) == "churned"
    stop(driver)
