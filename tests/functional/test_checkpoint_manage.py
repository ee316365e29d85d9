"""Checkpoints from outside under the real runtime: figures through a handle, actors taken back, removal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint import CheckpointKeyInUseError, CheckpointRolledBackError, NoSessionError
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def make(store: Path, **options: Any) -> Any:
    @ray.remote
    class Counter(ray.Checkpointable, store=store, **options):
        def __init__(self) -> None:
            self.n = 0

        def incr(self, k: int = 1) -> int:
            self.n += k
            return self.n

        @checkpoint.readonly
        def value(self) -> int:
            return self.n

        @checkpoint.readonly
        def pid(self) -> int:
            return os.getpid()

    return Counter


def make_async(store: Path, **options: Any) -> Any:
    @ray.remote
    class Counter(ray.Checkpointable, store=store, **options):
        def __init__(self) -> None:
            self.n = 0

        async def incr(self, k: int = 1) -> int:
            self.n += k
            return self.n

    return Counter


def end(actor: Any) -> None:
    """Kill the actor for good and wait until it has ended."""
    pid = ray.get(actor.pid.remote())
    ray.kill(actor)
    wait_ended([pid])


@pytest.mark.parametrize("maker", [make, make_async])
@pytest.mark.parametrize("exactly_once", [False, True])
def test_an_actor_tells_its_figures_and_is_not_disturbed(maker: Any, exactly_once: bool, store: Path) -> None:
    actor = maker(store, exactly_once=exactly_once).options(name="told").remote()
    ray.get([actor.incr.remote() for _ in range(5)])
    snapshot = ray.get(actor.checkpoint.remote())
    found = checkpoint.status(actor)
    assert (found["key"], found["last_snapshot"], found["calls"]) == ("/told", snapshot, 5)
    assert found["mode"] == ("exactly_once" if exactly_once else "snapshot")
    assert found["bytes"]["snapshots"] >= found["size_bytes"] > 0 and found["failures"] == 0
    again = checkpoint.status(actor)
    assert again["calls"] == 5
    if exactly_once:
        assert again["journal_position"] == found["journal_position"] and again["journal_bytes"] > 0
    ray.kill(actor)


def test_verify_finds_readers_that_write(store: Path) -> None:
    class Lies(ray.Checkpointable, store=store, verify=True):
        def __init__(self) -> None:
            self.seen = 0

        @checkpoint.readonly
        def look(self) -> int:
            self.seen += 1
            return self.seen

        @checkpoint.readonly
        def honest(self, *items: int) -> int:
            return self.seen + sum(items)

    class AsyncLies(Lies):
        async def work(self) -> int:
            return 0

        @checkpoint.readonly
        async def look(self) -> int:  # type: ignore[override]
            self.seen += 1
            return self.seen

    for cls in (Lies, AsyncLies):
        actor = ray.remote(cls).remote()
        assert ray.get(actor.honest.remote(1, 2)) == 3
        with pytest.raises(checkpoint.ReadonlyChangedError, match=r"look is marked .*\['seen'\]: 0 and 1"):
            ray.get(actor.look.remote())
        ray.kill(actor)


def test_after_a_crash_the_recovery_is_among_them(store: Path) -> None:
    actor = make(store, exactly_once=True).options(name="recovered").remote()
    ray.get([actor.incr.remote() for _ in range(5)])
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    assert ray.get(actor.value.remote()) == 5
    found = checkpoint.status(actor)
    assert found["incarnation"] == 2
    assert (found["recoveries"][-1]["calls_replayed"], found["recoveries"][-1]["duration_s"] > 0) == (5, True)
    end(actor)


def test_an_actor_without_checkpoints_says_so() -> None:
    @ray.remote
    class Plain:
        pass

    with pytest.raises(NoSessionError, match="not Checkpointable"):
        checkpoint.status(Plain.remote())


def test_a_named_actor_is_taken_back(store: Path) -> None:
    Counter = make(store, exactly_once=True)

    @ray.remote
    def incr(actor: Any, k: int) -> int:
        return int(ray.get(actor.incr.remote(k)))

    actor = Counter.options(name="travels").remote()
    assert ray.get(incr.remote(actor, 1)) == 1
    snapshot = ray.get(actor.checkpoint.remote())
    assert ray.get(incr.remote(actor, 10)) == 11
    with pytest.raises(CheckpointKeyInUseError, match="held by a Counter in process"):
        checkpoint.restore(store, "/travels", snapshot)
    end(actor)
    assert checkpoint.restore(store, "/travels", snapshot).history_number == 2
    actor = Counter.options(name="travels").remote()
    assert ray.get(incr.remote(actor, 5)) == 6, "a caller that knows nothing of the old history"
    assert checkpoint.status(actor)["history_number"] == 2
    end(actor)


def test_a_caller_of_the_old_history_is_refused(store: Path) -> None:
    Counter = make(store, exactly_once=True)
    actor = Counter.options(name="refuses").remote()
    assert ray.get(actor.incr.remote()) == 1
    snapshot = ray.get(actor.checkpoint.remote())
    end(actor)
    checkpoint.restore(store, "/refuses", snapshot)
    actor = Counter.options(name="refuses").remote()
    with pytest.raises(CheckpointRolledBackError, match="given up"):
        ray.get(actor.incr.remote())
    ray.kill(actor)


def test_taken_from_a_living_actor_which_then_ends(store: Path) -> None:
    actor = make(store, exactly_once=True).options(name="taken").remote()
    ray.get(actor.incr.remote())
    snapshot = ray.get(actor.checkpoint.remote())
    pid = ray.get(actor.pid.remote())
    checkpoint.restore(store, "/taken", snapshot, takeover=True)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.incr.remote())
    wait_ended([pid])
    eventually(lambda: checkpoint.open(store).describe("/taken").state == "free", "the key to be free")


def test_begun_from_a_savepoint(store: Path, tmp_path: Path) -> None:
    first = make(store).options(name="first").remote()
    ray.get(first.incr.remote(7))
    ray.get(first.checkpoint.remote())
    checkpoint.export(store, "/first", tmp_path / "seven.savepoint")
    checkpoint.restore(store, "/second", savepoint=tmp_path / "seven.savepoint")
    second = make(store, restore="require").options(name="second").remote()
    assert ray.get([first.value.remote(), second.incr.remote()]) == [7, 8]
    end(first)
    end(second)


def test_delete(store: Path) -> None:
    actor = make(store, exactly_once=True).options(name="deleted").remote()
    ray.get(actor.incr.remote())
    with pytest.raises(CheckpointKeyInUseError):
        checkpoint.delete(actor)
    assert checkpoint.delete(actor, takeover=True) == "/deleted"
    assert checkpoint.open(store).keys() == []
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.incr.remote())


def test_an_unnamed_actors_key_is_no_orphan_while_its_session_lives(store: Path) -> None:
    actor = make(store, every=1).options(max_restarts=-1, max_task_retries=-1).remote()
    ray.get(actor.incr.remote())
    ray.get(actor.checkpoint.remote())
    (key,) = checkpoint.open(store).keys()
    info = checkpoint.open(store).describe(key)
    assert info.holder is not None and (info.state, info.orphan) == ("held", False)
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    assert not checkpoint.open(store).describe(key).orphan, "it is being restarted"
    assert ray.get(actor.value.remote()) == 1
    del actor
    eventually(lambda: not checkpoint.open(store).keys(), "the key to go with its actor")


def test_ls_asks_the_actors_whether_they_can_save(store: Path) -> None:
    pytest.importorskip("click")

    class Sated(ray.Checkpointable, store=store, every=1):
        def __init__(self) -> None:
            self.n = 0

        def incr(self) -> int:
            self.n += 1
            return self.n

        def save_checkpoint(self) -> Any:
            if self.n > 1:
                raise ValueError("nothing fits any more")
            return super().save_checkpoint()

        @checkpoint.readonly
        def pid(self) -> int:
            return os.getpid()

    actor = ray.remote(Sated).options(name="sated").remote()
    well = make(store).options(name="well", namespace="elsewhere").remote()
    unnamed = make(store).remote()
    assert ray.get([actor.incr.remote(), actor.incr.remote(), well.incr.remote(), unnamed.incr.remote()])
    eventually(lambda: checkpoint.status(actor)["failures"], "a save to fail")

    def run(*arguments: str) -> str:
        session = ray.nodes()[0]["session_dir"]
        command = [sys.executable, "-m", "ftray", "checkpoint", "ls", "--store", str(store), *arguments]
        done = subprocess.run(
            command, env={**os.environ, "FTRAY_ADDRESS": session}, capture_output=True, text=True, timeout=60
        )
        assert not done.returncode, done.stderr
        return done.stdout

    found = {row["key"]: row for row in json.loads(run("--live", "--json"))}
    assert found["/sated"]["live"]["state"] == "failing"
    assert "nothing fits any more" in found["/sated"]["live"]["last_error"]
    assert found["elsewhere/well"]["live"]["state"] == "ok"
    assert [row["live"] for key, row in found.items() if key.startswith("_unnamed/")] == [None]
    told = run("--live")
    assert "problem: /sated: " in told and "failing" in told and "nothing fits" not in run()
    for each in (actor, well, unnamed):
        end(each)
