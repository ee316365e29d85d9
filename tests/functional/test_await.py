"""``await ref`` in event loops of drivers, tasks and actors. (``ref.future()`` is in test_futures.py.)"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import selectors
import signal
import threading

import pytest

import ftray as ray
from tests.helpers import introspection, processes
from tests.helpers.sync import DEADLINE_S, Gate, eventually

runtime = pytest.mark.usefixtures("runtime")
LARGE = 300_000


@ray.remote
def double(x):
    return 2 * x


@ray.remote
def held(gate, value):
    gate.wait()
    return value


@ray.remote
def held_and_counted(gate, tally):
    tally.bump()
    gate.wait()
    return "the value"


@ray.remote
class Echo:
    def echo(self, x):
        return x

    def wait(self, gate):
        gate.wait()

    def own(self, value):
        return [ray.put(value)]

    def pid(self):
        return os.getpid()


class MineError(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code


@ray.remote(max_retries=0)
def fail(gate=None):
    if gate is not None:
        gate.wait()
    raise MineError(7)


async def soon(awaitable):
    """Await with a deadline that a hang would miss."""
    return await asyncio.wait_for(awaitable, DEADLINE_S)


def run(coroutine):
    return asyncio.run(soon(coroutine))


# --- values


@runtime
def test_values_of_tasks_actors_and_puts():
    async def main():
        actor = Echo.remote()
        assert await double.remote(4) == 8
        assert await ray.put("kept") == "kept"
        assert await actor.echo.remote("said") == "said"
        ref = double.remote(b"x" * LARGE)
        assert await ref == b"x" * (2 * LARGE)
        assert await ref == b"x" * (2 * LARGE)  # as often as one likes

    run(main())


@runtime
def test_a_large_array_is_not_copied():
    numpy = pytest.importorskip("numpy")
    ref = double.remote(numpy.ones(LARGE))

    async def main():
        return await ref

    array = run(main())
    assert not array.flags.writeable and array.sum() == 2 * LARGE


@runtime
@pytest.mark.parametrize("late", [False, True])
def test_an_error_arrives_as_with_get(gate, late):
    ref = fail.remote(gate if late else None)
    if not late:
        ray.wait([ref])

    async def main():
        task = asyncio.ensure_future(ref)
        await asyncio.sleep(0)
        gate.open()
        with pytest.raises(MineError) as caught:
            await task
        assert isinstance(caught.value, ray.exceptions.RayTaskError) and caught.value.code == 7

    run(main())


@runtime
def test_a_cancelled_task_is_no_cancelled_wait(gate):
    async def main():
        ref = held.remote(gate, 1)
        waiting = asyncio.ensure_future(ref)
        await asyncio.sleep(0)
        ray.cancel(ref)
        with pytest.raises(ray.exceptions.TaskCancelledError):
            await waiting
        assert not waiting.cancelled()

    run(main())


@runtime
def test_what_asyncio_offers_for_awaitables():
    async def main():
        assert inspect.isawaitable(double.remote(1))
        refs = [double.remote(i) for i in range(4)]
        assert await asyncio.gather(*refs) == [0, 2, 4, 6]
        assert await asyncio.gather(refs[1], refs[1]) == [2, 2]
        done, pending = await asyncio.wait([asyncio.ensure_future(ref) for ref in refs])
        assert sorted(task.result() for task in done) == [0, 2, 4, 6] and not pending
        assert [await first for first in asyncio.as_completed([refs[2].as_future()])] == [4]
        assert await asyncio.shield(refs[3]) == 6
        future = double.remote(5).as_future()
        assert isinstance(future, asyncio.Future) and await future == 10

    run(main())


@runtime
def test_awaiting_outside_of_a_loop(gate):
    async def main(ref):
        return await ref

    waiting = main(held.remote(gate, 1))
    with pytest.raises(RuntimeError, match=r"event loop.*ftray\.get"):
        waiting.send(None)
    ready = ray.put(3)
    with pytest.raises(StopIteration) as ended:  # what is there needs no loop
        main(ready).send(None)
    assert ended.value.value == 3


@runtime
def test_get_and_wait_inside_a_running_loop(recwarn):
    """As in a notebook."""

    async def main():
        ref = double.remote(1)
        assert ray.get(ref) == 2
        assert ray.wait([double.remote(1)], timeout=DEADLINE_S)[1] == []
        assert await double.remote(2) == 4

    run(main())
    assert not [w for w in recwarn if "ftray" in str(w.message)]


# --- one wake-up for a batch


class CountingSelector(selectors.DefaultSelector):
    wakeups = 0

    def select(self, timeout=None):
        events = super().select(timeout)
        self.wakeups += bool(events)
        return events


@runtime
def test_ten_thousand_answers_wake_the_loop_once_for_a_batch(gate):
    """All of them are settled by one event: the death of the actor that they wait for."""
    n = 10_000
    actor = Echo.remote()
    pid = ray.get(actor.pid.remote())
    refs = [actor.wait.remote(gate)] + [actor.echo.remote(i) for i in range(n - 1)]
    selector = CountingSelector()
    loop = asyncio.SelectorEventLoop(selector)

    async def main():
        waiting = asyncio.gather(*refs, return_exceptions=True)
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)  # each has been asked for
        before = selector.wakeups
        processes.send_signal(pid, signal.SIGKILL)
        got = await soon(waiting)
        return got, selector.wakeups - before

    got, wakeups = loop.run_until_complete(main())
    loop.close()
    assert {type(error) for error in got} == {ray.exceptions.ActorDiedError}
    assert wakeups < n / 4  # one for each would be n; how many batches there are is the scheduler's choice


@runtime
def test_many_answers_from_several_processes():
    async def main():
        actors = [Echo.remote() for _ in range(3)]
        refs = [actor.echo.remote(i) for i in range(1000) for actor in actors]
        refs += [double.remote(i) for i in range(1000)]
        got = await asyncio.gather(*refs)
        assert got == [i for i in range(1000) for _ in actors] + [2 * i for i in range(1000)]

    run(main())


# --- who stops waiting


@runtime
def test_a_wait_that_is_cancelled_cancels_nothing_else(gate, tally):
    ref = held_and_counted.remote(gate, tally)

    async def main():
        for _ in range(20):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(ref, 0.002)
        first, second = asyncio.ensure_future(ref), asyncio.ensure_future(ref)
        await asyncio.sleep(0)
        first.cancel()
        gate.open()
        assert await second == "the value"
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await ref == "the value"

    run(main())
    assert tally.count == 1


@runtime
def test_a_ref_that_only_the_wait_holds(gate):
    async def main():
        waiting = asyncio.ensure_future(held.remote(gate, b"x" * LARGE))
        await asyncio.sleep(0)
        gc.collect()
        gate.open()
        assert len(await waiting) == LARGE

    run(main())


@runtime
def test_what_nobody_awaits_any_more_is_freed(gate):
    """The borrower's wait ends, and with it its claim: the owner's memory comes back."""

    async def main():
        owner = Echo.remote()
        (ref,) = await owner.own.remote(b"x" * LARGE)
        later = double.remote([held.remote(gate, b"")])
        for pending in (later, ref):
            waiting = asyncio.ensure_future(pending)
            await asyncio.sleep(0)
            waiting.cancel()
        del ref, pending, waiting, later
        gate.open()
        return await owner.echo.remote("alive")

    assert run(main()) == "alive"
    eventually(lambda: introspection.counters()["entries"] == 0, "no entry is left")


def loop_descriptors():
    """How many descriptors of the kinds that a loop and what watches for it use."""
    return sum("event" in target for target in processes.descriptors().values())


@runtime
def test_a_loop_that_is_closed_before_the_answer(gate):
    refs = [held.remote(gate, i) for i in range(2)]
    before = loop_descriptors()
    loop = asyncio.new_event_loop()

    async def main():
        await refs[0]

    waiting = loop.create_task(main())
    loop.run_until_complete(asyncio.sleep(0, loop.create_task(main())))
    assert not waiting.done()
    loop.close()
    gate.open()
    assert ray.get(refs) == [0, 1]
    waiting._log_destroy_pending = False  # it is meant to be left behind
    del waiting, loop, main
    gc.collect()
    assert loop_descriptors() == before


# --- several loops, and threads that block beside them


@runtime
def test_loops_on_several_threads_beside_threads_in_get():
    """Whoever does the I/O, everybody is answered: a loop, a thread in get, or neither."""
    actor = Echo.remote()
    wrong = []

    async def awaits(base):
        for i in range(100):
            assert await actor.echo.remote(base + i) == base + i
        assert await asyncio.gather(*(actor.echo.remote(i) for i in range(100))) == list(range(100))

    def gets(base):
        for i in range(200):
            assert ray.get(actor.echo.remote(base + i)) == base + i

    def guarded(work):
        try:
            work()
        except BaseException as error:
            wrong.append(error)

    works = [lambda n=n: asyncio.run(awaits(1000 * n)) for n in range(3)] + [lambda: gets(7)]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    gets(9)
    asyncio.run(awaits(5))
    for thread in threads:
        thread.join(DEADLINE_S)
    assert wrong == [] and not any(thread.is_alive() for thread in threads)


@runtime
@pytest.mark.parametrize("first", ["get", "await"])
def test_a_thread_asleep_in_get_and_a_loop_do_not_take_each_others_answers(tmp_path, first):
    """The loop hears the bell and reads the answer of the sleeping thread, or the other way round."""
    gates = [Gate(tmp_path / name) for name in ("get", "await")]
    got = []
    # Both answers come from one process, so through one socket.
    actor = Echo.options(max_concurrency=2).remote()
    refs = [actor.wait.remote(gate) for gate in gates]
    thread = threading.Thread(target=lambda: got.append(ray.get(refs[0], timeout=DEADLINE_S)))
    thread.start()

    async def main():
        waiting = asyncio.ensure_future(refs[1])
        await asyncio.sleep(0.01)  # both are asleep, or nearly so: either way the result is the same
        if first == "await":
            gates[1].open()
            await waiting
            gates[0].open()
            await asyncio.to_thread(thread.join, DEADLINE_S)
        else:
            gates[0].open()
            await asyncio.to_thread(thread.join, DEADLINE_S)
            gates[1].open()
            await waiting

    run(main())
    assert got == [None]


# --- in workers


@ray.remote
def awaits_children(n):
    async def main():
        return await asyncio.gather(*(double.remote(i) for i in range(n)))

    return asyncio.run(main())


@ray.remote
def lends_and_leaves(gate):
    """Ends while its loop still waits."""

    async def main():
        waiting = asyncio.ensure_future(held.remote(gate, 1))
        await double.remote(1)  # which needs the CPU that this task lends
        return waiting.done()

    return asyncio.run(main())


@pytest.mark.runtime(num_cpus=1)
@runtime
def test_a_task_that_awaits_lends_its_cpus(gate):
    """There is one CPU: its children could never run."""
    assert ray.get(awaits_children.remote(5), timeout=DEADLINE_S) == [0, 2, 4, 6, 8]
    gate.open()
    assert ray.get(lends_and_leaves.remote(gate), timeout=DEADLINE_S) in (True, False)
    assert ray.get([double.remote(i) for i in range(20)], timeout=DEADLINE_S) == list(range(0, 40, 2))


@ray.remote
class Async:
    async def through(self, ref_in_list):
        return await ref_in_list[0]

    async def many(self, other, n):
        return sum(await asyncio.gather(*(other.echo.remote(i) for i in range(n))))

    async def fails(self):
        try:
            await fail.remote()
        except MineError as error:
            return error.code

    async def in_thread(self, gate, other):
        """A thread of this process sleeps in get while its loop does the I/O."""
        blocked = asyncio.to_thread(ray.get, held.remote(gate, "from the thread"))
        thread = asyncio.ensure_future(blocked)
        for i in range(50):
            assert await other.echo.remote(i) == i
        gate.open_from_afar()
        return await thread

    def plain(self, ref_in_list):
        return ref_in_list[0]

    async def blocking(self, gate):
        first = ray.get(double.remote(1))
        ray.get(double.remote(1))
        return first


@runtime
def test_async_methods_await(gate):
    actor, other = Async.remote(), Echo.remote()
    pending = held.remote(gate, b"x" * LARGE)
    waiting = [actor.through.remote([pending]) for _ in range(20)]
    assert ray.get(actor.many.remote(other, 500)) == sum(range(500))  # the others wait, the loop runs
    assert ray.get(actor.fails.remote()) == 7
    gate.open()
    assert {len(value) for value in ray.get(waiting)} == {LARGE}


class FarGate:
    """A pipe's worth of a gate: who has it may open it."""

    def __init__(self, path):
        self.path = str(path)
        os.mkfifo(self.path)

    def wait(self):
        with open(self.path) as file:
            file.read()

    def open_from_afar(self):
        with open(self.path, "w"):
            return


@runtime
def test_a_thread_of_an_async_actor_blocks_beside_its_loop(tmp_path):
    actor, other = Async.remote(), Echo.remote()
    gate = FarGate(tmp_path / "fifo")
    assert ray.get(actor.in_thread.remote(gate, other), timeout=DEADLINE_S) == "from the thread"


@runtime
def test_a_ref_that_a_method_returns_stays_a_ref(gate):
    inner = held.remote(gate, 1)
    outer = ray.get(Async.remote().plain.remote([inner]), timeout=DEADLINE_S)
    assert isinstance(outer, ray.ObjectRef)
    gate.open()
    assert ray.get(outer) == 1


def test_get_in_an_async_method_warns_once(start_driver):
    driver = start_driver(
        """
        import ftray as ray
        ray.init(num_cpus=2)
        @ray.remote
        def one():
            return 1
        @ray.remote
        class Async:
            async def block(self):
                return ray.get(one.remote())
            async def look(self):
                return ray.wait([one.remote()])[1]
        actor = Async.remote()
        assert ray.get([actor.block.remote() for _ in range(3)]) == [1] * 3
        assert ray.get(actor.look.remote()) == []
        ray.shutdown()
        """
    )
    driver.finish()
    text = "\n".join(driver.out + driver.err)
    assert text.count("inside an async actor blocks its event loop") == 1
    assert "asyncio.gather" in text
