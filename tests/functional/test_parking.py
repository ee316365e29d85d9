"""Actors whose recovery fails, or ends their process: tried again, and parked when it does not help."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint import CheckpointLoadError, CheckpointParkedError
from tests.helpers.counts import count_class
from tests.helpers.processes import wait_ended
from tests.helpers.sync import Tally, eventually

pytestmark = pytest.mark.usefixtures("runtime")
LONG_S = 60
ENDS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exited": lambda: os._exit(3),
}


def fragile(store: Path, **options: Any) -> Any:
    """An actor that cannot load its state as long as there is a file, in its first `tries` attempts.

    Its processes end as the file says; if it is empty, the load raises.
    """

    class Fragile(count_class(store, **options)):
        def __init__(self, starts: Any, broken: str, tries: int = 1000) -> None:
            super().__init__()
            self.broken = broken
            self.fails = starts.bump() <= tries

        def save_checkpoint(self) -> Any:
            return self.n

        def load_checkpoint(self, state: Any) -> None:
            if self.fails and os.path.exists(self.broken):
                with open(self.broken) as file:
                    how = file.read()
                if how:
                    ENDS[how]()
                raise ValueError("this state is not to my liking")
            self.n = state

    return ray.remote(max_restarts=-1, max_task_retries=-1)(Fragile)


def end(actor: Any) -> None:
    pid = ray.get(actor.pid.remote(), timeout=LONG_S)
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])


def causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


def why_dead(actor: Any) -> Any:
    with pytest.raises(ray.exceptions.ActorDiedError) as caught:
        ray.get(actor.add.remote(), timeout=LONG_S)
    return caught.value


@pytest.mark.parametrize("exactly_once", [True, False])
def test_three_failures_park_and_everybody_is_told(tmp_path: Path, tally: Tally, exactly_once: bool) -> None:
    store, broken = tmp_path / "store", tmp_path / "broken"
    remote = fragile(store, exactly_once=exactly_once).options(name="fragile")
    actor = remote.remote(tally, str(broken), 99)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 1
    ray.get(actor.checkpoint.remote(), timeout=LONG_S)
    broken.touch()
    end(actor)
    error = why_dead(actor)
    assert "it could not be restored" in str(error) and "parked" in str(error)
    kinds = [type(cause) for cause in causes(error)]
    assert kinds[-3:] == [CheckpointParkedError, CheckpointLoadError, ValueError]
    assert tally.count == 4, "the first process, and three that failed"
    found = checkpoint.status(actor)
    assert (found["state"], found["key"]) == ("parked", "/fragile")
    assert "not to my liking" in found["last_error"] and len(found["failed_recoveries"]) == 3
    assert found["bytes"]["snapshots"] > 0
    info = checkpoint.open(store).describe("/fragile")
    assert info.state == "parked" and info.failed_recoveries == found["failed_recoveries"]
    broken.unlink()
    again = eventually(lambda: named_again(remote, tally, broken), "the name")
    assert ray.get(again.add.remote(), timeout=LONG_S) == 2
    eventually(lambda: not checkpoint.open(store).describe("/fragile").failed_recoveries, "all is forgotten")
    ray.kill(again)


def named_again(remote: Any, tally: Tally, broken: Path) -> Any:
    try:
        return remote.remote(tally, str(broken), 99)
    except ValueError:
        return None


@pytest.mark.parametrize("exactly_once", [False, True])
@pytest.mark.parametrize("end_", ["crashed", "exited"])
def test_a_load_that_ends_every_process_parks(
    tmp_path: Path, tally: Tally, end_: str, exactly_once: bool
) -> None:
    trap = tmp_path / "trap"
    actor = fragile(tmp_path / "store", every=1, exactly_once=exactly_once).remote(tally, str(trap))
    ray.get(actor.add.remote(), timeout=LONG_S)
    ray.get(actor.checkpoint.remote(), timeout=LONG_S)
    trap.write_text(end_)
    end(actor)
    error = why_dead(actor)
    assert "the process that restored it ended itself" in str(error)
    assert "SIGSEGV" in str(error) if end_ == "crashed" else "3" in str(error)
    assert "CheckpointParkedError" in {type(c).__name__ for c in causes(error)}
    assert tally.count == 5, "the first, three that died, and one that did not try"
    found = checkpoint.status(actor)
    assert found["state"] == "parked" and len(found["failed_recoveries"]) == 3


def test_loads_that_others_end_do_not(tmp_path: Path, tally: Tally) -> None:
    trap = tmp_path / "trap"
    actor = fragile(tmp_path / "store", every=1).remote(tally, str(trap), tries=6)
    ray.get(actor.add.remote(), timeout=LONG_S)
    ray.get(actor.checkpoint.remote(), timeout=LONG_S)
    trap.write_text("killed")
    end(actor)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 2
    assert tally.count == 8


def test_the_third_attempt_may_succeed(tmp_path: Path, tally: Tally) -> None:
    broken = tmp_path / "broken"
    actor = fragile(tmp_path / "store").remote(tally, str(broken), 2)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 1
    ray.get(actor.checkpoint.remote(), timeout=LONG_S)
    broken.touch()
    end(actor)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 2
    assert tally.count == 4


def test_the_last_restart_tells_the_cause(tmp_path: Path, tally: Tally) -> None:
    broken = tmp_path / "broken"
    actor = fragile(tmp_path / "store").options(max_restarts=1).remote(tally, str(broken), 99)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 1
    ray.get(actor.checkpoint.remote(), timeout=LONG_S)
    broken.touch()
    end(actor)
    error = why_dead(actor)
    assert "could not be restored" in str(error) and CheckpointLoadError in map(type, causes(error))
    assert tally.count == 2


def test_what_an_actor_without_a_name_has_saved_stays(tmp_path: Path, tally: Tally) -> None:
    store, broken = tmp_path / "store", tmp_path / "broken"
    actor = fragile(store).remote(tally, str(broken), 99)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 1
    ray.get(actor.checkpoint.remote(), timeout=LONG_S)
    broken.touch()
    end(actor)
    assert "checkpoint.export" in str(why_dead(actor))
    (key,) = checkpoint.open(store).keys()
    assert checkpoint.open(store).load(key) == 1
    checkpoint.export(store, key, tmp_path / "saved")
    checkpoint.restore(store, "/rescued", savepoint=tmp_path / "saved")
    broken.unlink()
    rescued = fragile(store).options(name="rescued").remote(tally, str(broken), 99)
    assert ray.get(rescued.add.remote(), timeout=LONG_S) == 2
    ray.kill(rescued)


def test_what_is_not_tried_again(tmp_path: Path, tally: Tally) -> None:
    needy = fragile(tmp_path / "store", restore="require").remote(tally, "", 0)
    assert "CheckpointNotFoundError" in str(why_dead(needy))
    assert tally.count == 1
    first = fragile(tmp_path / "store", exactly_once=True, checkpoint_key="one").remote(tally, "", 0)
    assert ray.get(first.add.remote(), timeout=LONG_S) == 1
    second = fragile(tmp_path / "store", exactly_once=True, checkpoint_key="one").remote(tally, "", 0)
    assert "CheckpointKeyInUseError" in str(why_dead(second))
    assert tally.count == 3


def deadly(store: Path, is_async: bool = False) -> Any:
    """An actor whose `add` ends its process, in the way that is in the file `trap`, if `traps` says so."""

    class Deadly(ray.Checkpointable, store=store, exactly_once=True, every=1000):
        def __init__(self, starts: Any, trap: str, traps: dict[int, int]) -> None:
            self.n = 0
            self.config = starts.bump(), trap, traps

        def save_checkpoint(self) -> Any:
            return self.n

        def load_checkpoint(self, state: Any) -> None:
            self.n = state

        def _step(self) -> int:
            start, trap, traps = self.config
            self.n += 1
            if os.path.exists(trap) and traps.get(start, traps.get(-1)) == self.n:
                ENDS[Path(trap).read_text()]()
            return self.n

        def add(self) -> int:
            return self._step()

        @checkpoint.readonly
        def pid(self) -> int:
            return os.getpid()

    class Slow(Deadly):
        async def add(self) -> int:  # type: ignore[override]
            return self._step()

    return ray.remote(Slow if is_async else Deadly)


@pytest.mark.parametrize(("end_", "is_async"), [("killed", False), ("crashed", False), ("exited", True)])
def test_a_recorded_call_that_ends_every_process_parks(
    tmp_path: Path, tally: Tally, end_: str, is_async: bool
) -> None:
    trap = tmp_path / "trap"
    actor = deadly(tmp_path / "store", is_async).remote(tally, str(trap), {-1: 2})
    assert ray.get([actor.add.remote() for _ in range(3)], timeout=LONG_S) == [1, 2, 3]
    trap.write_text(end_)
    end(actor)
    error = why_dead(actor)
    assert "died 3 times in a row while it ran 'add', call " in str(error)
    assert {"CheckpointParkedError", "ReplayCrashedError"} <= {type(c).__name__ for c in causes(error)}
    assert tally.count == 5, "three died in it, and the next one did not try"
    found = checkpoint.status(actor)
    assert found["state"] == "parked" and "while it ran 'add'" in found["last_error"]


def test_deaths_in_other_places_do_not(tmp_path: Path, tally: Tally) -> None:
    trap = tmp_path / "trap"
    places = {1: 1, 2: 3, 3: 3, 4: 2, 5: 2, 6: 3}  # which process dies in which call
    actor = deadly(tmp_path / "store").remote(tally, str(trap), places)
    assert ray.get([actor.add.remote() for _ in range(3)], timeout=LONG_S) == [1, 2, 3]
    trap.write_text("killed")
    end(actor)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 4
    assert tally.count == 8
