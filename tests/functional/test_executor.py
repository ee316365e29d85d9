"""concurrent.futures and joblib on tasks."""

from __future__ import annotations

import concurrent.futures
import os
import threading

import joblib
import pytest

import ftray as ray
from ftray.exceptions import NotSupportedError, WorkerCrashedError
from ftray.util.concurrent import Executor
from ftray.util.joblib import register, register_ray

pytestmark = pytest.mark.usefixtures("runtime")


def square(x):
    return x * x


def test_the_contract_of_an_executor():
    with Executor() as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        assert executor._max_workers == 2  # the CPUs of the session
        assert executor.submit(pow, 2, 5).result() == 32
        assert executor.submit(lambda *, k: k, k=1).result() == 1
        assert list(executor.map(pow, [1, 2, 3], [2, 2, 2])) == [1, 4, 9]
        assert executor.submit(os.getpid).result() != os.getpid()
        futures = [executor.submit(square, x) for x in range(5)]
        assert sorted(f.result() for f in concurrent.futures.as_completed(futures)) == [0, 1, 4, 9, 16]
        assert concurrent.futures.wait(futures).not_done == set()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_arguments_with_unusual_names_and_refs():
    with Executor(1) as executor:
        assert executor.submit(dict, fn=1, self=2, args=3, kwargs=4).result() == {
            "fn": 1, "self": 2, "args": 3, "kwargs": 4,
        }  # fmt: skip
        assert executor.submit(square, ray.put(4)).result() == 16


def test_exceptions_have_the_remote_traceback():
    with Executor(1) as executor:
        error = executor.submit(lambda: 1 / 0).exception()

        assert type(error) is ZeroDivisionError
        assert "in <lambda>" in str(error.__cause__)
        with pytest.raises(TypeError, match="lock"):
            executor.submit(square, threading.Lock()).result()
        with pytest.raises(TypeError, match="lock"):
            executor.submit(threading.Lock).result()


def test_map_has_a_time_limit(gate):
    with Executor(1) as executor:
        results = executor.map(lambda door: door.wait(), [gate], timeout=0.01)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
        gate.open()


def test_cancel_before_the_start(gate, mailbox):
    def wait(box, door):
        box.post()
        door.wait()

    with Executor(1) as executor:
        running = executor.submit(wait, mailbox, gate)
        waiting = executor.submit(wait, mailbox, gate)
        mailbox.take()
        assert running.running() and not running.cancel()
        assert waiting.cancel() and waiting.cancelled()
        gate.open()
        assert running.result() is None
    assert mailbox.take_all() == []


def test_shutdown_can_drop_what_waits(gate, mailbox):
    def wait(box, door):
        box.post()
        door.wait()

    executor = Executor(1)
    running, waiting = (executor.submit(wait, mailbox, gate) for _ in range(2))
    mailbox.take()
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    gate.open()
    assert running.result(timeout=20) is None
    executor.shutdown()


def test_a_dead_worker_is_retried_then_reported(tally):
    def die_once(counter):
        if counter.bump() == 0:
            os._exit(1)
        return "survived"

    with Executor(1) as executor:
        assert executor.submit(die_once, tally).result(timeout=30) == "survived"
    with Executor(1, max_retries=0) as executor:
        with pytest.raises(WorkerCrashedError, match="_exit"):
            executor.submit(os._exit, 3).result(timeout=30)
        assert executor.submit(square, 3).result() == 9


def test_done_callbacks():
    said = threading.Event()
    with Executor(1) as executor:
        executor.submit(square, 2).add_done_callback(lambda future: said.set())
        assert said.wait(20)


def test_bad_input():
    for options, kind in [
        ({"num_returns": 2}, ValueError),
        ({"num_cpu": 1}, ValueError),
        ({"num_cpus": "1"}, TypeError),
        ({"label_selector": {"a": "b"}}, NotSupportedError),
    ]:
        with pytest.raises(kind):
            Executor(1, **options)
    with pytest.raises(ValueError, match="max_workers"):
        Executor(0)
    with Executor(1) as executor, pytest.raises(TypeError, match="takes a callable"):
        executor.submit(5)


# --- joblib ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "register_it"), [("ray", register_ray), ("ftray", register)])
def test_joblib_runs_on_tasks(name, register_it):
    register_it()
    with joblib.parallel_config(backend=name, n_jobs=2):
        pids = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(10))
        assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(30)) == [x * x for x in range(30)]
    assert os.getpid() not in pids


def test_joblib_with_all_cpus_options_and_a_generator():
    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=-1, ray_remote_args={"max_retries": 0}):
        assert joblib.effective_n_jobs(-1) == 2
        results = joblib.Parallel(return_as="generator")(joblib.delayed(square)(x) for x in range(5))
        assert list(results) == [0, 1, 4, 9, 16]


def test_joblib_errors():
    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=2):
        with pytest.raises(ZeroDivisionError):
            joblib.Parallel()(joblib.delayed(lambda x: 1 // x)(x) for x in (1, 0))
        assert joblib.Parallel()(joblib.delayed(square)(x) for x in range(3)) == [0, 1, 4]
    with joblib.parallel_config(backend="ray", n_jobs=0), pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.Parallel()(joblib.delayed(square)(x) for x in range(3))


def test_joblib_with_a_worker_that_dies():
    register_ray()
    config = joblib.parallel_config(backend="ray", n_jobs=2, ray_remote_args={"max_retries": 0})
    with config, pytest.raises(WorkerCrashedError):
        joblib.Parallel()(joblib.delayed(os._exit)(3) for _ in range(2))
