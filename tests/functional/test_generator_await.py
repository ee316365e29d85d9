"""``async for`` over streams, in event loops of drivers, tasks and actors."""

from __future__ import annotations

import asyncio

import pytest

import ftray as ray
from tests.helpers.processes import crash
from tests.helpers.yielders import AsyncYielder, count, crash_at, endless, finish

pytestmark = pytest.mark.usefixtures("runtime")


async def values(generator):
    return [await ref async for ref in generator]


def test_async_for():
    assert asyncio.run(values(count.remote(5))) == [0, 1, 2, 3, 4]
    assert asyncio.run(values(count.remote(0))) == []
    assert sum(asyncio.run(values(count.remote(5_000)))) == sum(range(5_000))


def test_many_streams_in_one_loop():
    async def main():
        streams = [count.remote(n) for n in range(20)]
        return await asyncio.gather(*(values(stream) for stream in streams))

    assert asyncio.run(main()) == [list(range(n)) for n in range(20)]


def test_the_loop_runs_on_while_an_item_is_awaited(gate):
    @ray.remote
    def later(door):
        yield 1
        door.wait()
        yield 2

    async def main():
        generator = later.remote(gate)
        assert await (await anext_of(generator)) == 1
        waiting = asyncio.ensure_future(anext_of(generator))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.open()
        assert await (await waiting) == 2
        with pytest.raises(StopAsyncIteration):
            await generator.__anext__()

    asyncio.run(main())


async def anext_of(generator):
    return await generator.__anext__()


def test_cancelling_the_wait_leaves_the_stream(gate):
    @ray.remote
    def later(door):
        door.wait()
        yield "came"

    async def main():
        generator = later.remote(gate)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext_of(generator), 0.01)
        gate.open()
        return await values(generator)

    assert asyncio.run(main()) == ["came"]


def test_aclose(mailbox):
    async def main():
        generator = endless.options(_generator_backpressure_num_objects=1).remote(mailbox)
        assert await (await anext_of(generator)) == 0
        await generator.aclose()
        return await values(generator)

    assert asyncio.run(main()) == []
    while mailbox.take() != "closed":
        pass


def test_errors_and_deaths(tally):
    @ray.remote(max_retries=0)
    def dies():
        yield 1
        crash("sigkill")

    async def main():
        assert await values(crash_at.remote(tally, 6, 3)) == list(range(6))
        generator = dies.remote()
        assert await (await anext_of(generator)) == 1
        last = await anext_of(generator)
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            await last
        assert [ref async for ref in generator] == []

    asyncio.run(main())


def test_a_consumer_with_back_pressure(mailbox):
    async def main():
        generator = endless.options(_generator_backpressure_num_objects=2).remote(mailbox)
        for i in range(6):
            assert await (await anext_of(generator)) == i
        return generator

    finish(mailbox, asyncio.run(main()))


def test_a_stream_from_one_async_actor_to_another():
    @ray.remote
    class Relay:
        async def double(self, source, n):
            async for ref in source.numbers.remote(n):
                yield 2 * await ref

    source = AsyncYielder.remote()
    relay = Relay.remote()
    assert [ray.get(ref) for ref in relay.double.remote(source, 50)] == [2 * i for i in range(50)]


def test_an_async_generator_task_that_consumes_one():
    @ray.remote
    async def outer(n):
        async for ref in count.remote(n):
            yield await ref + 100

    assert [ray.get(ref) for ref in outer.remote(5)] == [100, 101, 102, 103, 104]
