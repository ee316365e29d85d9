"""Asking for a node without being stuck when it is gone.

    python examples/fault_tolerance/nodes.py

A resource that a single node has ties a task to that node for good. Affinity can be a wish: with
``soft=True`` the task runs elsewhere when its node is not there. Change the import to ``import ray`` and the
program runs on Ray.
"""

from __future__ import annotations

import ftray as ray
from ftray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

GONE = "ab" * 28  # an id that no node has, as that of one which is gone


@ray.remote
def where() -> str:
    return str(ray.get_runtime_context().get_node_id())


def a_resource_of_one_node() -> None:
    """Nobody else has it, so that the task waits for as long as that node is away."""
    tied = where.options(resources={"node:127.0.0.3": 1}).remote()
    _ready, waiting = ray.wait([tied], timeout=0.3)
    print(f"wants node:127.0.0.3: {'waits' if waiting else 'runs'}")
    ray.cancel(tied)
    try:
        ray.get(tied)
    except ray.exceptions.TaskCancelledError:
        print("cancelled")


def run_on(node_id: str, soft: bool) -> str:
    """Return the id of the node on which the task ran."""
    strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=soft)
    return str(ray.get(where.options(scheduling_strategy=strategy).remote()))


def affinity() -> None:
    here = str(ray.get_runtime_context().get_node_id())
    print(f"soft, the node is there: ran on {'it' if run_on(here, soft=True) == here else 'another'}")
    print(f"soft, the node is gone: ran on {'it' if run_on(GONE, soft=True) == GONE else 'another'}")
    try:
        run_on(GONE, soft=False)
    except ray.exceptions.TaskUnschedulableError as error:
        print(f"not soft, the node is gone: {type(error).__name__}")


def main() -> None:
    ray.init(num_cpus=2)
    a_resource_of_one_node()
    affinity()
    ray.shutdown()


if __name__ == "__main__":
    main()
