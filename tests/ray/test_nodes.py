"""Several nodes of Ray's on one machine, one of which dies; and drivers that come and go."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.limit(300)

NODES = """
import json, os
from ray.cluster_utils import Cluster

import ftray
from ftray import exceptions
from ftray.util import state

small = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small})
found = {}
try:
    second = cluster.add_node(num_cpus=1, resources={"second": 2, "mobile": 1}, **small)
    cluster.wait_for_nodes()
    with ftray.init(engine="ray", address=cluster.address, log_to_driver=False):
        found["nodes"] = len([node for node in ftray.nodes() if node["Alive"]])

        @ftray.remote(num_cpus=0)
        def where():
            return ftray.get_runtime_context().get_node_id()

        @ftray.remote(num_cpus=0, max_restarts=1, max_task_retries=3)
        class Counter:
            def __init__(self):
                self.n = 0

            def incr(self):
                self.n += 1
                return self.n, ftray.get_runtime_context().get_node_id()

        @ftray.remote(num_cpus=0, max_retries=0)
        def large():
            return bytes(1 << 20)

        here, there = ftray.get([where.remote(), where.options(resources={"second": 1}).remote()])
        found["elsewhere"] = here != there
        from ftray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        counter = Counter.options(resources={"mobile": 1}).remote()
        ref = large.options(scheduling_strategy=On(there, soft=False)).remote()
        ftray.wait([ref], fetch_local=False)
        found["before"] = ftray.get(counter.incr.remote()) == (1, there)
        doomed = Counter.options(max_restarts=0, max_task_retries=0, resources={"second": 1}).remote()
        ftray.get(doomed.incr.remote())
        cluster.add_node(num_cpus=1, resources={"mobile": 1}, **small)
        cluster.wait_for_nodes()
        cluster.remove_node(second, allow_graceful=False)
        while "actor" not in found:  # its process may live on for a moment, and then nobody knows
            try:
                ftray.get(doomed.incr.remote(), timeout=120)
            except exceptions.ActorUnavailableError:
                continue
            except exceptions.ActorDiedError:
                found["actor"] = True
        n, node = ftray.get(counter.incr.remote(), timeout=120)
        found["after"] = n == 1 and node not in (here, there)
        try:
            ftray.get(ref, timeout=120)
        except exceptions.ObjectLostError:
            found["object"] = True
        found["states"] = sorted(node.state for node in state.list_nodes())
finally:
    cluster.shutdown()
print(json.dumps(found))
"""

DRIVERS = """
import json, os, subprocess, sys

import ray

import ftray

small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
ray.init(**small, log_to_driver=False, namespace="n")
found = {}


@ftray.remote(num_cpus=0, lifetime="detached", name="kept")
class Kept:
    def pid(self):
        return os.getpid()


try:
    ftray.init(engine="ray", num_cpus=3)
except ValueError as error:
    found["refused"] = "num_cpus cannot be given" in str(error)
ftray.init(engine="ray")
pid = ftray.get(Kept.remote().pid.remote())
ftray.shutdown()
found["ray goes on"] = ray.is_initialized() and not ftray.is_initialized()
found["by ray"] = ray.get(ray.get_actor("kept").pid.remote()) == pid
program = "import ftray; print(ftray.get(ftray.get_actor('kept', 'n').pid.remote()))"
env = {**os.environ, "FTRAY_ENGINE": "ray", "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
found["second driver"] = done.stdout.strip() == str(pid) or done.stderr[-500:]
ray.shutdown()
print(json.dumps(found))
"""


def told(program: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_node_dies() -> None:
    assert told(NODES) == {
        "nodes": 2,
        "elsewhere": True,
        "before": True,
        "after": True,
        "actor": True,
        "object": True,
        "states": ["ALIVE", "ALIVE", "DEAD"],
    }


def test_drivers_share_a_cluster() -> None:
    assert told(DRIVERS) == {"refused": True, "ray goes on": True, "by ray": True, "second driver": True}


VERSION = """
import json

import ray

import ftray

ray.__version__ = "2.9.1"
try:
    ftray.init(engine="ray")
except ftray.exceptions.NotSupportedError as error:
    print(json.dumps({"text": str(error), "started": ray.is_initialized()}))
"""


def test_another_version_of_ray_is_refused_by_init() -> None:
    found = told(VERSION)
    assert "Ray 2.9.1 is installed; ftray's engine 'ray' supports 2.60.*: pip install" in found["text"]
    assert not found["started"]
