"""Drivers that die at random beside a head that lives: what is detached stays, all else goes with them.

``python -m tests.chaos.drivers SESSION NAME SEED`` is such a driver: it makes detached and other actors and
groups, calls what it and others have made, and tells by lines of JSON what it has seen, until it is killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ftray as ray
from ftray.util import get_placement_group, list_named_actors, placement_group, remove_placement_group
from ftray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests import ROOT
from tests.chaos.groups import RESOURCES, UNIT, all_removed
from tests.chaos.workload import FOREVER, RemoteSequenced, mix, mix_here
from tests.helpers import processes
from tests.helpers.sync import eventually

NAMESPACE = "chaos"
AT_ONCE = 2
DEADLINE_S = 60.0


# --- the driver


def tell(*words: Any) -> None:
    print(json.dumps(words), flush=True)


def judge(what: str, value: Any, expected: Any) -> None:
    tell("seen", what, value == expected, f"{value!r} for {expected!r}")


class Made:
    """What one driver makes, each thing with a name of its own."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self.rng = rng
        self.count = 0
        self.kept: list[Any] = []

    def detached_actor(self) -> None:
        name, factor = self._next("kept"), self.rng.randrange(2, 100)
        actor = RemoteSequenced.options(name=name, lifetime="detached", num_cpus=0, **FOREVER).remote(factor)
        judge("new detached actors", ray.get(actor.small.remote(self.name, 1), timeout=DEADLINE_S), factor)
        tell("made", "actor", name, factor)

    def detached_group(self) -> None:
        """With a detached actor in it."""
        name, factor = self._next("group"), self.rng.randrange(2, 100)
        group = placement_group([{UNIT: 1}, {UNIT: 2}], name=name, lifetime="detached")
        where = PlacementGroupSchedulingStrategy(group)
        options = {
            "name": f"{name}-kept",
            "lifetime": "detached",
            "num_cpus": 0,
            "resources": {UNIT: 1},
            **FOREVER,
        }
        actor = RemoteSequenced.options(scheduling_strategy=where, **options).remote(factor)
        judge("detached groups", ray.get(actor.small.remote(self.name, 1), timeout=DEADLINE_S), factor)
        tell("made", "group", name, 0)
        tell("made", "actor", f"{name}-kept", factor)

    def mortal(self) -> None:
        """An actor, a group and tasks that go with this driver."""
        name, factor = self._next("mortal"), self.rng.randrange(2, 100)
        actor = RemoteSequenced.options(name=name, num_cpus=0, **FOREVER).remote(factor)
        group = placement_group([{UNIT: 1}])
        where = PlacementGroupSchedulingStrategy(group)
        refs = [mix.options(num_cpus=0, scheduling_strategy=where).remote(i) for i in range(3)]
        refs += [mix.remote(i) for i in range(3)]
        judge("actors of a driver", ray.get(actor.small.remote(self.name, 1), timeout=DEADLINE_S), factor)
        judge("tasks of a driver", ray.get(refs, timeout=DEADLINE_S), 2 * [mix_here(i) for i in range(3)])
        self.kept = [actor, group, *refs]

    def call_any(self) -> None:
        """Somebody's detached actor. All are there, whoever made them."""
        names = [name for name in list_named_actors() if "kept" in name]
        if names:
            name = self.rng.choice(names)
            number = time.monotonic_ns()
            product = ray.get(ray.get_actor(name).small.remote(self.name, number), timeout=DEADLINE_S)
            judge("detached actors of others", product % number, 0)

    def _next(self, kind: str) -> str:
        self.count += 1
        return f"{kind}-{self.name}-{self.count}"


def be_a_driver(session: str, name: str, seed: str) -> None:
    rng = random.Random(f"{seed}/{name}")
    ray.init(address=session, namespace=NAMESPACE, log_to_driver=False)
    made = Made(name, rng)
    deeds = [made.detached_actor, made.detached_group, made.mortal, made.mortal, made.call_any, made.call_any]
    tell("ready")
    while True:
        rng.choice(deeds)()


# --- who kills them


class Driver:
    """One of these processes, read by a thread."""

    def __init__(self, session: str, name: str, seed: str) -> None:
        path = os.pathsep.join([*(entry for entry in sys.path if entry), ROOT])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.drivers", session, name, seed],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=path, PYTHONSAFEPATH="1"),
        )
        self.told: list[list[Any]] = []
        self.errors = ""
        self.ready = threading.Event()
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.endswith("\n"):
                break  # it was killed in the middle of it
            self.told.append(json.loads(line))
            self.ready.set()
        self.ready.set()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def end(self) -> None:
        """SIGKILL; a driver that has ended by itself is a failure, with its words."""
        processes.send_signal(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        for reader in self._readers:
            reader.join()
        assert self.process.stdout is not None and self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        assert status == -signal.SIGKILL, f"a driver ended with status {status}:\n{self.errors[-5000:]}"


def kill_drivers(session: str, seed: str, rounds: int) -> list[list[Any]]:
    """Have drivers come and go; return all that they told."""
    rng = random.Random(f"{seed}/drivers")
    alive: list[Driver] = []
    told: list[list[Any]] = []
    try:
        for number in range(rounds):
            alive.append(Driver(session, f"driver-{number}", seed))
            if len(alive) >= AT_ONCE:
                for driver in alive:
                    assert driver.ready.wait(DEADLINE_S), "a driver did not attach"
                threading.Event().wait(rng.uniform(0, 0.6))
                victim = alive.pop(rng.randrange(len(alive)))
                victim.end()
                told += victim.told
    finally:
        for driver in alive:
            driver.end()
            told += driver.told
    return told


def check_what_is_left(session: str, told: list[list[Any]], score: Any) -> None:
    """Everything detached is there and answers; nothing else is; all resources come back."""
    for what, right, text in (words[1:] for words in told if words[0] == "seen"):
        score.add(what, "right" if right else "wrong", "" if right else text)
    made = [words[1:] for words in told if words[0] == "made"]
    ray.init(address=session, namespace=NAMESPACE, log_to_driver=False)
    try:
        for kind, name, factor in made:
            if kind == "actor":
                product = ray.get(ray.get_actor(name).small.remote("last", 10), timeout=DEADLINE_S)
                right = product == 10 * factor
            else:
                right = get_placement_group(name).wait(DEADLINE_S)
            score.add("detached, afterwards", "right" if right else "wrong", "" if right else name)
        eventually(
            lambda: not any("mortal" in name for name in list_named_actors()), "mortals go", DEADLINE_S
        )
        for name in list_named_actors():  # also those whose maker died before it could tell
            ray.kill(ray.get_actor(name))
        remove_named_groups()
        eventually(all_removed, "all resources come back", DEADLINE_S)
    finally:
        ray.shutdown()


def remove_named_groups() -> None:
    from ftray.util import placement_group_table

    for entry in placement_group_table().values():
        if entry["name"] and entry["state"] != "REMOVED":
            remove_placement_group(get_placement_group(entry["name"]))


def phase_of_drivers(seed: str, rounds: int, workdir: Path, score: Any, faults: Any) -> None:
    """Drivers, workers and zygotes of a head die; what is detached must not be impressed."""
    from tests.chaos.faults import Saboteur
    from tests.helpers.heads import Head

    with Head(workdir) as head:
        session = head.start("--resources", json.dumps(RESOURCES))
        pid = head.pid
        saboteur = Saboteur(random.Random(f"{seed}/saboteur of the head"), node=lambda: pid)
        saboteur.start()
        try:
            told = kill_drivers(session, seed, rounds)
        finally:
            saboteur.stop()
            faults += saboteur.done
        faults["SIGKILL driver"] += rounds
        check_what_is_left(session, told, score)
        head.run("stop")
        head.check_nothing_left()


if __name__ == "__main__":
    be_a_driver(*sys.argv[1:])
