"""casty on SQLite: calls of an actor whose state is written before the answer, from another process.

Run by `benchmarks.checkpoint` under a Python that has it (3.12 or newer). The program starts itself once
more as the node that has the actor.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass

from casty import ActorSystem, Askable, Client, Cluster, Context, actor
from casty.stores import SQL

IN_FLIGHT = 1000


@dataclass(frozen=True)
class Add(Askable[int]):
    pass


@actor(initial=0, durable="write")
async def counter(ctx: Context[int, Add]) -> None:
    async for message in ctx.inbox:
        await ctx.state.set(ctx.state.value + 1)
        message.reply_to.tell(ctx.state.value)


async def node(directory: str) -> None:
    """Serve until the standard input ends; say where."""
    async with (
        SQL(f"sqlite://{directory}/casty.sqlite?mode=rwc") as store,
        ActorSystem(cluster=Cluster(bind="127.0.0.1:0"), store=store) as system,
    ):
        print(system.node.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def measure(address: str, measure_s: float, in_flight: int) -> dict[str, float]:
    async with Client(seeds=(address,)) as client:
        one = client.ref(counter, "one")

        async def rate(step, per_step: int) -> float:
            await step()
            steps, begin_s = 0, time.perf_counter()
            while time.perf_counter() - begin_s < measure_s:
                await step()
                steps += 1
            return steps * per_step / (time.perf_counter() - begin_s)

        async def call() -> None:
            await one.ask(Add())

        async def batch() -> None:
            await asyncio.gather(*(one.ask(Add()) for _ in range(in_flight)))

        return {
            "durable call, synchronous": await rate(call, 1),
            f"durable calls, {in_flight:,} in flight": await rate(batch, in_flight),
        }


def main() -> None:
    directory, smoke = sys.argv[1], "--smoke" in sys.argv
    if "--node" in sys.argv:
        asyncio.run(node(directory))
        return
    command = [sys.executable, __file__, directory, "--node"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        found = asyncio.run(measure(address, 0.1 if smoke else 2.0, 100 if smoke else IN_FLIGHT))
        process.stdin.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
