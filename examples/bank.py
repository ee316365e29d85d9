"""Move money between accounts that are killed all the time, and never lose or make a cent.

Each account, and the bank that moves money between two of them, is an exactly-once actor: its calls are
journalled, and a call that is retried after a crash gives the reply that it gave before. So a transfer is
two plain calls, with no transaction around them, although any of the three processes may die at any
instant, also between the two.

    python examples/bank.py --transfers 600 --kills 12

Exit status 0 when every balance is that of a plain loop over the same transfers.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from typing import Any

import ftray as ray
from ftray.checkpoint import readonly

START = 1000
UNDER_WAY = 10  # transfers that are submitted between choosing whom to kill and the kill
ACCOUNTS = ["anna", "ben", "cleo", "dan"]


def make_classes(store: str) -> tuple[Any, Any]:
    """The actor classes; their journals and snapshots go to the directory `store`."""

    @ray.remote(num_cpus=0)
    class Account(ray.Checkpointable, store=store, exactly_once=True):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.balance = START

        def add(self, amount: int) -> int:
            if self.balance + amount < 0:
                raise ValueError(f"{-amount} cannot be taken from {self.balance}")
            self.balance += amount
            return self.balance

        @readonly
        def read(self) -> int:
            return self.balance

        @readonly
        def pid(self) -> int:
            return os.getpid()

    @ray.remote(num_cpus=0)
    class Bank(ray.Checkpointable, store=store, exactly_once=True):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.done = self.refused = 0

        def transfer(self, source: Any, target: Any, amount: int) -> bool:
            """Move the money if it is there. After a crash it goes on with what was answered so far."""
            try:
                ray.get(source.add.remote(-amount))
            except ValueError:
                self.refused += 1
                return False
            ray.get(target.add.remote(amount))
            self.done += 1
            return True

        @readonly
        def counts(self) -> tuple[int, int]:
            return self.done, self.refused

        @readonly
        def pid(self) -> int:
            return os.getpid()

    return Account, Bank


def kill(process: int) -> None:
    """End the process of a pidfd, as a crash would."""
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)


def plan(transfers: int, seed: int) -> list[tuple[str, str, int]]:
    dice = random.Random(seed)
    return [(*dice.sample(ACCOUNTS, 2), dice.randrange(1, 400)) for _ in range(transfers)]  # type: ignore[misc]


def by_hand(orders: list[tuple[str, str, int]]) -> tuple[dict[str, int], list[bool]]:
    """What the balances and the replies must be."""
    balances = dict.fromkeys(ACCOUNTS, START)
    replies = []
    for source, target, amount in orders:
        replies.append(balances[source] >= amount)
        if replies[-1]:
            balances[source] -= amount
            balances[target] += amount
    return balances, replies


def run(
    orders: list[tuple[str, str, int]], kills: int, seed: int, store: str
) -> tuple[dict[str, int], list[bool]]:
    """The same with actors, some of which are killed in between; balances and replies."""
    account_class, bank_class = make_classes(store)
    accounts = {name: account_class.options(name=name).remote() for name in ACCOUNTS}
    bank = bank_class.options(name="bank").remote()
    dice = random.Random(seed)
    victims = [bank, *accounts.values()]
    step = len(orders) // (kills + 1)
    due = {(i + 1) * step for i in range(kills)}
    replies = []
    for number, (source, target, amount) in enumerate(orders):
        if number in due:
            process = os.pidfd_open(ray.get(dice.choice(victims).pid.remote()))
        replies.append(bank.transfer.remote(accounts[source], accounts[target], amount))
        if number - UNDER_WAY in due:
            kill(process)
    answered = ray.get(replies)
    balances = {name: ray.get(account.read.remote()) for name, account in accounts.items()}
    done, refused = ray.get(bank.counts.remote())
    print(f"{done} transfers, {refused} refused, {kills} crashes")
    return balances, answered


def main() -> int:
    parser = argparse.ArgumentParser(description="Transfers between accounts that crash.")
    parser.add_argument("--transfers", type=int, default=600, help="how many (default 600)")
    parser.add_argument("--kills", type=int, default=12, help="crashes on the way (default 12)")
    parser.add_argument("--seed", type=int, default=1, help="of transfers and crashes (default 1)")
    arguments = parser.parse_args()
    if not 0 <= arguments.kills * 2 * UNDER_WAY < arguments.transfers:
        parser.error(f"--kills must be at least 0 and less than --transfers / {2 * UNDER_WAY}")

    orders = plan(arguments.transfers, arguments.seed)
    ray.init(num_cpus=2, log_to_driver=False)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bank-") as store:
        balances, replies = run(orders, arguments.kills, arguments.seed, store)
        ray.shutdown()
    right = (balances, replies) == by_hand(orders)
    print(", ".join(f"{name} {balance}" for name, balance in balances.items()))
    print(
        f"together {sum(balances.values())} of {START * len(ACCOUNTS)}, in {time.monotonic() - began_s:.1f} s"
    )
    print(
        "PASS: every cent is where it belongs"
        if right
        else "FAIL: the balances are not those of a plain loop"
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
