"""Groups of Ray's own actors, and ``ftray checkpoint`` beside a Ray cluster.

What groups do in every phase is tested by tests/functional/test_checkpoint_group*.py with ``--engine=ray``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.ray import Checkpointable, readonly
from tests import ROOT
from tests.ray.checkpoint_support import Once, cluster, eventually, get, is_gone, kill, ray, ray_runs, store

__all__ = ["cluster", "ray_runs", "store"]

RESTARTING = {"max_restarts": -1, "max_task_retries": -1}


class Payer(Checkpointable):
    def __init__(self, opened: str = "", gate: str = "") -> None:
        self.sent = self.received = 0
        if opened and os.path.exists(opened):  # not the first time
            os.unlink(opened)
            eventually(lambda: os.path.exists(gate))
        elif opened:
            Path(opened).touch()

    def __getstate__(self) -> dict[str, int]:
        return {"sent": self.sent, "received": self.received}

    def send(self, other: Any) -> int:
        """Call, and go on."""
        self.sent += 1
        self.ref = other.receive.remote()
        return self.sent

    def pay(self, other: Any) -> int:
        self.sent += 1
        return int(ray.get(other.receive.remote()))

    def receive(self) -> int:
        self.received += 1
        return self.received

    @readonly
    def books(self) -> tuple[int, int, int]:
        return self.sent, self.received, os.getpid()


def books(*actors: Any) -> list[tuple[int, int]]:
    return [each[:2] for each in get([actor.books.remote() for actor in actors])]


@pytest.mark.limit(240)
@pytest.mark.short
def test_ray_s_actors_go_back_together(store: str) -> None:
    one, other = (ray.remote(**RESTARTING)(Payer).options(name=f"payer-{n}").remote() for n in "ab")
    group = checkpoint.group([one, other], name="payers")
    refs = [one.pay.remote(other) for _ in range(50)]
    cut = group.save()
    saved = checkpoint.open(store).load("_group/payers", cut)
    assert saved["tests/payer-a"]["sent"] == saved["tests/payer-b"]["received"]
    get(refs)
    assert books(one, other) == [(50, 0), (0, 50)]
    kill(get(other.books.remote())[2])
    eventually(lambda: group.generation == 2)
    done = saved["tests/payer-a"]["sent"]
    assert books(one, other) == [(done, 0), (0, done)]
    assert get(one.pay.remote(other)) == done + 1


@pytest.mark.limit(240)
def test_what_a_member_has_sent_that_is_taken_back_does_not_run(store: str, tmp_path: Path) -> None:
    opened, gate = str(tmp_path / "opened"), str(tmp_path / "gate")
    one = ray.remote(**RESTARTING)(Payer).options(name="past-a").remote()
    other = ray.remote(**RESTARTING)(Payer).options(name="past-b").remote(opened, gate)
    group = checkpoint.group([one, other], name="past")
    assert get(one.send.remote(other)) == 1
    eventually(lambda: books(other) == [(0, 1)])
    group.save()
    kill(get(other.books.remote())[2])
    eventually(lambda: not os.path.exists(opened))
    pid = get(one.books.remote())[2]
    assert get(one.send.remote(other)) == 2, "it waits at the process that opens, and takes its sender back"
    Path(gate).touch()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    assert books(one, other) == [(1, 0), (0, 1)]
    assert get(one.pay.remote(other)) == 2


@pytest.mark.limit(240)
def test_exactly_once_members_go_back_on_purpose_only(store: str) -> None:
    members = [ray.remote(Once).options(name=f"member-{n}").remote() for n in "ab"]

    @ray.remote
    def incr(actor: Any) -> int:
        return int(ray.get(actor.incr.remote()))  # in a flow of its own, which knows of no history

    group = checkpoint.group(members, name="members")
    assert get([incr.remote(member) for member in members]) == [1, 1]
    cut = group.save()
    assert get([incr.remote(member) for member in members]) == [2, 2]
    kill(get(members[0].pid.remote()))
    assert get([member.value.remote() for member in members]) == [2, 2]
    assert group.restore(cut) == cut
    assert get([incr.remote(member) for member in members]) == [2, 2]
    group.disband()


def ftray_checkpoint(*arguments: str) -> Any:
    """Run a command, as on a machine of the cluster; returns what it says as JSON."""
    address = ray.get_runtime_context().gcs_address
    path = [entry for entry in sys.path if entry and os.path.abspath(entry) != ROOT]
    done = subprocess.run(
        [sys.executable, "-m", "ftray", "checkpoint", *arguments, "--json"],
        env={
            **os.environ,
            "FTRAY_ENGINE": "ray",
            "RAY_ADDRESS": address,
            "PYTHONPATH": os.pathsep.join(path),
        },
        capture_output=True,
        timeout=100,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def end(actor: Any, pid: int, name: str) -> None:
    """Kill an actor for good, and wait until nothing of it is left."""
    ray.kill(actor)
    eventually(lambda: is_gone(name) and not os.path.exists(f"/proc/{pid}"))


@pytest.mark.limit(300)
@pytest.mark.parametrize("url", ["kv://cli", "{}"])
def test_commands(store: str, tmp_path: Path, url: str) -> None:
    """Every command finds what actors on Ray have written, also in the cluster's own store."""
    place, name = url.format(tmp_path / "elsewhere"), "told-kv" if url.startswith("kv") else "told"

    @ray.remote
    def asked(actor: Any, method: str) -> int:
        """Ask in a flow of its own, which knows of no history."""
        return int(ray.get(getattr(actor, method).remote()))

    class Told(Once, store=place, every=1000):
        pass

    actor = ray.remote(Told).options(name=name).remote()
    assert get([actor.incr.remote() for _ in range(3)])[-1] == 3
    snapshot = get(actor.checkpoint.remote())
    assert get(actor.incr.remote()) == 4
    (listed,) = ftray_checkpoint("ls", "--store", place)
    assert (listed["key"], listed["mode"], listed["state"]) == (f"tests/{name}", "exactly_once", "held")
    shown = ftray_checkpoint("show", name, "--store", place, "--live")
    assert shown["journal"]["calls"] == 1 and shown["live"]["calls"] == 4
    assert ftray_checkpoint("verify", "--store", place)
    target = str(tmp_path / "told.savepoint")
    ftray_checkpoint("export", name, target, "--store", place)
    end(actor, get(actor.pid.remote()), name)
    ftray_checkpoint("restore", name, snapshot, "--store", place, "--yes")
    again = ray.remote(Told).options(name=name).remote()
    assert get(asked.remote(again, "value")) == 3
    end(again, get(asked.remote(again, "pid")), name)
    ftray_checkpoint("rm", name, "--store", place, "--yes")
    assert ftray_checkpoint("ls", "--store", place) == []
