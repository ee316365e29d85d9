"""However a driver ends, nothing of it stays: no process, session directory, socket or shared memory."""

from __future__ import annotations

import os
import signal

import pytest

from tests.helpers import processes
from tests.helpers.sync import eventually

BUSY = """
import os, signal, sys, time
import ftray as ray
ray.init(num_cpus=2)

@ray.remote
def pid():
    return os.getpid()

@ray.remote
def forever():
    time.sleep(1000)

@ray.remote
class Actor:
    def pid(self):
        return os.getpid()
    def forever(self):
        time.sleep(1000)

actors = [Actor.remote(), Actor.options(name="named").remote()]
pids = ray.get([actor.pid.remote() for actor in actors])
big = ray.put(b"x" * 3_000_000)
refs = [forever.remote() for _ in range(3)] + [actors[0].forever.remote()]
tell("busy", pids)
"""

ENDINGS = {
    "normal": ("", 0),
    "shutdown": ("ray.shutdown()", 0),
    "exception": ("raise RuntimeError('the driver fails')", 1),
    "sys.exit": ("sys.exit(3)", 3),
    "os._exit": ("os._exit(4)", 4),
    "abort": (
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()",
        -signal.SIGABRT,
    ),
    "sigkill": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "sigterm": ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", -signal.SIGTERM),
    "exception-while-waiting": ("signal.alarm(1); ray.get(refs)", -signal.SIGALRM),
    "exec": ("os.execvp('true', ['true'])", 0),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_left(ending, start_driver):
    statement, status = ENDINGS[ending]
    driver = start_driver(f"{BUSY}\n{statement}\n")
    workers = driver.expect("busy")
    driver.finish(status)
    processes.wait_ended(workers)
    driver.check_nothing_left()


def test_killed_from_outside_while_it_waits(start_driver):
    driver = start_driver(f"{BUSY}\nray.get(refs)\n")
    driver.expect("busy")
    driver.signal(signal.SIGKILL)
    driver.finish(-signal.SIGKILL)
    driver.check_nothing_left()


def wait_until_it_waits(driver):
    driver.expect("waiting")
    eventually(lambda: processes.state_of(driver.pid) == "S", "the driver's main thread sleeps")


def test_interrupted_by_control_c_while_it_waits(start_driver):
    driver = start_driver(
        f"""{BUSY}
try:
    tell("waiting")
    ray.get(refs)
except KeyboardInterrupt:
    tell("interrupted")
tell("still works", ray.get(ray.put(1)))
"""
    )
    driver.expect("busy")
    wait_until_it_waits(driver)
    driver.signal(signal.SIGINT)
    driver.expect("interrupted")
    assert driver.expect("still works") == 1
    driver.finish()
    driver.check_nothing_left()


@pytest.mark.parametrize("call", ["ray.get(refs)", "ray.wait(refs)", "ray.get(refs, timeout=500)"])
def test_unhandled_control_c_ends_the_driver(call, start_driver):
    driver = start_driver(f"{BUSY}\ntell('waiting')\n{call}\n")
    driver.expect("busy")
    wait_until_it_waits(driver)
    driver.signal(signal.SIGINT)
    driver.finish(-signal.SIGINT)
    assert any("KeyboardInterrupt" in line for line in driver.err)
    driver.check_nothing_left()


def test_control_c_of_a_terminal_reaches_the_driver_only(start_driver):
    """A terminal signals the whole foreground process group; workers must not die of it on their own."""
    driver = start_driver(
        f"""{BUSY}
try:
    tell("waiting")
    ray.get(refs)
except KeyboardInterrupt:
    tell("interrupted")
tell("alive", ray.get([actors[1].pid.remote()]))
""",
        preexec=os.setpgrp,
    )
    pids = driver.expect("busy")
    wait_until_it_waits(driver)
    os.killpg(driver.pid, signal.SIGINT)
    driver.expect("interrupted")
    assert driver.expect("alive") == [pids[1]]
    driver.finish()
    driver.check_nothing_left()


def test_killed_in_the_middle_of_init(start_driver):
    """At whatever step: kill as soon as the first process exists."""
    driver = start_driver("import ftray as ray\ntell('go')\nray.init(num_cpus=2)\nawait_word()\n")
    driver.expect("go")
    eventually(driver.started, "the first process of the runtime")
    driver.signal(signal.SIGKILL)
    driver.finish(-signal.SIGKILL)
    driver.check_nothing_left()


def test_a_subprocess_of_a_worker_does_not_outlive_the_runtime_quietly(start_driver):
    """Workers' own children are adopted by the node, which ends them with the session."""
    driver = start_driver(
        """
        import subprocess
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def spawn():
            return subprocess.Popen(["sleep", "1000"]).pid
        tell("child", ray.get(spawn.remote()))
        """
    )
    child = driver.expect("child")
    driver.finish()
    processes.wait_ended([child])
    driver.check_nothing_left()


def test_driver_of_a_thread_that_ended(start_driver):
    """init() on a thread that ends: the runtime belongs to the process, not to the thread."""
    driver = start_driver(
        """
        import threading
        import ftray as ray
        thread = threading.Thread(target=lambda: ray.init(num_cpus=1))
        thread.start()
        thread.join()
        @ray.remote
        def one():
            return 1
        tell("sum", sum(ray.get([one.remote() for _ in range(20)])))
        """
    )
    assert driver.expect("sum") == 20
    driver.finish()
    driver.check_nothing_left()


def test_stale_session_directories_are_swept(start_driver, tmp_path):
    """A node that was killed cannot tidy up; the next session of the user does."""
    base = tmp_path / "base"
    env = {"FTRAY_TMPDIR": str(base)}
    first = start_driver(f"{BUSY}\nray.get(refs)\n", env=env)
    first.expect("busy")
    for pid in [first.pid, *first.started()]:
        processes.send_signal(pid, signal.SIGKILL)
    first.finish(-signal.SIGKILL)
    stale = set(base.glob("ftray-*/s-*"))
    second = start_driver("import ftray as ray\nray.init(num_cpus=1)\ntell('ready')\nawait_word()\n", env=env)
    second.expect("ready")
    eventually(lambda: not stale & set(base.glob("ftray-*/s-*")), "the stale directory goes")
    second.say("end")
    second.finish()
    second.check_nothing_left()
