"""ftray's side of `benchmarks.checkpoint`: the actors, and one step of each measurement."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import ftray
from benchmarks.process import kill_and_confirm
from ftray.checkpoint import readonly

IN_FLIGHT = 1000
RECORD_SIZE = 200
Step = tuple[Callable[[], object], int]


def durable_class(store: str, durability: str) -> Any:
    """An actor whose calls are journalled."""

    @ftray.remote(num_cpus=0)
    class Durable(ftray.Checkpointable, store=store, exactly_once=True, durability=durability):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

    return Durable


@ftray.remote(num_cpus=0)
class Plain:
    """The same, not kept."""

    def __init__(self, size: int = 0) -> None:
        self.count = 0
        self.state = b"x" * size

    def add(self) -> int:
        self.count += 1
        return self.count


def saved_class(store: str, **options: Any) -> Any:
    """An actor with a state that is saved now and then, or exactly-once."""

    @ftray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    class Saved(ftray.Checkpointable, store=store, **options):  # type: ignore[misc, name-defined]
        def __init__(self, size: int) -> None:
            self.count = 0
            self.state = b"x" * size

        def add(self) -> int:
            self.count += 1
            return self.count

        @readonly
        def pid(self) -> int:
            return os.getpid()

    return Saved


def holder_class(store: str) -> Any:
    """An actor with a large array, which says how long it was held up by saving it."""

    @ftray.remote(num_cpus=0)
    class Holder(ftray.Checkpointable, store=store, every=1_000_000):  # type: ignore[misc, name-defined]
        def __init__(self, size: int) -> None:
            import numpy as np

            self.array = np.ones(size, dtype=np.uint8)

        def touch(self) -> None:
            self.array[::4096] += 1

        @readonly
        def pauses(self) -> tuple[float, float]:
            from ftray.checkpoint.actor import sessions

            status = sessions[id(self)].status()
            return status["first_pause_s"], status["last_pause_s"]

    return Holder


class Bench:
    """A runtime with the actors of the rows, whose checkpoints go below `directory`."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.store = os.path.join(directory, "store")
        ftray.init(num_cpus=2, address="local", log_to_driver=False)

    def close(self) -> None:
        ftray.shutdown()

    def _calls(self) -> dict[str, Any]:
        actors = {"plain": Plain.remote()}
        for durability in ("process", "power"):
            actors[durability] = durable_class(self.store, durability).remote()
        for actor in actors.values():
            ftray.get(actor.add.remote())
        return actors

    def synchronous(self) -> dict[str, Step]:
        def step(actor: Any) -> Step:
            return lambda: ftray.get(actor.add.remote()), 1

        actors = self._calls()
        self._power = actors.pop("power")
        return {name: step(actor) for name, actor in actors.items()}

    def beside_disk(self, times: int) -> tuple[float, float]:
        """Seconds of a synchronous `power` call and of a bare fdatasync, one after the other: medians.

        The time of a disk changes from one second to the next.
        """
        sync, _ = self.fdatasync()
        taken_s: tuple[list[float], list[float]] = ([], [])
        for _ in range(times):
            begin_s = time.perf_counter()
            ftray.get(self._power.add.remote())
            between_s = time.perf_counter()
            sync()
            taken_s[0].append(between_s - begin_s)
            taken_s[1].append(time.perf_counter() - between_s)
        return statistics.median(taken_s[0]), statistics.median(taken_s[1])

    def pipelined(self) -> dict[str, Step]:
        def step(actor: Any) -> Step:
            return lambda: ftray.get([actor.add.remote() for _ in range(IN_FLIGHT)]), IN_FLIGHT

        return {name: step(actor) for name, actor in self._calls().items()}

    def fdatasync(self) -> Step:
        """Write one record and make it durable, in a file that is written already; with nothing around it."""
        places = 4096
        fd = os.open(os.path.join(self.directory, "floor"), os.O_RDWR | os.O_CREAT, 0o600)
        record = os.urandom(RECORD_SIZE)
        os.pwrite(fd, bytes(RECORD_SIZE * places), 0)
        os.fsync(fd)
        at = itertools.cycle(range(0, RECORD_SIZE * places, RECORD_SIZE))

        def step() -> None:
            os.pwrite(fd, record, next(at))
            os.fdatasync(fd)

        return step, 1

    def snapshots(self, batch: int, **options: Any) -> tuple[dict[str, Step], dict[str, Any]]:
        """Calls with a snapshot of 1 MB after each 1,000, `batch` of them in flight.

        Returns the steps of that actor ("saved") and of one that is only restarted ("plain"), and the actors,
        which are new ones each time.
        """
        actors = {
            "plain": Plain.options(max_restarts=-1, max_task_retries=-1).remote(1_000_000),
            "saved": saved_class(self.store, every=1000, **options).remote(1_000_000),
        }
        return {name: (batch_of(actor, batch), batch) for name, actor in actors.items()}, actors

    @staticmethod
    def end(actors: dict[str, Any]) -> None:
        """End actors whose rows are done, so that they leave the machine to the next."""
        for actor in actors.values():
            ftray.kill(actor)

    def pause(self, size: int) -> tuple[int, float, float]:
        """Size of the array, and seconds for which calls stood still: at first, and with a warm buffer."""
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        while size > free / 5:
            size //= 2
        actor = holder_class(self.store).remote(size)
        warm = []
        for _ in range(4):
            ftray.get(actor.touch.remote())
            ftray.get(actor.checkpoint.remote())
            first, last = ftray.get(actor.pauses.remote())
            warm.append(last)
        ftray.kill(actor)
        return size, first, statistics.median(warm[1:])

    def drift(self, calls: int, kills: int, trial: int) -> int:
        """How many calls too many an exactly-once actor has counted, killed in the middle of its calls."""
        actor = saved_class(self.store, exactly_once=True).options(name=f"drift-{trial}").remote(0)
        for _ in range(kills):
            pid = ftray.get(actor.pid.remote())
            refs = [actor.add.remote() for _call in range(calls // kills)]
            ftray.get(refs[len(refs) // 2])
            kill_and_confirm(pid)
            ftray.get(refs)
        counted: int = ftray.get(actor.add.remote())
        ftray.kill(actor)
        return counted - 1 - kills * (calls // kills)

    def kills(self, size: int, times: int) -> dict[str, list[float]]:
        """Seconds from SIGKILL to the first answer of the next process."""
        found = {}
        for mode, cls in (
            ("snapshot", saved_class(self.store, every=10)),
            ("exactly once", saved_class(self.store, exactly_once=True)),
        ):
            actor = cls.remote(size)
            taken_s = []
            for _ in range(times):
                ftray.get([actor.add.remote() for _ in range(100)])
                if mode == "snapshot":
                    ftray.get(actor.checkpoint.remote())
                pid = ftray.get(actor.pid.remote())
                begin_s = time.perf_counter()
                kill_and_confirm(pid)
                ftray.get(actor.add.remote())
                taken_s.append(time.perf_counter() - begin_s)
            found[mode] = taken_s
        return found


def batch_of(actor: Any, batch: int) -> Callable[[], object]:
    if batch == 1:
        return lambda: ftray.get(actor.add.remote())
    return lambda: ftray.get([actor.add.remote() for _ in range(batch)])
