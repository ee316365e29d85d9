"""``init`` and ``shutdown``: once, again, by itself, by address; imports and processes stay small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

import ftray as ray
from tests.helpers import introspection, processes

# What neither `import ftray` nor a worker may load.
HEAVY = (
    "asyncio",
    "numpy",
    "grpc",
    "rich",
    "pydantic",
    "logging.handlers",
    "multiprocessing",
    "google.protobuf",
)


@ray.remote
def square(x):
    return x * x


def test_init_shutdown_init(no_runtime):
    for _ in range(3):
        assert not ray.is_initialized()
        ray.init(num_cpus=1)
        assert ray.is_initialized()
        assert ray.get([square.remote(i) for i in range(10)]) == [i * i for i in range(10)]
        ray.shutdown()
        no_runtime.check_restored()


def test_functions_and_classes_are_usable_in_the_next_session(no_runtime):
    @ray.remote
    class Actor:
        def ping(self):
            return "pong"

    for _ in range(2):
        ray.init(num_cpus=1)
        assert ray.get(square.remote(3)) == 9
        assert ray.get(Actor.remote().ping.remote()) == "pong"
        ray.shutdown()


def test_shutdown_without_init_and_twice(no_runtime):
    ray.shutdown()
    ray.init(num_cpus=1)
    ray.shutdown()
    ray.shutdown()


def test_shutdown_with_work_in_flight(no_runtime, gate):
    @ray.remote
    def wait(door):
        door.wait()

    @ray.remote
    class Actor:
        def wait(self, door):
            door.wait()

    ray.init(num_cpus=2)
    refs = [wait.remote(gate) for _ in range(5)]
    actor = Actor.remote()
    refs.append(actor.wait.remote(gate))
    ray.shutdown()
    with pytest.raises(Exception, match="."):
        ray.get(refs[0], timeout=5)


def test_init_twice_is_an_error_unless_asked_for(no_runtime):
    ray.init(num_cpus=1)
    with pytest.raises(RuntimeError, match="ignore_reinit_error"):
        ray.init(num_cpus=1)
    ray.init(num_cpus=1, ignore_reinit_error=True)
    assert ray.get(square.remote(2)) == 4


def test_first_use_initialises(no_runtime):
    assert not ray.is_initialized()
    assert ray.get(square.remote(4)) == 16
    assert ray.is_initialized()


def test_put_initialises_too(no_runtime):
    assert ray.get(ray.put(1)) == 1
    assert ray.is_initialized()


@pytest.mark.parametrize(
    "options, word",
    [
        ({"num_cpus": -1}, "num_cpus"),
        ({"num_cpus": "two"}, "num_cpus"),
        ({"object_store_memory": 10}, "object_store_memory"),
        ({"resources": {"CPU": 1}}, "CPU"),
        ({"resources": {"widget": -1}}, "widget"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"address": "nonsense://nowhere"}, "address|nonsense"),
    ],
)
def test_wrong_options_of_init(no_runtime, options, word):
    with pytest.raises(Exception, match=word):  # which class, is up to the option
        ray.init(**options)
    assert not ray.is_initialized()


def test_a_session_directory_is_private(no_runtime):
    ray.init(num_cpus=1)
    (session,) = no_runtime.base.glob("ftray-*/s-*")
    for path in (session, session.parent):
        assert path.stat().st_mode & 0o777 == 0o700
    for path in session.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_driver_attaches_by_address(start_driver):
    first = start_driver(
        """
        import ftray as ray
        context = ray.init(num_cpus=2)
        @ray.remote
        class Store:
            def __init__(self):
                self.values = {}
            def set(self, key, value):
                self.values[key] = value
            def get(self, key):
                return self.values.get(key)
        store = Store.options(name="store", namespace="shared").remote()
        ray.get(store.set.remote("from", "first"))
        tell("address", context.address_info["address"])
        await_word()
        tell("second wrote", ray.get(store.get.remote("to")))
        ray.shutdown()
        """
    )
    address = first.expect("address")
    second = start_driver(
        """
        import sys
        import ftray as ray
        ray.init(address=sys.argv[1], namespace="shared")
        @ray.remote
        def square(x):
            return x * x
        store = ray.get_actor("store")
        tell("read", ray.get(store.get.remote("from")))
        tell("squares", ray.get([square.remote(i) for i in range(10)]))
        ray.get(store.set.remote("to", "it"))
        ray.shutdown()
        """,
        args=[address],
    )
    assert second.expect("read") == "first"
    assert second.expect("squares") == [i * i for i in range(10)]
    second.finish()
    # The node belongs to the first driver and goes on.
    first.say("go on")
    assert first.expect("second wrote") == "it"
    first.finish()
    first.check_nothing_left()


def test_the_work_of_a_driver_that_dies_goes_while_the_node_stays(start_driver, tmp_path):
    first = start_driver(
        """
        import ftray as ray
        from tests.helpers.sync import eventually
        context = ray.init(num_cpus=2)
        tell("address", context.address_info["address"])
        await_word()  # the process has ended; the node is told a little later
        tell("cpus", eventually(lambda: ray.available_resources().get("CPU") == 2))
        """
    )
    second = start_driver(
        """
        import os, signal, sys
        import ftray as ray
        ray.init(address=sys.argv[1])
        @ray.remote(num_cpus=1)
        class Actor:
            def pid(self):
                return os.getpid()
        actor = Actor.remote()
        tell("actor", ray.get(actor.pid.remote()))
        await_word()
        """,
        args=[first.expect("address")],
    )
    actor = second.expect("actor")
    second.signal(signal.SIGKILL)
    second.finish(-signal.SIGKILL)
    processes.wait_ended([actor])
    first.say("report")
    assert first.expect("cpus", timeout_s=30)
    first.finish()
    first.check_nothing_left()


# -- what is loaded


def modules_after(statement):
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_import_is_light():
    new = modules_after("import ftray") - modules_after("pass")
    assert not new & set(HEAVY)


def test_a_worker_loads_nothing_heavy(start_driver):
    driver = start_driver(
        """
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def modules():
            import sys
            return sorted(sys.modules)
        tell("modules", ray.get(modules.remote()))
        """
    )
    assert not set(driver.expect("modules")) & {"asyncio", "grpc", "rich", "pydantic", "google.protobuf"}
    driver.finish()


def test_the_driver_loads_nothing_heavy_by_running_tasks(start_driver):
    driver = start_driver(
        """
        import sys
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def one():
            return 1
        ray.get([one.remote() for _ in range(10)])
        tell("modules", sorted(sys.modules))
        """
    )
    assert not set(driver.expect("modules")) & {"asyncio", "numpy", "grpc", "rich", "pydantic"}
    driver.finish()


# -- processes and threads


@pytest.mark.usefixtures("runtime")
def test_the_zygote_has_one_thread():
    ray.get(square.remote(1))
    assert processes.thread_count(introspection.zygote_pid()) == 1


@pytest.mark.usefixtures("runtime")
def test_workers_run_user_code_on_their_main_thread():
    @ray.remote
    def where():
        return threading.current_thread() is threading.main_thread()

    assert ray.get(where.remote())


@pytest.mark.usefixtures("runtime")
def test_random_generators_are_seeded_anew_in_each_worker(mailbox, gate):
    @ray.remote(num_cpus=1)
    def draw(box, door):
        import random

        import numpy as np

        box.post()
        door.wait()  # so that the two run in two processes
        return os.getpid(), random.random(), float(np.random.random()), os.urandom(4).hex()

    refs = [draw.remote(mailbox, gate) for _ in range(2)]
    mailbox.take(), mailbox.take()
    gate.open()
    first, second = ray.get(refs)
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("runtime")
def test_workers_are_children_of_the_node():
    @ray.remote
    def parent():
        return os.getppid()

    assert ray.get(parent.remote()) == introspection.node_pid()


@pytest.mark.usefixtures("runtime")
def test_a_dead_zygote_is_replaced(mailbox, gate):
    @ray.remote(num_cpus=0)
    def occupy(box, door):
        box.post(os.getpid())
        door.wait()
        return os.getpid()

    running = occupy.remote(mailbox, gate)
    before = mailbox.take()
    zygote = introspection.zygote_pid()
    processes.end(zygote)
    refs = [occupy.remote(mailbox, gate) for _ in range(3)]
    later = {mailbox.take() for _ in refs}
    assert before not in later and len(later) == 3
    assert introspection.zygote_pid() != zygote
    gate.open()
    assert ray.get(running) == before
    assert set(ray.get(refs)) == later


@pytest.mark.usefixtures("runtime")
@pytest.mark.limit(90)
def test_a_stopped_worker_is_not_dead_but_ends_when_killed(mailbox, gate):
    @ray.remote(max_retries=1)
    def occupy(box, door):
        box.post(os.getpid())
        door.wait()
        return "done"

    ref = occupy.remote(mailbox, gate)
    pid = mailbox.take()
    os.kill(pid, signal.SIGSTOP)
    assert ray.wait([ref], timeout=0.5) == ([], [ref])
    os.kill(pid, signal.SIGKILL)
    assert mailbox.take() != pid
    gate.open()
    assert ray.get(ref) == "done"
