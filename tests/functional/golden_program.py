"""A driver with exactly-once actors: run once, killed on its way, and its store kept as a golden file.

Run again over what it has left it must print what it would have printed then: what it drew by chance in its
first run is in the store and nowhere else.

python golden_program.py STORE first     (is killed)
python golden_program.py STORE again
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from typing import Any

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint import readonly

JOB, NAMESPACE = "golden-job", "golden"
STORE, FIRST = sys.argv[1], sys.argv[2] == "first"
HOST, BOOT = "golden-host", "0601de20-0000-4000-8000-000000000001"
LARGE = 70_000


def hide_machine() -> None:
    """What is kept says nothing of the machine that it was made on."""
    names = os.uname()
    there = os.uname_result((names.sysname, HOST, names.release, names.version, names.machine))
    os.uname = lambda: there
    from ftray.checkpoint import engine, generations, holders, rollback, snapshots  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith("ftray.checkpoint") and "boot_id" in vars(module):
            module.boot_id = lambda: BOOT  # type: ignore[attr-defined]


class Account(ray.Checkpointable, store=STORE, exactly_once=True, code_version=1, takeover=not FIRST):
    def __init__(self) -> None:
        self.balance = 0
        if FIRST:
            hide_machine()

    def add(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def overdraw(self, amount: int) -> None:
        self.balance -= amount
        raise ValueError(f"overdrawn by {amount}")

    def draw(self) -> int:
        drawn = self.record(lambda: random.randrange(1 << 30))
        self.balance += drawn % 7
        return drawn

    def both(self, data: bytes) -> tuple[int, bytes]:
        self.balance += len(data)
        return self.balance, data[::-1]

    @readonly
    def value(self) -> int:
        return self.balance


class Bank(ray.Checkpointable, store=STORE, exactly_once=True, code_version=1, takeover=not FIRST):
    def __init__(self) -> None:
        self.moves: list[Any] = []
        if FIRST:
            hide_machine()

    def move(self, amount: int) -> list[Any]:
        """Get, put, wait, and calls of others: all of it is recorded."""
        account = ray.get_actor("account")
        added, drawn = account.add.remote(ray.put(amount)), account.draw.remote()
        ready, _ = ray.wait([added, drawn], num_returns=2)
        self.moves.append([len(ready), *ray.get([added, drawn])])
        return self.moves[-1]

    def last(self) -> list[Any]:
        account = ray.get_actor("account")
        before = ray.get(account.draw.remote())
        if "GOLDEN_DRIVER" in os.environ:
            os.kill(int(os.environ["GOLDEN_DRIVER"]), signal.SIGKILL)  # and with it ends all that it started
            signal.pause()
        self.moves.append([before, ray.get(account.add.remote(1000))])
        return self.moves

    @readonly
    def all_moves(self) -> list[Any]:
        return self.moves


class Clerk(ray.Checkpointable, store=STORE, exactly_once=True, code_version=1, takeover=not FIRST):
    def __init__(self) -> None:
        self.drawn: list[int] = []
        if FIRST:
            hide_machine()

    async def gather(self) -> list[int]:
        account = ray.get_actor("account")
        self.drawn = await asyncio.gather(account.draw.remote(), account.draw.remote())
        return self.drawn


def main() -> dict[str, Any]:
    """Make all calls; their values."""
    if FIRST:
        os.environ["GOLDEN_DRIVER"] = str(os.getpid())
    ray.init(num_cpus=2, address="local", log_to_driver=False, job_key=JOB, namespace=NAMESPACE)
    account = ray.remote(Account).options(name="account", num_cpus=0).remote()
    bank = ray.remote(Bank).options(name="bank", num_cpus=0).remote()
    found: dict[str, Any] = {}
    found["add"] = ray.get([account.add.remote(10), account.add.remote(ray.put(5))])
    found["by key"] = ray.get(account.add.options(call_key="order-1").remote(7))
    try:
        ray.get(account.overdraw.remote(2))
    except ValueError as error:
        found["error"] = str(error).splitlines()[-1]
    balance, data = ray.get(account.both.options(num_returns=2).remote(bytes(LARGE)))
    found["both"] = [balance, len(data)]
    found["drawn"] = ray.get(account.draw.remote())
    found["move"] = ray.get(bank.move.remote(30))
    clerk = ray.remote(Clerk).options(name="clerk", num_cpus=0).remote()
    found["gathered"] = ray.get(clerk.gather.remote())
    found["last"] = ray.get(bank.last.remote())
    found["value"], found["moves"] = ray.get([account.value.remote(), bank.all_moves.remote()])
    found["outcome"] = checkpoint.outcome(account.add.options(call_key="order-1")).value
    ray.shutdown()
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
