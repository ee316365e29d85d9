"""Exactly-once actors under the real runtime: whoever dies, state and replies are as if nobody had."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from typing import Any

import numpy as np
import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint.errors import CallCycleError, CallMismatchError, PoisonCallError
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def make_account(store, **options):
    class Account(ray.Checkpointable, store=store, exactly_once=True, **options):
        def __init__(self, balance=0):
            self.balance = balance
            self.seen = []

        def add(self, amount):
            self.balance += amount
            return self.balance

        def note(self, what):
            self.seen.append(what)
            return len(self.seen)

        def size_of(self, array):
            self.balance += array.size
            return np.full(array.size, self.balance)

        def overdraw(self, amount):
            self.balance -= amount
            if self.balance < 0:
                raise ValueError(f"overdrawn by {-self.balance}")
            return self.balance

        def lend(self):
            return [ray.put(1)]

        def die(self):
            os._exit(1)

        def die_or_add(self, path, amount):
            """Dies the first two times."""
            with open(path, "ab") as file:
                file.write(b"x")
                died = file.tell()
            if died <= 2:
                os._exit(1)
            return self.add(amount)

        def draw(self):
            return self.record(random.random)

        def transfer(self, other, amount):
            theirs = ray.get(other.add.remote(amount))
            self.balance -= amount
            return self.balance, theirs

        def call_back(self, other, me):
            return ray.get(other.transfer.remote(me, 1))

        @checkpoint.readonly
        def value(self):
            return self.balance

        @checkpoint.readonly
        def notes(self):
            return self.seen

        @checkpoint.readonly
        def each_note(self):
            yield from self.seen

        @checkpoint.readonly
        def status(self):
            return checkpoint.actor.sessions[id(self)].status()

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    return ray.remote(Account)


def kill(actor):
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])


@pytest.mark.parametrize("durability", ["process", "power"])
def test_kills_between_and_during_calls(store, durability):
    account = make_account(store, durability=durability, every=50).remote()
    refs = []
    for round_ in range(4):
        pid = ray.get(account.pid.remote())
        refs += [account.add.remote(1) for _ in range(150)]
        if round_ % 2:
            ray.get(refs[-70])
        os.kill(pid, signal.SIGKILL)
    assert ray.get(refs) == list(range(1, 601))
    assert ray.get(account.value.remote()) == 600


def test_an_error_is_a_reply_and_its_effect_stays(store):
    account = make_account(store).remote(10)
    with pytest.raises(ValueError, match="overdrawn by 5"):
        ray.get(account.overdraw.remote(15))
    kill(account)
    assert ray.get(account.value.remote()) == -5


def test_an_application_level_retry_is_another_call(store):
    account = make_account(store).remote(10)
    ref = account.overdraw.options(retry_exceptions=True, max_task_retries=2).remote(16)
    with pytest.raises(ValueError, match="overdrawn by 38"):
        ray.get(ref)
    assert ray.get(account.value.remote()) == -38
    kill(account)
    assert ray.get(account.value.remote()) == -38


def test_what_a_cancelled_method_has_called_is_not_retried(store, mailbox):
    """The exception for which it would have been is its outcome, and its caller's; also after a crash."""

    class Shop(ray.Checkpointable, store=store, exactly_once=True):
        def __init__(self):
            self.n = 0

        def refuse(self, mailbox):
            self.n += 1
            mailbox.post("refuses")
            here = ray.get_runtime_context()
            eventually(here.is_canceled)
            raise ValueError(f"refused {self.n} times")

        def order(self, other, mailbox):
            self.n += 1
            call = other.refuse.options(retry_exceptions=[ValueError], max_task_retries=-1)
            return ray.get(call.remote(mailbox))

        @checkpoint.readonly
        def asked(self):
            return self.n, os.getpid()

    made = ray.remote(num_cpus=0)(Shop)
    shop, other = made.remote(), made.remote()
    ref = shop.order.options(call_key="order").remote(other, mailbox)
    assert mailbox.take() == "refuses"
    ray.cancel(ref)
    with pytest.raises(ValueError, match="refused 1 times"):
        ray.get(ref, timeout=60)
    for actor in (shop, other):
        n, pid = ray.get(actor.asked.remote())
        assert n == 1
        os.kill(pid, signal.SIGKILL)
        wait_ended([pid])
    with pytest.raises(ValueError, match="refused 1 times"):
        ray.get(shop.order.options(call_key="order").remote(other, mailbox), timeout=60)
    assert [ray.get(actor.asked.remote())[0] for actor in (shop, other)] == [1, 1]


def test_a_task_that_is_run_again_repeats_nothing(store, tmp_path):
    account = make_account(store).remote()

    @ray.remote(max_retries=5)
    def pay(account, n, path):
        replies = []
        for i in range(n):
            replies.append(ray.get(account.add.remote(1)))
            if i == n // 2 and not os.path.exists(path):
                open(path, "w").close()
                os._exit(1)
        return replies

    replies = ray.get([pay.remote(account, 20, str(tmp_path / f"died-{i}")) for i in range(3)])
    assert sorted(reply for each in replies for reply in each) == list(range(1, 61))
    assert ray.get(account.value.remote()) == 60


def test_a_call_that_is_run_again_sees_its_identity(store, tmp_path):
    class Known(ray.Checkpointable, store=store, exactly_once=True):
        def who(self):
            return ray.get_runtime_context().get_call_id()

    known = ray.remote(Known).remote()

    @ray.remote(max_retries=2)
    def ask(known, path):
        own = ray.get_runtime_context().get_call_id()
        with open(path, "a") as file:
            print(own, *ray.get([known.who.remote(), known.who.remote()]), file=file)
        with open(path) as file:
            seen = file.read().splitlines()
        if len(seen) == 1:
            os._exit(1)
        return seen

    first, again = ray.get(ask.remote(known, str(tmp_path / "seen")))
    assert first == again and len(set(first.split())) == 3
    assert all(len(bytes.fromhex(each)) == 16 for each in first.split())
    assert ray.get(known.who.remote()) not in first


def test_a_task_that_goes_another_way_is_told(store, tmp_path):
    account = make_account(store).remote()
    path = str(tmp_path / "died")

    @ray.remote(max_retries=1)
    def waver(account):
        if not os.path.exists(path):
            ray.get(account.add.remote(1))
            open(path, "w").close()
            os._exit(1)
        return ray.get(account.add.remote(2))

    with pytest.raises(CallMismatchError):
        ray.get(waver.remote(account))
    assert ray.get(account.value.remote()) == 1


def test_callers_that_have_ended_are_forgotten(store):
    account = make_account(store).remote()

    @ray.remote
    def pay(account):
        return ray.get(account.add.remote(1))

    ray.get([pay.remote(account) for _ in range(20)])
    eventually(lambda: ray.get(account.status.remote())["callers"] <= 1)
    assert ray.get(account.value.remote()) == 20


def test_methods_that_call_other_actors(store):
    accounts = [make_account(store).options(name=f"b{i}").remote(100) for i in range(3)]
    rng, expected, refs, replies = random.Random(7), [100, 100, 100], [], []
    for i in range(120):
        a, b = rng.choice([(0, 1), (0, 2), (1, 2)])
        amount = rng.randrange(10)
        refs.append(accounts[a].transfer.remote(accounts[b], amount))
        if i % 20 == 10:
            os.kill(ray.get(accounts[i // 20 % 3].pid.remote()), signal.SIGKILL)
        # Calls of one caller to one actor keep their order; what others do meanwhile does not.
        replies.append(ray.get(refs[-1]))
        expected[a] -= amount
        expected[b] += amount
        assert replies[-1] == (expected[a], expected[b])
    assert ray.get([account.value.remote() for account in accounts]) == expected


def test_a_method_killed_at_each_step_of_a_transfer(store):
    one, other = (make_account(store).options(name=name).remote(50) for name in ("c1", "c2"))
    for _ in range(6):
        ref = one.transfer.remote(other, 1)
        for actor in (one, other):
            os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
        ray.get(ref)
    assert ray.get([one.value.remote(), other.value.remote()]) == [44, 56]


def test_large_arguments_and_replies(store):
    account = make_account(store).remote()
    array = np.arange(200_000)
    ref = ray.put(array)
    first = ray.get(account.size_of.remote(array))
    second = ray.get(account.size_of.remote(ref))
    assert first.size == second.size == 200_000 and second[0] == 400_000
    kill(account)
    assert ray.get(account.value.remote()) == 400_000


def test_recorded_values_are_the_same_after_a_crash(store):
    account = make_account(store).remote()
    drawn = [ray.get(account.draw.remote()) for _ in range(5)]
    assert len(set(drawn)) == 5
    kill(account)
    assert ray.get(account.value.remote()) == 0


def test_a_call_by_key_is_made_once(store):
    account = make_account(store).options(name="keyed").remote()
    order = account.note.options(call_key="order-17")
    assert ray.get([order.remote("a"), order.remote("a")]) == [1, 1]
    kill(account)
    assert ray.get(order.remote("a")) == 1
    assert ray.get(account.note.options(call_key="order-18").remote("b")) == 2
    with pytest.raises(CallMismatchError):
        ray.get(order.remote("another"))
    assert ray.get(account.notes.remote()) == ["a", "b"]


def test_a_call_that_kills_its_actor_is_given_up(store):
    account = make_account(store).remote(3)
    with pytest.raises(PoisonCallError):
        ray.get(account.die.remote())
    assert ray.get(account.add.remote(1)) == 4


def test_a_call_that_kills_twice_and_then_runs(store, tmp_path):
    account = make_account(store).remote(3)
    assert ray.get(account.die_or_add.remote(str(tmp_path / "deaths"), 2)) == 5


def test_a_chain_back_to_the_actor_is_refused(store):
    one, other = (make_account(store).options(name=name).remote(50) for name in ("d1", "d2"))
    with pytest.raises(CallCycleError):
        ray.get(one.call_back.remote(other, one))
    assert ray.get(one.value.remote()) == 50


def test_a_ref_cannot_be_a_reply(store):
    account = make_account(store).remote()
    with pytest.raises(TypeError, match="ObjectRef"):
        ray.get(account.lend.remote())


def test_a_key_has_one_living_holder(store):
    first = make_account(store, checkpoint_key="shared").remote(1)
    assert ray.get(first.add.remote(1)) == 2
    second = make_account(store, checkpoint_key="shared").remote(1)
    with pytest.raises(ray.exceptions.ActorDiedError, match="CheckpointKeyInUseError"):
        ray.get(second.add.remote(1))
    third = make_account(store, checkpoint_key="shared", takeover=True).remote(1)
    assert ray.get(third.add.remote(1)) == 3
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(first.add.remote(1))


def test_calls_through_the_methods_of_every_actor_are_replayed(store):
    account = make_account(store).remote(1)

    def double(self):
        self.balance *= 2
        return self.balance

    assert ray.get(account.__ray_call__.remote(double)) == 2
    kill(account)
    assert ray.get(account.add.remote(1)) == 3


def test_streaming_is_refused(store):
    account = make_account(store).remote()
    with pytest.raises(NotImplementedError, match="streaming"):
        ray.get(next(account.each_note.remote()))


def test_verify_tells_what_would_not_be_the_same(store):
    class Careless(ray.Checkpointable, store=store, exactly_once=True, verify=True):
        def __init__(self):
            self.n = 0

        def add(self, k):
            self.n += k
            return self.n

        def roll(self):
            self.n += random.random()
            return self.n

        @checkpoint.readonly
        def peek(self):
            self.n += 1

    careless = ray.remote(Careless).remote()
    assert ray.get(careless.add.remote(2)) == 2
    with pytest.raises(checkpoint.errors.ReplayDivergedError):
        ray.get(careless.roll.remote())
    with pytest.raises(checkpoint.errors.ReadonlyChangedError):
        ray.get(careless.peek.remote())
    assert ray.get(careless.add.remote(2)) == 4


def test_verify_waits_for_what_async_methods_await(store):
    class Careless(ray.Checkpointable, store=store, exactly_once=True, verify=True):
        def __init__(self):
            self.n, self.order = 0, []

        def save_checkpoint(self):
            return {"n": self.n, "order": self.order}

        def load_checkpoint(self, state):
            self.n, self.order = state["n"], state["order"]

        async def add(self, k, fail=False):
            before = self.n
            await asyncio.sleep(0)
            assert self.n == before, "nothing that changes the state runs beside it"
            self.n += k
            self.order.append(k)
            if fail:
                raise ValueError(f"as asked at {self.n}")
            return self.n, self.record(random.random)

        async def collect(self, other):
            got = await asyncio.gather(*(other.add.remote(k) for k in (1, 2)))
            self.n += sum(got)
            return got

        async def roll(self):
            await asyncio.sleep(0)
            self.n += random.random()

        @checkpoint.readonly
        async def look(self):
            await asyncio.sleep(0)
            return self.n, self.order

        @checkpoint.readonly
        async def peek(self):
            self.n += 1

    careless = ray.remote(Careless).remote()
    refs = [careless.add.remote(k) for k in range(5)] + [careless.look.remote()]
    assert [got[0] for got in ray.get(refs)] == [0, 1, 3, 6, 10, 10]
    with pytest.raises(ValueError, match="as asked at 13"):
        ray.get(careless.add.remote(3, fail=True))
    account = make_account(store).remote(100)
    assert ray.get(careless.collect.remote(account)) == [101, 103]
    assert ray.get(account.value.remote()) == 103, "what it called was called once"
    assert ray.get(careless.look.remote()) == (217, [0, 1, 2, 3, 4, 3])
    assert checkpoint.status(careless)["calls"] == 7 and ray.get(careless.checkpoint.remote())
    with pytest.raises(checkpoint.errors.ReplayDivergedError, match="Careless.roll does not do the same"):
        ray.get(careless.roll.remote())
    with pytest.raises(checkpoint.errors.ReadonlyChangedError, match="Careless.peek"):
        ray.get(careless.peek.remote())
    assert ray.get(careless.look.remote()) == (217, [0, 1, 2, 3, 4, 3])


def make_async(store):
    class Ledger(ray.Checkpointable, store=store, exactly_once=True):
        def __init__(self, others):
            self.others = others
            self.inside = self.most = self.total = 0

        def save_checkpoint(self):
            return {"most": self.most, "total": self.total}

        def load_checkpoint(self, state):
            self.most, self.total = state["most"], state["total"]

        async def collect(self, k):
            self.inside += 1
            self.most = max(self.most, self.inside)
            got = await asyncio.gather(*(other.add.remote(k) for other in self.others))
            self.inside -= 1
            self.total += k
            return got

        @checkpoint.readonly
        async def seen(self) -> Any:
            return self.most, self.total

        @checkpoint.readonly
        async def pid(self):
            return os.getpid()

    return ray.remote(Ledger)


def test_async_methods_run_alone_and_await(store):
    accounts = [make_account(store).options(name=f"e{i}").remote(0) for i in range(3)]
    ledger = make_async(store).options(name="ledger").remote(accounts)
    refs = []
    for i in range(40):
        refs.append(ledger.collect.remote(1))
        if i in (10, 25):
            os.kill(ray.get(ledger.pid.remote()), signal.SIGKILL)
        if i == 30:
            os.kill(ray.get(accounts[1].pid.remote()), signal.SIGKILL)
    assert ray.get(refs) == [[i, i, i] for i in range(1, 41)]
    assert ray.get(ledger.seen.remote()) == (1, 40)


DRIVER = """
import sys
import ftray as ray

class Counter(ray.Checkpointable, store={store!r}, exactly_once=True):
    def __init__(self):
        self.n = 0

    def add(self, k):
        self.n += k
        return self.n

ray.init(num_cpus=1, address="local"{job_key})
counter = ray.remote(Counter).options(name="counter", namespace="jobs").remote()
print("replies", [ray.get(counter.add.remote(k)) for k in range(1, {upto} + 1)], flush=True)
"""


@pytest.mark.parametrize(
    ("job_key", "second"),
    [("", [7, 9, 12, 16]), ("nightly", [1, 3, 6, 10])],
    ids=["a new run", "the same job"],
)
def test_a_driver_that_is_run_again(store, tmp_path, job_key, second):
    import subprocess
    import sys

    def run(upto):
        text = DRIVER.format(
            store=str(store), upto=upto, job_key=f", job_key={job_key!r}" if job_key else ""
        )
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True
        )
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("replies")]
        return line

    assert run(3) == "replies [1, 3, 6]"
    assert run(4) == f"replies {second}"


def test_one_that_has_lost_its_node_is_ended_before_the_next_begins(store, tmp_path):
    """It may only be stopped: it lives, and would go on beside its successor."""
    path = tmp_path / "predecessor"

    class Loses(ray.Checkpointable, exactly_once=True, store=store):
        def __init__(self):
            self.n = 0

        def lose(self, path):
            self.n += 1
            if os.path.exists(path):
                with open(path) as file:
                    return self.n, os.path.exists(f"/proc/{file.read()}")
            with open(path, "w") as file:
                file.write(str(os.getpid()))
            if os.fork() == 0:
                os.kill(os.getppid(), signal.SIGSTOP)
                for fd in map(int, os.listdir("/proc/self/fd")):
                    with contextlib.suppress(OSError):
                        socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
                os._exit(0)
            signal.pause()

    actor = ray.remote(Loses).remote()
    assert ray.get(actor.lose.remote(str(path)), timeout=60) == (1, False)
