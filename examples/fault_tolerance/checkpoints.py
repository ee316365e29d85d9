"""An actor that is restarted where it stopped, in six ways of keeping what it has.

    python examples/fault_tolerance/checkpoints.py

``max_restarts`` brings the process back and ``max_task_retries`` the calls that were running; the state is
yours to keep. Four ways by hand (a file, a file that is copied to another machine, the internal key-value
store, an actor on a machine that you trust), and `Checkpointable`, which does it for you: with snapshots now
and then, or exactly once, where each call has its effect once and the method need not look whether a number
comes again. The actor of each kind is killed twice in the middle of a sum.

Exit status 0 when every sum is right.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import tempfile
from typing import Any, Protocol

import ftray as ray
from ftray.experimental import internal_kv

LAST = 30  # the numbers from 1 to this one are summed up
SAVE_EVERY = 5  # calls, where the toolkit saves
KILLS = (8, 21)  # after which numbers the process is killed


class Keeper(Protocol):
    """Where a state is kept; must take it as a whole or not at all."""

    def save(self, state: dict[str, int]) -> None: ...
    def load(self) -> dict[str, int] | None: ...


class FileKeeper:
    """A file on this machine. Of no use to an actor that is restarted on another one, unless it is shared."""

    def __init__(self, path: str) -> None:
        self.path = path

    def save(self, state: dict[str, int]) -> None:
        with open(f"{self.path}.new", "wb") as file:
            pickle.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{self.path}.new", self.path)  # whoever opens it finds the old state or the new one

    def load(self) -> dict[str, int] | None:
        try:
            with open(self.path, "rb") as file:
                found: dict[str, int] = pickle.load(file)
                return found
        except FileNotFoundError:
            return None


class SyncedKeeper:
    """A file on this machine, and its copy on another one, where the actor may be restarted.

    Tools that sync directories do this every few seconds, and lose those seconds with the machine; here the
    copy is made before the reply. Two directories stand for the two machines; after its first restart the
    actor finds itself on the other one. (The toolkit has no such store: ``s3://`` is there for all machines.)
    """

    def __init__(self, here: str, there: str) -> None:
        self.here, self.there = FileKeeper(here), FileKeeper(there)

    def save(self, state: dict[str, int]) -> None:
        self.here.save(state)
        shutil.copyfile(self.here.path, f"{self.there.path}.arriving")
        os.replace(f"{self.there.path}.arriving", self.there.path)  # as a whole here as well

    def load(self) -> dict[str, int] | None:
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.here, self.there = self.there, self.here
        return self.here.load()


class KVKeeper:
    """The internal key-value store: on every node, for small states."""

    def __init__(self, key: str) -> None:
        self.key = key

    def save(self, state: dict[str, int]) -> None:
        internal_kv._internal_kv_put(self.key, pickle.dumps(state))

    def load(self) -> dict[str, int] | None:
        found = internal_kv._internal_kv_get(self.key)
        return None if found is None else pickle.loads(found)


@ray.remote(num_cpus=0)
class Safe:
    """Holds states in memory, on a node that is not expected to go."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, int]] = {}

    def save(self, key: str, state: dict[str, int]) -> None:
        self.states[key] = state

    def load(self, key: str) -> dict[str, int] | None:
        return self.states.get(key)


class ActorKeeper:
    """An actor on a node that has the resource ``safe``."""

    def __init__(self, safe: Any, key: str) -> None:
        self.safe = safe
        self.key = key

    def save(self, state: dict[str, int]) -> None:
        ray.get(self.safe.save.remote(self.key, state))

    def load(self) -> dict[str, int] | None:
        found: dict[str, int] | None = ray.get(self.safe.load.remote(self.key))
        return found


class Sum:
    """The state, and the call on it."""

    def __init__(self) -> None:
        self.state = {"total": 0, "last": 0}

    def take(self, number: int) -> int:
        """Add the number if it is the next one; return the last one that was added.

        A number that comes twice, as that of a retried call, does no harm; and when the actor is behind, its
        caller sees where to go on.
        """
        if number == self.state["last"] + 1:
            self.state["total"] += number
            self.state["last"] = number
        return self.state["last"]

    def result(self) -> int:
        return self.state["total"]


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Immortal(Sum):
    """Every process of it begins with what the one before has kept."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self.keeper = keeper
        self.state = keeper.load() or self.state

    def add(self, number: int) -> int:
        last = self.take(number)
        self.keeper.save(self.state)  # before the reply: what its caller knows is never lost
        return last


def make_checkpointable(store: str) -> Any:
    """The same with the toolkit, which saves after so many calls, and while it does holds up nobody."""

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Checkpointed(ray.Checkpointable, Sum, store=store, every=SAVE_EVERY):  # type: ignore[misc, name-defined]
        add = Sum.take

    return Checkpointed.remote()


def make_exactly_once(store: str) -> Any:
    """The toolkit again, which now journals each call: nothing is lost, and nothing done twice."""

    @ray.remote
    class Durable(ray.Checkpointable, store=store, exactly_once=True):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.total = 0

        def add(self, number: int) -> int:
            self.total += number  # as if there were no crashes
            return number

        def result(self) -> int:
            return self.total

    return Durable.remote()


def make(way: str, directory: str) -> Any:
    if way == "file":
        return Immortal.remote(FileKeeper(os.path.join(directory, "sum.pickle")))
    if way == "synced":
        machines = [os.path.join(directory, machine) for machine in ("machine-1", "machine-2")]
        for machine in machines:
            os.mkdir(machine)
        return Immortal.remote(SyncedKeeper(*(os.path.join(machine, "sum.pickle") for machine in machines)))
    if way == "kv":
        return Immortal.remote(KVKeeper("examples/sum"))
    if way == "actor":
        return Immortal.remote(ActorKeeper(Safe.options(resources={"safe": 0.001}).remote(), "sum"))
    if way == "exactly-once":
        return make_exactly_once(os.path.join(directory, "journal"))
    return make_checkpointable(os.path.join(directory, "store"))


WAYS = ["file", "synced", "kv", "actor", "checkpointable", "exactly-once"]


def feed(actor: Any, saves_by_itself: bool) -> int:
    """Have the numbers added in their order, and kill the actor now and then; return the number of calls."""
    last = calls = 0
    kills = list(KILLS)
    while last < LAST:
        ref = actor.add.remote(last + 1)
        if kills and last >= kills[0]:
            kills.pop(0)
            ray.kill(actor, no_restart=False)
        last = ray.get(ref)
        calls += 1
        if saves_by_itself and last % SAVE_EVERY == 0:
            ray.get(actor.checkpoint.remote())  # what it has is on disk when this returns
    return calls


def main() -> int:
    parser = argparse.ArgumentParser(description="Ways to keep an actor's state.")
    parser.add_argument("--way", choices=WAYS, help="only this one")
    only = parser.parse_args().way

    ray.init(num_cpus=2, resources={"safe": 1})
    right = True
    with tempfile.TemporaryDirectory(prefix="immortal-") as directory:
        for way in [only] if only else WAYS:
            actor = make(way, directory)
            calls = feed(actor, way == "checkpointable")
            total = ray.get(actor.result.remote())
            right &= total == sum(range(LAST + 1))
            print(f"{way:15} {len(KILLS)} kills, {calls - LAST} calls again: the sum is {total}")
        ray.shutdown()
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
