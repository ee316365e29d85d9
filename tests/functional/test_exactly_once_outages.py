"""An exactly-once actor whose store or disk does not answer: calls wait, and nothing is told early."""

from __future__ import annotations

import os
import threading

import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint.actor import sessions
from ftray.checkpoint.stores.objects import TransientStoreError
from ftray.experimental import internal_kv as kv
from tests.helpers.sync import eventually


class Basin(ray.Checkpointable):
    def __init__(self):
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

    def add(self, number):
        self.numbers.append(number)
        return number

    @checkpoint.readonly
    def seen(self):
        return list(self.numbers)


class AsyncBasin(Basin):
    async def add(self, number):
        return super().add(number)


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


def test_r17_a_read_waits_for_calls_whose_turns_came_before_its_own(make_basin):
    actor, _, away = make_basin()
    refs = [actor.add.remote(1), actor.seen.remote()]
    checkpoint.status(actor)  # what has left by now came before this answer
    assert ray.wait(refs, num_returns=1, timeout=0)[0] == []
    away.unlink()
    assert ray.get(refs[1])[9:] == [1]
