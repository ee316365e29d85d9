"""``ref.future()``, and the end of a session, of ``ftrayd`` and of an owner while somebody awaits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import threading

import pytest

import ftray as ray
from tests.functional.test_await import LARGE, Echo, MineError, double, fail, held, held_and_counted, run
from tests.helpers import introspection, processes
from tests.helpers.sync import DEADLINE_S, eventually

runtime = pytest.mark.usefixtures("runtime")


# --- futures


@runtime
def test_a_future_has_the_value_or_the_error(gate):
    future = double.remote(4).future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(DEADLINE_S) == 8
    assert double.remote(b"x" * LARGE).future().result(DEADLINE_S) == b"x" * (2 * LARGE)
    assert ray.put(3).future().done()  # at once, when it is there
    error = fail.remote(gate).future()
    with pytest.raises(concurrent.futures.TimeoutError):
        error.result(0.01)
    gate.open()
    assert isinstance(error.exception(DEADLINE_S), MineError)
    with pytest.raises(ray.exceptions.RayTaskError):
        error.result()


@runtime
def test_many_futures_and_their_callbacks():
    actor = Echo.remote()
    got = []
    futures = [actor.echo.remote(i).future() for i in range(1000)]
    for future in futures:
        future.add_done_callback(lambda future: got.append(future.result()))
    assert concurrent.futures.wait(futures, DEADLINE_S).not_done == set()
    eventually(lambda: len(got) == 1000, "all callbacks")
    assert sorted(got) == list(range(1000))


@runtime
def test_a_callback_may_use_the_runtime():
    answers = concurrent.futures.Future()

    def chain(future):
        answers.set_result(ray.get(double.remote(future.result())))

    double.remote(1).future().add_done_callback(chain)
    assert answers.result(DEADLINE_S) == 4


@runtime
def test_a_cancelled_future_cancels_no_task(gate, tally):
    ref = held_and_counted.remote(gate, tally)
    first, second = ref.future(), ref.future()
    assert first.cancel() and first.cancelled()
    gate.open()
    assert second.result(DEADLINE_S) == "the value" == ray.get(ref)
    assert tally.count == 1


@runtime
def test_an_idle_board_of_futures_wakes_for_the_next_one(gate):
    """Also when the last open one was cancelled."""
    assert held.remote(gate, 1).future().cancel()
    for i in range(5):
        assert double.remote(i).future().result(DEADLINE_S) == 2 * i
    gate.open()


@runtime
def test_wrapped_futures_in_a_loop(gate):
    async def main():
        assert await asyncio.wrap_future(double.remote(2).future()) == 4
        late = held.remote(gate, "late")
        waiting = asyncio.wrap_future(late.future())
        waiting.cancel()
        done, pending = await asyncio.wait(
            [asyncio.wrap_future(double.remote(i).future()) for i in range(50)], timeout=DEADLINE_S
        )
        assert not pending and sorted(future.result() for future in done) == list(range(0, 100, 2))
        gate.open()
        assert await late == "late"

    run(main())


@ray.remote
def uses_future(x):
    return double.remote(x).future().result()


@ray.remote
def leaves_future_open(gate):
    held.options(num_cpus=0).remote(gate, 1).future()
    return double.remote(1).future().result()


@pytest.mark.runtime(num_cpus=1)
@runtime
def test_a_task_that_waits_on_a_future_lends_its_cpus(gate):
    assert ray.get(uses_future.remote(3), timeout=DEADLINE_S) == 6
    for _ in range(10):  # a future that is left open may lend the CPU while its task ends, not after that
        assert ray.get(leaves_future_open.remote(gate), timeout=DEADLINE_S) == 2
        assert ray.get([uses_future.remote(i) for i in range(5)], timeout=DEADLINE_S) == [0, 2, 4, 6, 8]
    gate.open()


@ray.remote(max_concurrency=3)
class Threaded:
    def future(self, x):
        return double.remote(x).future().result()

    def loop(self, x):
        async def main():
            return await double.remote(x)

        return asyncio.run(main())


@runtime
def test_threaded_actors():
    actor = Threaded.remote()
    refs = [actor.future.remote(i) for i in range(10)] + [actor.loop.remote(i) for i in range(10)]
    assert ray.get(refs, timeout=DEADLINE_S) == [2 * i for i in range(10)] * 2


def test_futures_need_no_asyncio(start_driver):
    driver = start_driver(
        """
        import sys
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def modules():
            return sorted(sys.modules)
        inside = modules.remote().future().result()
        assert "ftray._core.awaits" in sys.modules
        tell("modules", [inside, sorted(sys.modules)])
        ray.shutdown()
        """
    )
    inside, outside = driver.expect("modules")
    assert "asyncio" not in inside and "concurrent.futures" not in inside and "asyncio" not in outside
    driver.finish()


# --- owners, ftrayd and sessions that end


@runtime
def test_the_owner_dies_while_its_object_is_awaited(gate):
    owner = Promiser.remote()

    async def main():
        pid, (ref,) = await owner.promise.remote(gate)
        waiting, future = asyncio.ensure_future(ref), ref.future()
        await asyncio.sleep(0)
        processes.send_signal(pid, signal.SIGKILL)
        with pytest.raises(ray.exceptions.OwnerDiedError):
            await waiting
        with pytest.raises(ray.exceptions.OwnerDiedError):
            await asyncio.wrap_future(future)

    run(main())
    gate.open()


@ray.remote
class Promiser:
    def promise(self, gate):
        return os.getpid(), [held.remote(gate, "never")]


def outcomes_of(refs):
    """Await the refs in a loop on another thread, and have futures of them: names of what is raised."""
    futures = [ref.future() for ref in refs]
    ready, names = threading.Event(), []

    async def main():
        waiting = [asyncio.ensure_future(ref) for ref in refs]
        asyncio.get_running_loop().call_soon(ready.set)
        for one in await asyncio.gather(*waiting, return_exceptions=True):
            names.append(type(one).__name__)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(DEADLINE_S)

    def result():
        thread.join(DEADLINE_S)
        return names + [type(future.exception(DEADLINE_S)).__name__ for future in futures]

    return result


@pytest.mark.usefixtures("no_runtime")
def test_ftrayd_dies_while_somebody_awaits(gate):
    ray.init(num_cpus=2)
    refs = [held.remote(gate, 1), Echo.remote().wait.remote(gate)]
    result = outcomes_of(refs)
    processes.send_signal(introspection.node_pid(), signal.SIGKILL)
    names = result()
    assert len(names) == 4 and set(names) <= {"HeadDiedError", "ActorDiedError"}, names

    async def afterwards():
        with pytest.raises((ray.exceptions.HeadDiedError, ray.exceptions.ActorDiedError)):
            await refs[0]

    run(afterwards())
    assert isinstance(refs[0].future().exception(0), ray.exceptions.HeadDiedError)


@pytest.mark.usefixtures("no_runtime")
def test_shutdown_while_others_await(gate):
    ray.init(num_cpus=2)
    refs = [held.remote(gate, 1), Echo.remote().wait.remote(gate)]
    result = outcomes_of(refs)
    ray.shutdown()
    assert set(result()) == {"NotInitializedError"}
    assert not [thread for thread in threading.enumerate() if thread.name == "ftray-futures"]


@pytest.mark.usefixtures("no_runtime")
def test_one_loop_in_two_sessions(gate):
    """Descriptors of the first session, whose numbers are used again, do not disturb the second."""
    loop = asyncio.new_event_loop()
    for i in range(3):
        ray.init(num_cpus=2)
        stale = held.remote(gate, 1)

        async def main(stale=stale, i=i):
            assert [await double.remote(j) for j in range(20)] == list(range(0, 40, 2))
            waiting = asyncio.ensure_future(stale)
            await asyncio.sleep(0)
            ray.shutdown()
            with pytest.raises(ray.exceptions.NotInitializedError):
                await waiting
            if i == 1:
                ray.init(num_cpus=2)
                with pytest.raises(ray.exceptions.RaySystemError, match="session that has ended"):
                    await stale
                assert await double.remote(4) == 8
                ray.shutdown()

        loop.run_until_complete(main())
    loop.close()


@pytest.mark.usefixtures("no_runtime")
def test_a_session_ends_while_its_loop_stands_still(gate):
    """The loop is told when it runs again, in the next session."""
    loop = asyncio.new_event_loop()
    ray.init(num_cpus=2)
    waiting = loop.create_task(awaiting(held.remote(gate, 1)))
    loop.run_until_complete(asyncio.sleep(0))
    ray.shutdown()
    ray.init(num_cpus=2)
    assert loop.run_until_complete(awaiting(double.remote(2))) == 4
    with pytest.raises(ray.exceptions.RaySystemError):
        loop.run_until_complete(waiting)
    ray.shutdown()
    loop.close()


async def awaiting(ref):
    return await ref


FORKED = """
import asyncio, os
import ftray as ray
ray.init(num_cpus=1)
@ray.remote
def one():
    return 1
ref = one.remote()
async def awaiting():
    return await ref
async def before_and_in_the_fork():
    await one.remote()
    pid = os.fork()
    if pid == 0:
        for call in (lambda: awaiting().send(None), ref.future):
            try:
                call()
            except RuntimeError as error:
                tell("child", type(error).__name__)
        os._exit(0)
    os.waitpid(pid, 0)
    return await one.remote()
assert one.remote().future().result() == 1
assert asyncio.run(before_and_in_the_fork()) == 1
assert asyncio.run(awaiting()) == 1 == ref.future().result()
pid = os.fork()
if pid == 0:                    # with a loop and a board behind it, it ends as usual
    import gc
    gc.collect()
    raise SystemExit(0)
tell("status", os.waitpid(pid, 0)[1])
assert asyncio.run(before_and_in_the_fork()) == 1
ray.shutdown()
"""


def test_a_forked_child_cannot_await(start_driver):
    driver = start_driver(FORKED)
    for word, value in [("child", "ForkedProcessError")] * 2 + [("status", 0)] + [
        ("child", "ForkedProcessError")
    ] * 2:
        assert driver.expect(word) == value
    driver.finish()
    driver.check_nothing_left()


def test_the_runtime_ends_as_somebody_begins_to_wait(start_driver):
    """Between the look at the ref and the watch of the loop."""
    driver = start_driver(
        """
        import asyncio, signal
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def never():
            signal.pause()
        real = asyncio.get_running_loop
        def ending():
            asyncio.get_running_loop = real
            ray.shutdown()
            return real()
        async def main():
            ref = never.remote()
            asyncio.get_running_loop = ending
            try:
                await ref
            except ray.exceptions.RayError as error:
                tell(type(error).__name__)
        asyncio.run(main())
        """
    )
    driver.expect("NotInitializedError")
    driver.finish()


@pytest.mark.parametrize("what", ["await", "future", "thread"])
def test_the_interpreter_ends_while_somebody_waits(start_driver, what):
    driver = start_driver(
        f"""
        import asyncio, signal, threading
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def never():
            signal.pause()
        async def main(ref):
            waiting = asyncio.ensure_future(ref)
            await asyncio.sleep(0)
            return waiting
        what = {what!r}
        if what == "await":
            loop = asyncio.new_event_loop()
            kept = loop.run_until_complete(main(never.remote()))
            kept._log_destroy_pending = False
        elif what == "future":
            kept = never.remote().future()
        else:
            async def wait():
                try:
                    await never.remote()
                except ray.exceptions.RayError as error:
                    assert "ftray" in str(error)
            threading.Thread(target=lambda: asyncio.run(wait()), daemon=True).start()
        """
    )
    driver.finish()
    assert [line for line in driver.err if "never" not in line and "ResourceWarning" not in line] == []
    driver.check_nothing_left()
