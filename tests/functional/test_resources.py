"""Accounting of resources: what runs together, what is available, what comes back."""

from __future__ import annotations

import os
import signal

import pytest

import ftray as ray
from ftray import util
from ftray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.helpers.introspection import all_resources_back
from tests.helpers.sync import Gate, eventually

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=2, resources={"widget": 4})]


@ray.remote
def hold(box, door):
    box.post(os.getpid())
    door.wait()


def available(name):
    return ray.available_resources().get(name, 0.0)


def test_cluster_resources_are_what_init_was_given():
    total = ray.cluster_resources()
    assert (total["CPU"], total["widget"]) == (2, 4)
    assert total["memory"] > 0 and total["object_store_memory"] > 0


@pytest.mark.parametrize(
    "options, name, held",
    [
        ({}, "CPU", 1),
        ({"num_cpus": 2}, "CPU", 2),
        ({"num_cpus": 0.5}, "CPU", 0.5),
        ({"num_cpus": 0, "resources": {"widget": 3}}, "widget", 3),
        ({"num_cpus": 0, "resources": {"widget": 0.25}}, "widget", 0.25),
        ({"num_cpus": 0}, "CPU", 0),
        ({"num_cpus": 0, "resources": {"node:127.0.0.1": 0.5}}, "node:127.0.0.1", 0.5),
    ],
)
def test_a_running_task_holds_what_it_asked_for(options, name, held, mailbox, gate):
    total = ray.cluster_resources()[name]
    ref = hold.options(**options).remote(mailbox, gate)
    mailbox.take()
    eventually(lambda: available(name) == pytest.approx(total - held), f"{held} {name} held")
    gate.open()
    ray.get(ref)
    eventually(all_resources_back, "resources back")


@pytest.mark.parametrize(
    "options, together",
    [
        ({"num_cpus": 1}, 2),
        ({"num_cpus": 2}, 1),
        ({"num_cpus": 0.5}, 4),
        ({"num_cpus": 0, "resources": {"widget": 2}}, 2),
        ({"num_cpus": 0.5, "resources": {"widget": 4}}, 1),
    ],
)
def test_no_more_run_together_than_fit(options, together, mailbox, gate):
    refs = [hold.options(**options).remote(mailbox, gate) for _ in range(together + 3)]
    for _ in range(together):
        mailbox.take()
    with pytest.raises(TimeoutError):
        mailbox.take(timeout_s=0.3)
    gate.open()
    ray.get(refs)


def test_tasks_without_cpu_run_beside_full_cpus(mailbox, tmp_path):
    doors = [Gate(tmp_path / "cpus"), Gate(tmp_path / "free")]
    full = [hold.remote(mailbox, doors[0]) for _ in range(2)]
    [mailbox.take() for _ in full]
    free = [hold.options(num_cpus=0).remote(mailbox, doors[1]) for _ in range(3)]
    [mailbox.take() for _ in free]
    for door in doors:
        door.open()
    ray.get(full + free)


def test_different_demands_do_not_block_each_other(mailbox, gate):
    """One that waits for widgets must not hold up one that needs only a CPU."""
    holder = hold.options(num_cpus=0, resources={"widget": 4}).remote(mailbox, gate)
    mailbox.take()
    waiting = [hold.options(num_cpus=0, resources={"widget": 1}).remote(mailbox, gate) for _ in range(3)]

    @ray.remote
    def simple():
        return "ran"

    assert ray.get([simple.remote() for _ in range(10)]) == ["ran"] * 10
    assert ray.wait(waiting, timeout=0)[0] == []
    gate.open()
    ray.get([holder, *waiting])


def test_a_dead_worker_gives_its_resources_back(mailbox, gate):
    ref = hold.options(num_cpus=1, resources={"widget": 4}, max_retries=0).remote(mailbox, gate)
    os.kill(mailbox.take(), signal.SIGKILL)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ref)
    eventually(all_resources_back, "resources back")


def test_failed_and_cancelled_tasks_give_their_resources_back(mailbox, gate):
    @ray.remote(resources={"widget": 1})
    def fail():
        raise ValueError

    with pytest.raises(ValueError):
        ray.get(fail.remote())
    ref = hold.remote(mailbox, gate)
    mailbox.take()
    ray.cancel(ref, force=True)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(ref)
    eventually(all_resources_back, "resources back")


def test_tasks_of_many_shapes_all_finish():
    @ray.remote
    def shape(i):
        return i

    refs = [
        shape.options(num_cpus=[0, 0.5, 1, 2][i % 4], resources={"widget": i % 3} if i % 3 else {}).remote(i)
        for i in range(200)
    ]
    assert ray.get(refs) == list(range(200))


def test_actor_holds_what_it_asked_for_until_it_dies():
    @ray.remote(num_cpus=1, resources={"widget": 2})
    class Holder:
        def ready(self):
            return True

    actor = Holder.remote()
    assert ray.get(actor.ready.remote())
    eventually(lambda: (available("CPU"), available("widget")) == (1, 2), "held by the actor")
    ray.kill(actor)
    eventually(all_resources_back, "resources back")


def test_actor_without_options_holds_nothing_while_it_lives():
    @ray.remote
    class Free:
        def ready(self):
            return True

    actors = [Free.remote() for _ in range(4)]
    assert all(ray.get([actor.ready.remote() for actor in actors]))
    eventually(all_resources_back, "actors hold no CPU")


def test_nodes_report_the_one_node():
    (node,) = ray.nodes()
    assert node["Alive"] is True
    assert node["Resources"]["CPU"] == 2
    assert node["NodeID"] == ray.get_runtime_context().get_node_id()


def test_the_node_is_a_resource_by_its_address_and_as_the_head():
    """What programs written for clusters ask for; a placement group can, too."""
    (node,) = ray.nodes()
    address = util.get_node_ip_address()
    assert address == node["NodeManagerAddress"]
    names = [f"node:{address}", "node:__internal_head__"]
    assert [ray.cluster_resources()[name] for name in names] == [1, 1]

    @ray.remote(num_cpus=0, resources=dict.fromkeys(names, 0.001))
    class Here:
        def node_id(self):
            return ray.get_runtime_context().get_node_id()

    group = util.placement_group([{names[0]: 0.5}, {names[1]: 0.5, "CPU": 1}])
    assert group.wait(30)
    where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    inside = Here.options(resources={names[0]: 0.25}, scheduling_strategy=where).remote()
    assert ray.get([Here.remote().node_id.remote(), inside.node_id.remote()]) == [node["NodeID"]] * 2
    assert available(names[0]) < 0.51
    del inside
    util.remove_placement_group(group)
    eventually(all_resources_back, "resources back")


def test_more_of_a_node_than_there_is_or_another_node_is_waited_for(told):
    """With a warning that names it, for tasks and for groups."""

    @ray.remote(num_cpus=0)
    def one():
        return 1

    refs = [one.options(resources={name: 2}).remote() for name in ("node:127.0.0.9", "node:127.0.0.1")]
    group = util.placement_group([{"node:127.0.0.8": 1}])
    eventually(lambda: all(f"node:127.0.0.{number}" in told() for number in (9, 8, 1)), "each is named")
    assert ray.wait(refs, timeout=0)[0] == []
    assert not group.wait(0.01)
    for ref in refs:
        ray.cancel(ref)
    util.remove_placement_group(group)
    ray.wait(refs, num_returns=2)
