"""Placement groups in a chaos run: made, used with children inside, and removed, also in the middle."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import ftray as ray
from ftray.util import (
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ftray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.chaos.workload import Batch, RemoteSequenced, mix_here

# Bundles are made of this alone: a group that waits for its turn to be collected keeps no CPU from others.
UNIT = "chaos"
RESOURCES = {UNIT: 100.0}


def group_here() -> str:
    group = get_current_placement_group()
    return "" if group is None else group.id.hex()


@ray.remote(max_retries=-1, num_cpus=0)
def child(x: int) -> list[Any]:
    return [group_here(), mix_here(x)]


@ray.remote(max_retries=-1, num_cpus=0, resources={UNIT: 1})
def parent(x: int, n: int) -> list[Any]:
    return [group_here(), *ray.get([child.remote(x + i) for i in range(n)])]


def groups(rng: random.Random, scratch: Path) -> Batch:
    """Tasks with children that the group captures, and an actor; a third of the groups goes before."""
    units = [rng.choice([1, 2, 3]) for _ in range(rng.choice([1, 2, 3]))]
    group = placement_group([{UNIT: n} for n in units])
    where = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    name = group.id.hex()
    refs: list[Any] = []
    expected: list[Any] = []
    for _ in range(rng.choice([1, 3, 6])):
        x, n = rng.randrange(10**6), rng.choice([0, 1, 4])
        refs.append(parent.options(scheduling_strategy=where).remote(x, n))
        expected.append([name, *([name, mix_here(x + i)] for i in range(n))])
    factor = rng.randrange(2, 100)
    actor = RemoteSequenced.options(num_cpus=0, scheduling_strategy=where).remote(factor)
    refs += [actor.small.remote("group", number) for number in range(5)]
    expected += [number * factor for number in range(5)]
    excused: tuple[type[BaseException], ...] = ()
    if rng.random() < 1 / 3:
        ray.wait(refs, num_returns=rng.randrange(1, len(refs) + 1), timeout=rng.choice([0, 0.05]))
        remove_placement_group(group)
        excused = (
            ray.exceptions.TaskPlacementGroupRemoved,
            ray.exceptions.ActorPlacementGroupRemoved,
            ray.exceptions.ActorDiedError,
        )
    return Batch(
        "groups", refs, expected, excused, keep=[actor], finish=lambda: remove_placement_group(group)
    )


def all_removed() -> bool:
    """Whether no group is left, and with them everything that they had reserved."""
    states = {entry["state"] for entry in placement_group_table().values()}
    return states <= {"REMOVED"} and ray.available_resources() == ray.cluster_resources()
