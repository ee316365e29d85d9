"""Which GPUs tasks and actors get, and how they learn it. There are none: ftray is told that it has four."""

from __future__ import annotations

import os
import signal

import pytest

import ftray as ray
from ftray.util import placement_group, remove_placement_group
from ftray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.helpers.introspection import all_resources_back
from tests.helpers.sync import eventually

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=4, num_gpus=4)]


def mine():
    context = ray.get_runtime_context()
    return {
        "ids": ray.get_gpu_ids(),
        "accelerators": context.get_accelerator_ids(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "resources": context.get_assigned_resources(),
        "pid": os.getpid(),
    }


@ray.remote
def report():
    return mine()


@ray.remote
def hold(box, door):
    box.post(ray.get_gpu_ids())
    door.wait()


@ray.remote
class Actor:
    def __init__(self):
        self.at_birth = mine()

    def report(self):
        return mine(), self.at_birth


def test_a_task_learns_its_gpus_before_it_begins():
    found = ray.get(report.options(num_gpus=2).remote())
    assert len(set(found["ids"])) == 2 and set(found["ids"]) <= {0, 1, 2, 3}
    assert found["accelerators"] == {"GPU": [str(gpu) for gpu in found["ids"]]}
    assert found["visible"] == ",".join(map(str, found["ids"]))
    assert found["resources"] == {"CPU": 1.0, "GPU": 2.0}


def test_whole_gpus_are_exclusive(mailbox, gate):
    refs = [hold.options(num_gpus=1, num_cpus=0).remote(mailbox, gate) for _ in range(4)]
    assert sorted(gpu for _ in range(4) for gpu in mailbox.take()) == [0, 1, 2, 3]
    gate.open()
    ray.get(refs)


def test_fractions_share_a_gpu(mailbox, gate):
    refs = [hold.options(num_gpus=0.25, num_cpus=0).remote(mailbox, gate) for _ in range(4)]
    assert len({tuple(mailbox.take()) for _ in range(4)}) == 1
    whole = ray.get(report.options(num_gpus=3).remote())
    assert len(whole["ids"]) == 3
    gate.open()
    ray.get(refs)


def test_an_actor_has_its_gpu_in_the_constructor_and_gives_it_back_when_it_dies():
    actor = Actor.options(num_gpus=4, max_restarts=1).remote()
    now, at_birth = ray.get(actor.report.remote())
    assert sorted(at_birth["ids"]) == sorted(now["ids"]) == [0, 1, 2, 3]
    assert at_birth["visible"] == now["visible"] and now["resources"] == {"GPU": 4.0}
    os.kill(now["pid"], signal.SIGKILL)
    eventually(lambda: ray.get(actor.report.options(max_task_retries=-1).remote())[0]["pid"] != now["pid"])
    assert sorted(ray.get(actor.report.remote())[1]["ids"]) == [0, 1, 2, 3]
    ray.kill(actor)
    assert len(ray.get(report.options(num_gpus=4).remote())["ids"]) == 4
    eventually(all_resources_back, "resources back")


def test_a_worker_that_had_a_gpu_does_not_show_it_to_the_next_task():
    kept = report.options(num_gpus=1, max_calls=0)
    found = ray.get(kept.remote())
    for _ in range(20):
        later = ray.get(report.remote())
        assert (later["ids"], later["visible"], later["accelerators"]) == ([], None, {"GPU": []})
        if later["pid"] == found["pid"]:
            break
    assert ray.get(kept.remote())["ids"]


def test_a_gpu_task_that_crashes_gives_its_gpu_back(tally):
    @ray.remote(num_gpus=4)
    def crash_once():
        if tally.bump() == 0:
            os._exit(1)
        return ray.get_gpu_ids()

    assert sorted(ray.get(crash_once.remote())) == [0, 1, 2, 3]


def test_bundles_of_a_placement_group_have_gpus_that_nobody_else_gets(mailbox, gate):
    group = placement_group([{"GPU": 1, "CPU": 1}, {"GPU": 2}])
    assert group.wait()
    inside = [PlacementGroupSchedulingStrategy(group, index) for index in (0, 1)]
    actor = Actor.options(num_gpus=1, num_cpus=0, scheduling_strategy=inside[1]).remote()
    now, at_birth = ray.get(actor.report.remote())
    assert now["ids"] == at_birth["ids"] and now["visible"] == str(now["ids"][0])
    refs = [
        hold.options(num_gpus=1, num_cpus=0, scheduling_strategy=strategy).remote(mailbox, gate)
        for strategy in (inside[0], inside[1], "DEFAULT")
    ]
    assert sorted(now["ids"] + [gpu for _ in refs for gpu in mailbox.take()]) == [0, 1, 2, 3]
    gate.open()
    ray.get(refs)
    halves = report.options(num_gpus=0.5, num_cpus=0, scheduling_strategy=inside[0])
    found = ray.get([halves.remote(), halves.remote()])
    assert found[0]["ids"] == found[1]["ids"] != now["ids"]
    assert found[0]["resources"][f"GPU_group_0_{group.id.hex()}"] == 0.5
    remove_placement_group(group)
    eventually(all_resources_back, "resources back")
    assert sorted(ray.get(report.options(num_gpus=4).remote())["ids"]) == [0, 1, 2, 3]


def test_a_bundle_with_one_and_a_half_gpus_makes_no_sense():
    with pytest.raises(ValueError, match=r"1\.5 GPUs: above 1 it must be whole"):
        placement_group([{"GPU": 1.5}])


def test_a_driver_has_none():
    assert ray.get_gpu_ids() == []
    assert ray.get_runtime_context().get_accelerator_ids() == {"GPU": []}
    with pytest.raises(RuntimeError, match="in a task or an actor"):
        ray.get_runtime_context().get_assigned_resources()


def test_plain_tasks_and_actors_know_what_they_hold():
    assert ray.get(report.remote())["resources"] == {"CPU": 1.0}
    assert ray.get(Actor.remote().report.remote())[0]["resources"] == {}


def test_what_a_runtime_environment_says_of_gpus_stays():
    env = {"env_vars": {"CUDA_VISIBLE_DEVICES": "7"}}
    found = ray.get(report.options(num_gpus=1, runtime_env=env).remote())
    assert (found["visible"], found["ids"]) == ("7", ["7"])


def test_switches_of_ray():
    on = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}}
    assert ray.get(report.options(runtime_env=on).remote())["visible"] == ""
    off = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
    assert ray.get(report.options(num_gpus=1, runtime_env=off).remote())["visible"] is None


NAMED = """
import os
import ftray as ray
try:
    ray.init(num_cpus=1, num_gpus=3)
except ValueError as error:
    tell("refused", str(error))
ray.init(num_cpus=2)

@ray.remote(num_gpus=1)
def f():
    return ray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

@ray.remote
def plain():
    return ray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

tell("total", ray.cluster_resources()["GPU"])
tell("ids", ray.get(f.remote()))
tell("plain", ray.get(plain.remote()))
"""


def test_the_gpus_that_the_node_was_started_with_are_respected(start_driver):
    driver = start_driver(NAMED, env={"CUDA_VISIBLE_DEVICES": "5,GPU-8932f937"})
    assert "CUDA_VISIBLE_DEVICES names 2" in driver.expect("refused")
    assert driver.expect("total") == 2
    assert driver.expect("ids") in ([["5"], "5"], [["GPU-8932f937"], "GPU-8932f937"])
    assert driver.expect("plain") == [
        [],
        "5,GPU-8932f937",
    ]  # as in Ray, see RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO
    driver.finish()
