"""An actor whose store or disk does not answer starts no call beyond a bound in bytes, and goes on later."""

from __future__ import annotations

import os
import signal
import threading

import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint import journal
from ftray.checkpoint.actor import sessions
from ftray.checkpoint.stores.objects import TransientStoreError
from ftray.experimental import internal_kv as kv
from tests.helpers.processes import send_signal, state_of, wait_ended
from tests.helpers.sync import eventually

BOUND, SIZE, CALLS = 200_000, 30_000, 40
STARTED = BOUND // SIZE + 1


class Basin(ray.Checkpointable):
    def __init__(self):
        journal.MOST_WAITING_BYTES = BOUND
        self.numbers = []

    @checkpoint.readonly
    def pid_and_away(self, path):
        """From now on the medium answers nothing while there is a file at `path`."""
        once = sessions[id(self)].exactly_once
        if isinstance(once.journal, ray._core.journal.LocalJournal):
            threading.Thread(target=stall, args=(once.journal, path), daemon=True).start()
        else:
            medium = once.log.store._medium
            create = medium.create

            def fail(*arguments):
                if os.path.exists(path):
                    raise TransientStoreError("it is away")
                return create(*arguments)

            medium.create = fail
            open(f"{path}.ready", "w").close()
        return os.getpid()

    def add(self, number, data=b""):
        self.numbers.append(number)
        return number

    @checkpoint.readonly
    def seen(self):
        return list(self.numbers)

    @checkpoint.readonly
    def tell(self, path, size):
        with open(path, "ab") as file:
            file.write(b"x")
        return bytes(size)


class AsyncBasin(Basin):
    async def add(self, number, data=b""):
        return super().add(number, data)


def stall(local, path):
    eventually(lambda: os.path.exists(path))
    local.inject("file.journal.synced", "stall")
    open(f"{path}.ready", "w").close()
    eventually(lambda: not os.path.exists(path))
    local.release()


@pytest.fixture(params=["kv", "power", "kv-async", "power-async"])
def make_basin(request, runtime, tmp_path):
    """Makes an actor whose medium hangs; returns it, its process, and the file that keeps the medium away."""
    medium, _, is_async = request.param.partition("-")
    disk = {"store": tmp_path / "store", "durability": "power"}
    options = disk if medium == "power" else {"store": "kv://waiting"}

    class Made(AsyncBasin if is_async else Basin, exactly_once=True, every=10**6, **options):
        pass

    def make():
        actor = ray.remote(Made).remote()
        away = tmp_path / "away"
        pid = ray.get(actor.pid_and_away.remote(str(away)))
        ray.get([actor.add.remote(-n) for n in range(1, 10)])  # after those calls are not noted in the store
        away.touch()
        eventually(lambda: os.path.exists(f"{away}.ready"))
        return actor, pid, away

    yield make
    kv.delete("", del_by_prefix=True, namespace="ftray-checkpoint/waiting")


def filled(actor):
    """More calls than the bound lets start. What is asked last is answered when no further one starts."""
    refs = [actor.add.remote(n, bytes(SIZE)) for n in range(1, CALLS + 1)]
    found = checkpoint.status(actor)
    assert BOUND < found["journal_waiting_bytes"] <= BOUND + SIZE + 500
    assert found["journal_position"] - found["durable_position"] == STARTED
    assert ray.wait(refs, num_returns=1, timeout=0)[0] == []
    return refs


def test_calls_go_on_in_order_when_the_medium_answers(make_basin):
    actor, pid, away = make_basin()
    refs = filled(actor)
    seen = actor.seen.remote()
    before, after = (checkpoint.status(actor)["journal_position"] for _ in range(2))
    assert before == after
    away.unlink()
    assert ray.get(refs, timeout=60) == list(range(1, CALLS + 1))
    assert ray.get(seen)[9:] == list(range(1, CALLS + 1)), "a read keeps its place"
    assert checkpoint.status(actor)["journal_waiting_bytes"] == 0
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    assert ray.get(actor.seen.remote(), timeout=60)[9:] == list(range(1, CALLS + 1))


def test_each_runs_once_whatever_dies_meanwhile(make_basin):
    actor, pid, away = make_basin()
    refs = filled(actor)
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    away.unlink()
    assert ray.get(refs, timeout=60) == list(range(1, CALLS + 1))
    assert ray.get(actor.seen.remote())[9:] == list(range(1, CALLS + 1))


def test_the_actor_can_be_ended_meanwhile(make_basin):
    actor, pid, away = make_basin()
    refs = filled(actor)
    away.unlink()
    os.kill(pid, signal.SIGTERM)
    wait_ended([pid])
    assert ray.get(refs, timeout=60) == list(range(1, CALLS + 1))
    assert ray.get(actor.seen.remote())[9:] == list(range(1, CALLS + 1))


def test_r17_a_read_waits_for_calls_whose_turns_came_before_its_own(make_basin):
    actor, _, away = make_basin()
    refs = [actor.add.remote(1), actor.seen.remote()]
    checkpoint.status(actor)  # what has left by now came before this answer
    assert ray.wait(refs, num_returns=1, timeout=0)[0] == []
    away.unlink()
    assert ray.get(refs[1])[9:] == [1]


@pytest.mark.parametrize(
    ("make_basin", "is_async"), [("power", False), ("power-async", True)], indirect=["make_basin"]
)
def test_answers_of_reads_that_wait_are_bounded_too(make_basin, is_async, tmp_path):
    actor, pid, away = make_basin()
    told = tmp_path / "told"
    send_signal(pid, signal.SIGSTOP)
    eventually(lambda: state_of(pid) == "T", "it stops, and finds all of them at once")
    first = actor.add.remote(1)
    reads = [actor.tell.remote(str(told), 50_000) for _ in range(20)]
    send_signal(pid, signal.SIGCONT)
    assert checkpoint.status(actor)["journal_waiting_bytes"] < BOUND
    started = told.stat().st_size
    assert started == (20 if is_async else 4), "those of an event loop begin beside each other"
    reads += [actor.tell.remote(str(told), 50_000) for _ in range(20)]
    checkpoint.status(actor)
    assert told.stat().st_size == started
    away.unlink()
    assert [len(each) for each in ray.get(reads, timeout=60)] == [50_000] * 40 and ray.get(first) == 1


@pytest.mark.parametrize("make_basin", ["power"], indirect=True)
def test_a_cut_waits_for_calls_that_wait(make_basin, tmp_path):
    """No hold keeps them back: they were taken off the queue."""
    actor, _, away = make_basin()
    group, cuts = checkpoint.group([actor], name="basins"), []
    refs = filled(actor)
    saving = threading.Thread(target=lambda: cuts.append(group.save()))
    saving.start()
    away.unlink()
    saving.join(60)
    (state,) = checkpoint.open(tmp_path / "store").load("_group/basins", cuts[0]).values()
    assert state["numbers"][9:] == list(range(1, CALLS + 1)) == ray.get(refs, timeout=60)
