"""Stores that need a node: the internal key-value store and store actors, under the real runtime."""

from __future__ import annotations

import os
import signal

import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint.errors import CheckpointStoreError, UnsupportedStoreError
from ftray.checkpoint.stores import actor_objects, connect
from ftray.checkpoint.stores.objects import TransientStoreError
from ftray.experimental import internal_kv as kv
from tests.helpers.heads import Head
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually


def make_counter(url):
    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Counter(ray.Checkpointable, store=url, every=1, checkpoint_key="counter"):
        def __init__(self):
            self.n = 0

        def incr(self):
            self.n += 1
            return self.n

        @checkpoint.readonly
        def look(self):
            return self.n, os.getpid()

    return Counter.remote()


def survives_a_kill(url):
    counter = make_counter(url)
    assert ray.get([counter.incr.remote() for _ in range(3)])[-1] == 3
    ray.get(counter.checkpoint.remote())
    _, pid = ray.get(counter.look.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    n, successor = ray.get(counter.look.remote())
    assert n == 3 and successor != pid
    assert checkpoint.open(url).load("counter") == {"n": 3}
    ray.kill(counter)


@pytest.fixture
def emptied(runtime):
    yield
    for namespace in ("ftray-checkpoint/functional", actor_objects.NAMESPACE):
        kv.delete("", del_by_prefix=True, namespace=namespace)


@pytest.fixture
def holder(emptied):
    """Returns the store actor; it is gone at the end."""
    yield lambda: ray.get_actor("functional", namespace=actor_objects.NAMESPACE)
    ray.kill(ray.get_actor("functional", namespace=actor_objects.NAMESPACE))


def test_an_actor_whose_store_is_away_tells_so_meanwhile(emptied, tmp_path):
    @ray.remote
    class Tally(ray.Checkpointable, exactly_once=True, store="kv://functional", every=1000):
        def __init__(self):
            self.n = 0

        def incr(self):
            self.n += 1
            return self.n

        def goes_away_with(self, path):
            from ftray.checkpoint.actor import sessions

            medium = sessions[id(self)].log.store._medium
            create = medium.create

            def fail(*arguments):
                if os.path.exists(path):
                    raise TransientStoreError("it is away")
                return create(*arguments)

            medium.create = fail

    actor = Tally.remote()
    path = tmp_path / "away"
    ray.get(actor.goes_away_with.remote(str(path)))
    path.touch()
    answer = actor.incr.remote()
    eventually(lambda: checkpoint.status(actor)["state"] == "failing", "the outage to be told")
    found = checkpoint.status(actor)
    assert found["durable_position"] < found["journal_position"] and "it is away" in found["last_error"]
    assert ray.wait([answer], timeout=0)[0] == []
    path.unlink()
    assert ray.get(answer) == 1
    found = checkpoint.status(actor)
    assert (found["state"], found["last_error"], found["failures"]) == ("ok", None, 1)
    ray.kill(actor)


def kill_process_of(handle):
    pid = ray.get(handle.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])


def test_kv(emptied):
    survives_a_kill("kv://functional")
    store = connect("kv://functional")
    assert store.survives == {"process"}
    store.require_fencing("counter")
    assert store.usage("counter")["snapshots"] > 0
    with pytest.raises(UnsupportedStoreError, match="survives only: process"):
        connect("kv://functional").open_journal("counter", 1, 1, durability="power")


def test_exactly_once_in_kv(emptied):
    is_exactly_once("kv://functional")


def test_exactly_once_in_a_store_actor(holder, tmp_path):
    """What the journal writes is no output of the actor, which would wait for the journal."""
    is_exactly_once(f"actor://functional?spill={tmp_path}/held")


def test_a_store_actor_in_memory(holder):
    survives_a_kill("actor://functional")
    store = connect("actor://functional")
    assert store.survives == set()
    kill_process_of(holder())
    for action in (lambda: store.scan("counter"), lambda: connect("actor://functional").keys()):
        with pytest.raises(CheckpointStoreError, match="has died, and with it what it held"):
            action()


def test_a_store_actor_with_a_directory(holder, tmp_path):
    url = f"actor://functional?spill={tmp_path}/held"
    survives_a_kill(url)
    store = connect(url)
    assert store.survives == {"process", "power"}
    (tmp_path / "held" / ".tmp-left").write_bytes(b"half")
    kill_process_of(holder())
    assert checkpoint.open(url).load("counter") == {"n": 3}
    assert not (tmp_path / "held" / ".tmp-left").exists()
    store.remove("counter")
    assert store.keys() == [] and list((tmp_path / "held").iterdir()) == []


LARGE = 100_000  # bytes: arguments and replies of more than 64 KiB are blobs beside the journal


def make_ledger(url):
    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Ledger(ray.Checkpointable, store=url, exactly_once=True, checkpoint_key="ledger"):
        def __init__(self):
            self.seen = []

        def note(self, data):
            self.seen.append(len(data))
            return len(self.seen), data

        def forward(self, other, data):
            theirs, _ = ray.get(other.incr.remote(data))
            self.seen.append(len(data))
            return len(self.seen), theirs

        @checkpoint.readonly
        def look(self):
            return self.seen, os.getpid()

    return Ledger.remote()


@ray.remote
class Other:
    def __init__(self):
        self.n = 0

    def incr(self, data):
        self.n += 1
        return self.n, data


def is_exactly_once(url):
    """Kills between calls and during them: nothing is lost, and nothing done twice."""
    ledger, other = make_ledger(url), Other.remote()
    sizes = [LARGE if n % 5 == 2 else n for n in range(30)]
    refs = []
    for n, size in enumerate(sizes):
        if n % 10 == 5:
            _, pid = ray.get(ledger.look.remote(), timeout=20)
        refs.append(ledger.note.remote(bytes(size)))
        if n % 10 == 9:
            os.kill(pid, signal.SIGKILL)
            wait_ended([pid])
    assert ray.get(refs, timeout=20) == [(n + 1, bytes(size)) for n, size in enumerate(sizes)]
    seen, pid = ray.get(ledger.look.remote(), timeout=20)
    assert seen == sizes
    assert any(name.startswith("call-") for name in connect(url).list_blobs("ledger"))
    refs = [ledger.forward.remote(other, bytes(n)) for n in range(5)]
    assert ray.get(refs, timeout=20) == [(31 + n, 1 + n) for n in range(5)]
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    assert ray.get(ledger.note.remote(b""), timeout=20) == (36, b"")
    assert ray.get(other.incr.remote(b"")) == (6, b""), "a call that has ended is not made again"
    ray.kill(ledger)


PROGRAM = """
import ftray as ray
from ftray.checkpoint.stores import connect

ray.init()


@ray.remote
class Counter(ray.Checkpointable, store="kv://kept", checkpoint_key="counter", durability="power"):
    def __init__(self):
        self.n = 0

    def incr(self):
        self.n += 1
        return self.n


counter = Counter.remote()
n = ray.get(counter.incr.remote())
ray.get(counter.checkpoint.remote())
tell("saved", [n, sorted(connect("kv://kept").survives)])
"""


def test_kv_survives_the_head(start_driver, tmp_path):
    with Head(tmp_path / "head") as head:
        for expected, end in ((1, head.kill), (2, lambda: head.quick("stop"))):
            head.start()
            driver = start_driver(PROGRAM, env=head.env)
            assert driver.expect("saved") == [expected, ["head", "power", "process"]]
            driver.finish()
            end()
