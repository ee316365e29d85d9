"""``ftrayd`` dies: open calls and later ones get ``HeadDiedError``; nothing hangs, nothing stays."""

from __future__ import annotations

import signal

import pytest

from tests.helpers import introspection, processes

SETUP = """
import os, signal, sys, threading
import ftray as ray
from tests.helpers.sync import Waiter
ray.init(num_cpus=2)

@ray.remote
def wait(path):
    Waiter(path).wait()

@ray.remote
class Actor:
    def ready(self):
        return True
    def wait(self, path):
        Waiter(path).wait()

path = sys.argv[1]
actor = Actor.remote()
assert ray.get(actor.ready.remote())
refs = [wait.remote(path) for _ in range(5)] + [actor.wait.remote(path)]
small, large = ray.put(1), ray.put(b"x" * 1_000_000)

def outcome(call):
    try:
        call()
        return "no error"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
"""

CALLS = {
    "get of a task": "ray.get(refs[0])",
    "get with timeout": "ray.get(refs[0], timeout=500)",
    "get of an actor call": "ray.get(refs[-1])",
    "get of several": "ray.get(refs)",
    "wait": "ray.get(ray.wait(refs)[0])",
}


def kill_node(driver):
    node = introspection.node_pid(driver.pid)
    processes.end(node)


@pytest.mark.parametrize("call", CALLS)
def test_open_calls_get_head_died_error(call, start_driver, gate):
    driver = start_driver(
        f'{SETUP}\ntell("open")\ntell("outcome", outcome(lambda: {CALLS[call]}))\n', args=[gate.path]
    )
    driver.expect("open")
    kill_node(driver)
    assert driver.expect("outcome", timeout_s=10).startswith("HeadDiedError")
    driver.finish(status=None)
    driver.check_processes_ended()


def test_open_calls_of_several_threads_all_get_it(start_driver, gate):
    driver = start_driver(
        f"""{SETUP}
outcomes = []
def wait_for(ref):
    outcomes.append(outcome(lambda: ray.get(ref)))
threads = [threading.Thread(target=wait_for, args=(ref,)) for ref in refs]
for thread in threads:
    thread.start()
tell("open")
for thread in threads:
    thread.join()
tell("outcomes", outcomes)
""",
        args=[gate.path],
    )
    driver.expect("open")
    kill_node(driver)
    outcomes = driver.expect("outcomes", timeout_s=10)
    assert len(outcomes) == 6 and all(text.startswith("HeadDiedError") for text in outcomes), outcomes
    driver.finish(status=None)
    driver.check_processes_ended()


def test_later_calls_raise_and_a_new_session_can_begin(start_driver, gate):
    driver = start_driver(
        f"""{SETUP}
tell("open")
outcome(lambda: ray.get(refs[0]))
calls = dict(
    task=lambda: ray.get(wait.remote(path)),
    actor=lambda: ray.get(Actor.remote().ready.remote()),
    call=lambda: ray.get(actor.ready.remote()),
    resources=lambda: ray.available_resources(),
    named=lambda: ray.get_actor("nobody"),
)
tell("later", {{name: outcome(call) for name, call in calls.items()}})
tell("the user is told to begin again", outcome(lambda: ray.get(refs[0])))
ray.shutdown()
ray.init(num_cpus=1)
tell("again", ray.get(Actor.remote().ready.remote()))
""",
        args=[gate.path],
    )
    driver.expect("open")
    kill_node(driver)
    later = driver.expect("later", timeout_s=10)
    assert {name for name, text in later.items() if not text.startswith("HeadDiedError")} == set(), later
    text = driver.expect("the user is told to begin again")
    assert "SIGKILL" in text or "init()" in text
    assert driver.expect("again") is True
    driver.finish()
    driver.check_processes_ended()


def test_workers_end_with_their_node_even_when_stopped(start_driver, gate):
    driver = start_driver(f'{SETUP}\ntell("open")\nawait_word()\n', args=[gate.path])
    driver.expect("open")
    workers = introspection.worker_pids(driver.pid)
    assert workers
    processes.send_signal(workers[0], signal.SIGSTOP)
    kill_node(driver)
    processes.wait_ended(workers)
    driver.say("end")
    driver.finish()
    driver.check_processes_ended()


def test_a_stopped_node_is_no_dead_node(start_driver, gate):
    """A node that the machine does not schedule for a while is no reason to give up."""
    driver = start_driver(
        f"""{SETUP}
tell("open")
await_word()
tell("ready", ray.get(Actor.options(num_cpus=0).remote().ready.remote()))
""",
        args=[gate.path],
    )
    driver.expect("open")
    node = introspection.node_pid(driver.pid)
    processes.send_signal(node, signal.SIGSTOP)
    driver.say("go")
    with pytest.raises(AssertionError, match="did not tell"):
        driver.expect("ready", timeout_s=1)
    processes.send_signal(node, signal.SIGCONT)
    assert driver.expect("ready") is True
    driver.finish()
    driver.check_nothing_left()


def test_actor_calls_in_progress_do_not_need_the_node(start_driver, gate):
    """Calls go straight from caller to actor: a stopped node does not hold them up."""
    driver = start_driver(
        f"""{SETUP}
other = Actor.options(num_cpus=0).remote()
assert ray.get(other.ready.remote())
tell("open")
await_word()
tell("calls", sum(ray.get([other.ready.remote() for _ in range(1000)])))
""",
        args=[gate.path],
    )
    driver.expect("open")
    node = introspection.node_pid(driver.pid)
    processes.send_signal(node, signal.SIGSTOP)
    driver.say("go")
    assert driver.expect("calls") == 1000
    processes.send_signal(node, signal.SIGCONT)
    driver.finish()
    driver.check_nothing_left()
