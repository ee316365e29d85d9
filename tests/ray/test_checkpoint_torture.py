"""Random kills: exactly-once actors lose and double nothing; also when a node of Ray goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.checkpoint_support import SMALL, Once, by_value, cluster, get, ray, ray_runs, store

__all__ = ["cluster", "ray_runs", "store"]

LONG = bool(os.environ.get("FTRAY_RAY_LONG"))
"""Also what takes minutes."""


@pytest.mark.limit(600)
def test_kills_of_actors_and_callers(store: str, tmp_path: Path) -> None:
    from tests.ray import torture

    by_value(torture)
    found = torture.torture(200 if LONG else 8, 1, tmp_path)
    assert found["exactly once"][1:] == (0, 0), found
    print(found)


@pytest.fixture
def nodes(cluster: None) -> Iterator[Any]:
    """A Ray of several nodes on this machine, in place of the module's own."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False},
    )
    ray.init(address=made.address, namespace="tests", log_to_driver=False)
    by_value(sys.modules[__name__])
    yield made
    ray.shutdown()
    made.shutdown()
    ray.init(**SMALL)


@pytest.mark.limit(300)
@pytest.mark.skipif(not LONG, reason="takes a minute: FTRAY_RAY_LONG=1")
def test_a_node_that_is_killed_loses_nothing(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTRAY_CHECKPOINT_STORE", str(tmp_path / "store"))
    first = nodes.add_node(num_cpus=1, resources={"spare": 1}, object_store_memory=100_000_000)
    actor = ray.remote(Once).options(name="moves", resources={"spare": 0.5}).remote()
    assert get([actor.incr.remote() for _ in range(100)], 120)[-1] == 100
    nodes.add_node(num_cpus=1, resources={"spare": 1}, object_store_memory=100_000_000)
    refs = [actor.incr.remote() for _ in range(50)]
    nodes.remove_node(first, allow_graceful=False)
    refs += [actor.incr.remote() for _ in range(50)]
    assert get(refs, 240) == list(range(101, 201))
