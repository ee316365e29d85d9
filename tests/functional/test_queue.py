"""Queue: bounds, time limits, batches, callers that are interrupted or cancelled, the death of its actor."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading

import pytest

import ftray as ray
from ftray.exceptions import ActorDiedError
from ftray.util.queue import Empty, Full, Queue
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote(num_cpus=0)
def consume(source, number, mailbox=None):
    if mailbox is not None:
        mailbox.post(os.getpid())
    return [source.get() for _ in range(number)]


@ray.remote(num_cpus=0)
def produce(target, items, mailbox=None):
    if mailbox is not None:
        mailbox.post("began")
    for item in items:
        target.put(item)


def waiting(source, what):
    """How many callers wait for items (``_filled``) or for room (``_emptied``)."""
    return ray.get(source.actor.count_waiting.remote(what))


@pytest.fixture(autouse=True)
def watched_actor(monkeypatch):
    from ftray.util import queue as module

    class WatchedActor(module._QueueActor):
        async def count_waiting(self, what):
            return len(getattr(self, what)._waiters)

    monkeypatch.setattr(module, "_QueueActor", WatchedActor)


def test_first_in_first_out_between_processes():
    line = Queue(maxsize=3)
    result = consume.remote(line, 50)
    produced = produce.remote(line, list(range(50)))

    assert ray.get(result) == list(range(50))
    assert ray.get(produced) is None
    assert (line.qsize(), line.size(), len(line), line.empty(), line.full()) == (0, 0, 0, True, False)


def test_a_full_and_an_empty_queue_say_so():
    line = Queue(maxsize=2)
    line.put(1)
    line.put_nowait(2)

    assert line.full()
    for put in (
        lambda: line.put(3, block=False),
        lambda: line.put_nowait(3),
        lambda: line.put(3, timeout=0.01),
    ):
        with pytest.raises(Full, match="maxsize=2") as caught:
            put()
        assert isinstance(caught.value, queue.Full)
    assert [line.get(), line.get_nowait()] == [1, 2]
    for get in (lambda: line.get(block=False), line.get_nowait, lambda: line.get(timeout=0.01)):
        with pytest.raises(Empty) as caught:
            get()
        assert isinstance(caught.value, queue.Empty)


def test_waiting_callers_are_served_in_their_order():
    line = Queue(maxsize=1)
    first = consume.remote(line, 1)
    eventually(lambda: waiting(line, "_filled") == 1)
    second = consume.remote(line, 1)
    eventually(lambda: waiting(line, "_filled") == 2)
    line.put("a")
    line.put("b")

    assert (ray.get(first), ray.get(second)) == (["a"], ["b"])


def test_a_producer_waits_for_room(mailbox):
    line = Queue(maxsize=1)
    line.put(0)
    producing = produce.remote(line, [1, 2], mailbox)
    assert mailbox.take() == "began"
    eventually(lambda: waiting(line, "_emptied") == 1)

    assert [line.get() for _ in range(3)] == [0, 1, 2]
    ray.get(producing)


def test_batches_are_all_or_nothing():
    line = Queue(maxsize=3)
    line.put_nowait_batch([1, 2])
    with pytest.raises(Full, match="no room for 2 more"):
        line.put_nowait_batch([3, 4])
    with pytest.raises(Empty, match="2 items, not 3"):
        line.get_nowait_batch(3)

    assert line.get_nowait_batch(0) == []
    assert line.get_nowait_batch(2) == [1, 2]
    Queue().put_nowait_batch(range(1000))


def test_more_callers_may_wait_than_actors_have_places():
    """With the thousand places of an async actor the put that would help them would wait too."""
    line = Queue()
    refs = [line.actor.get.remote(None) for _ in range(1500)]
    line.put_nowait_batch(range(1500))

    assert sorted(item for _there, item in ray.get(refs)) == list(range(1500))


def test_an_interrupted_caller_takes_no_item():
    line = Queue()

    def interrupt():
        eventually(lambda: waiting(line, "_filled") == 1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        line.get()
    thread.join()
    line.put("item")

    assert line.get(timeout=20) == "item"


def test_a_cancelled_getter_takes_no_item_and_passes_its_turn_on():
    line = Queue()
    refs = [line.actor.get.remote(None) for _ in range(3)]
    eventually(lambda: waiting(line, "_filled") == 3)
    ray.cancel(refs[0])
    eventually(lambda: waiting(line, "_filled") == 2)
    line.put("a")
    line.put("b")

    assert sorted(ray.get(refs[1:])) == [(True, "a"), (True, "b")]  # on Ray the three come in any order


def test_a_caller_whose_time_is_up_takes_no_item():
    line = Queue()
    with pytest.raises(Empty):
        line.get(timeout=0.001)
    line.put(1)

    assert line.get() == 1


def test_a_ref_is_replaced_by_its_value_and_nested_refs_stay():
    line = Queue()
    line.put(ray.put("value"))
    line.put([ray.put("inner")])

    assert line.get() == "value"
    assert ray.get(line.get()[0]) == "inner"


def test_a_queue_in_a_queue():
    outer, inner = Queue(), Queue()
    inner.put(5)
    outer.put(inner)
    del inner

    assert outer.get().get() == 5


def test_waiting_callers_learn_of_the_actors_death(mailbox):
    line = Queue()
    result = consume.remote(line, 1, mailbox)
    mailbox.take()
    eventually(lambda: waiting(line, "_filled") == 1)
    ray.kill(line.actor)

    with pytest.raises(ActorDiedError):
        ray.get(result)
    for call in (line.get, line.qsize, lambda: line.put(1), lambda: line.get_nowait_batch(1)):
        with pytest.raises(ActorDiedError):
            call()


def test_a_queue_that_may_restart_comes_back_empty():
    line = Queue(actor_options={"max_restarts": 1, "max_task_retries": 1, "name": "restarting queue"})
    line.put(1)
    actor = ray.get_actor("restarting queue")
    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    ray.kill(actor, no_restart=False)
    wait_ended([pid])

    assert line.qsize() == 0
    line.put(2)
    assert line.get() == 2


def test_shutdown_wakes_callers(mailbox):
    line = Queue(maxsize=1)
    getting = consume.remote(line, 1, mailbox)
    mailbox.take()
    eventually(lambda: waiting(line, "_filled") == 1)
    line.shutdown()

    with pytest.raises(Empty):
        ray.get(getting)
    with pytest.raises(RuntimeError, match="was shut down"):
        line.put(1)
    line.shutdown()


def test_forced_shutdown():
    line = Queue()
    ref = line.actor.get.remote(None)
    line.shutdown(force=True)

    with pytest.raises(ActorDiedError):
        ray.get(ref)


def test_shutdown_of_a_dead_queue():
    line = Queue()
    line.qsize()
    ray.kill(line.actor)
    line.shutdown()

    assert line.actor is None


def test_threads_share_a_queue():
    line, out = Queue(maxsize=2), []
    threads = [threading.Thread(target=lambda: out.append(line.get())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for item in range(5):
        line.put(item)
    for thread in threads:
        thread.join()

    assert sorted(out) == list(range(5))


@pytest.mark.parametrize("call", ["put", "get"])
def test_negative_timeouts(call):
    line = Queue()
    arguments = (1,) if call == "put" else ()
    with pytest.raises(ValueError, match="must be a number of seconds >= 0"):
        getattr(line, call)(*arguments, timeout=-1)


def test_bad_input():
    line = Queue()
    for wrong, kind in [("2", TypeError), (True, TypeError), (-1, ValueError)]:
        with pytest.raises(kind, match="num_items"):
            line.get_nowait_batch(wrong)
    for wrong in (5, "abc"):
        with pytest.raises(TypeError, match="takes several items"):
            line.put_nowait_batch(wrong)
    with pytest.raises(TypeError, match="maxsize must be an integer"):
        Queue("1")
    with pytest.raises(ValueError, match="no option of an actor"):
        Queue(actor_options={"max_restart": 1})


# --- from coroutines -------------------------------------------------------------------------------


def test_from_coroutines():
    async def use():
        line = Queue(maxsize=1)
        getting = asyncio.ensure_future(line.get_async())
        await line.put_async("a")
        assert await getting == "a"
        await line.put_async("b")
        with pytest.raises(Full):
            await line.put_async("c", block=False)
        with pytest.raises(Full):
            await line.put_async("c", timeout=0.01)
        assert await line.get_async(block=False) == "b"
        for options in ({"block": False}, {"timeout": 0.01}):
            with pytest.raises(Empty):
                await line.get_async(**options)
        with pytest.raises(ValueError, match="must be a number of seconds"):
            await line.get_async(timeout=-1)

    asyncio.run(use())


def test_a_coroutine_that_is_cancelled_takes_no_item():
    line = Queue()

    async def use():
        getting = asyncio.ensure_future(line.get_async())
        while ray.get(line.actor.count_waiting.remote("_filled")) == 0:
            await asyncio.sleep(0)
        getting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getting

    asyncio.run(use())
    line.put("item")
    assert line.get(timeout=20) == "item"


def test_a_coroutine_learns_of_the_actors_death():
    line = Queue()

    async def use():
        getting = asyncio.ensure_future(line.get_async())
        await asyncio.sleep(0)
        ray.kill(line.actor)
        with pytest.raises(ActorDiedError):
            await getting

    asyncio.run(use())


def test_an_async_actor_uses_a_queue():
    @ray.remote(num_cpus=0)
    class Relay:
        async def run(self, source, target, number):
            for _ in range(number):
                await target.put_async(await source.get_async())

    source, target = Queue(), Queue(maxsize=1)
    relay = Relay.remote()
    done = relay.run.remote(source, target, 5)
    source.put_nowait_batch(range(5))
    assert [target.get(timeout=20) for _ in range(5)] == list(range(5))
    ray.get(done)
