"""Scheduling strategies on one node: what can be followed, what is refused, what waits and says why."""

from __future__ import annotations

import pytest

import ftray as ray
from ftray.exceptions import ActorUnschedulableError, TaskUnschedulableError
from ftray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)
from tests.helpers.introspection import all_resources_back
from tests.helpers.sync import eventually

LABELS = {"zone": "a", "disk": "fast"}
pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=2, labels=LABELS)]

NOWHERE = "ab" * 28


@ray.remote
def node():
    return ray.get_runtime_context().get_node_id()


@ray.remote
class Member:
    def node(self):
        return ray.get_runtime_context().get_node_id()

    def die(self):
        import os

        os._exit(1)


def run(strategy, **options):
    """Return where a task and an actor with this strategy are."""
    options["scheduling_strategy"] = strategy
    refs = [node.options(**options).remote(), Member.options(**options).remote().node.remote()]
    return ray.get(refs, timeout=20)


def here():
    return ray.nodes()[0]["NodeID"]


@pytest.mark.parametrize("strategy", ["DEFAULT", "SPREAD", None])
def test_plain_strategies(strategy):
    assert run(strategy) == [here()] * 2


@pytest.mark.parametrize("soft", [True, False])
def test_affinity_to_the_node(soft):
    assert run(NodeAffinitySchedulingStrategy(here(), soft=soft)) == [here()] * 2


def test_soft_affinity_to_no_node_runs_elsewhere():
    assert run(NodeAffinitySchedulingStrategy(NOWHERE, soft=True)) == [here()] * 2


def test_hard_affinity_to_no_node_fails():
    strategy = NodeAffinitySchedulingStrategy(NOWHERE, soft=False)
    with pytest.raises(TaskUnschedulableError, match="not part of this session.*soft=True"):
        ray.get(node.options(scheduling_strategy=strategy).remote(), timeout=20)
    actor = Member.options(scheduling_strategy=strategy, max_restarts=-1).remote()
    for _ in range(2):
        with pytest.raises(ActorUnschedulableError, match="not part of this session.*soft=True"):
            ray.get(actor.node.remote(), timeout=20)


def test_a_named_actor_that_cannot_be_placed_frees_its_name():
    strategy = NodeAffinitySchedulingStrategy(NOWHERE, soft=False)
    actor = Member.options(scheduling_strategy=strategy, name="nowhere").remote()
    with pytest.raises(ActorUnschedulableError):
        ray.get(actor.node.remote(), timeout=20)
    again = Member.options(name="nowhere").remote()
    assert ray.get(again.node.remote()) == here()


def test_hard_affinity_fails_where_soft_waits_when_the_node_is_too_small():
    with pytest.raises(TaskUnschedulableError, match="CPU: 3 asked, 2 in total"):
        ray.get(
            node.options(
                num_cpus=3, scheduling_strategy=NodeAffinitySchedulingStrategy(here(), soft=False)
            ).remote(),
            timeout=20,
        )
    soft = node.options(
        num_cpus=3, scheduling_strategy=NodeAffinitySchedulingStrategy(here(), soft=True)
    ).remote()
    assert not ray.wait([soft], timeout=0.1)[0]
    ray.cancel(soft)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(soft)


def test_an_actor_that_restarts_keeps_its_strategy():
    actor = Member.options(
        max_restarts=1, scheduling_strategy=NodeAffinitySchedulingStrategy(here(), soft=False)
    ).remote()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.die.remote())
    assert ray.get(actor.node.remote(), timeout=20) == here()


def test_the_node_has_its_labels():
    assert ray.nodes()[0]["Labels"] == {**LABELS, "ray.io/node-id": here()}


@pytest.mark.parametrize(
    "hard",
    [
        {"zone": In("a", "b")},
        {"zone": NotIn("b")},
        {"zone": Exists(), "region": DoesNotExist()},
        {"region": NotIn("a")},
        None,
    ],
    ids=["in", "not in", "exists", "not there", "soft only"],
)
def test_labels_that_the_node_has(hard):
    assert run(NodeLabelSchedulingStrategy(hard, soft={"zone": In("z")})) == [here()] * 2


def test_labels_that_no_node_has_are_waited_for_with_a_warning(told):
    strategy = NodeLabelSchedulingStrategy({"zone": In("b"), "disk": Exists()})
    refs = [node.options(scheduling_strategy=strategy).remote() for _ in range(3)]
    actor = Member.options(scheduling_strategy=strategy).remote()
    call = actor.node.remote()

    def warned():
        return "actor Member cannot be placed" in told() and "node cannot be scheduled" in told()

    eventually(warned, "warnings")
    text = told()
    assert "no node has the labels zone in(b)" in text and "disk=fast" in text
    assert text.count("node cannot be scheduled") == 1
    assert not ray.wait([*refs, call], timeout=0.1)[0]
    for ref in refs:
        ray.cancel(ref)
    ray.kill(actor)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(call, timeout=20)
    eventually(all_resources_back, "resources back")


@pytest.mark.parametrize("labels", [{"": "a"}, {"ray.io/node-id": "x"}])
def test_labels_that_make_no_sense(labels, no_runtime):
    with pytest.raises(ValueError, match="labels"):
        ray.init(labels=labels)
