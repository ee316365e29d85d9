"""Placement groups: reserving, running in them, waiting for them, and every way in which they end."""

from __future__ import annotations

import os
import pickle
import signal

import pytest

import ftray as ray
from ftray.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ftray.util.placement_group import PlacementGroup
from ftray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup
from tests.helpers.introspection import all_resources_back
from tests.helpers.sync import eventually

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=4, resources={"disk": 2})]

Removed = ray.exceptions.TaskPlacementGroupRemoved


@pytest.fixture
def reserve(runtime):
    """Make groups that are gone after the test, with everything they held."""
    made = []

    def make(*bundles, wait=True, **options):
        group = placement_group(list(bundles) or [{"CPU": 1}], **options)
        made.append(group)
        assert not wait or group.wait(20)
        return group

    yield make
    for group in made:
        remove_placement_group(group)
    eventually(all_resources_back, "resources back")


@ray.remote
def here():
    return get_current_placement_group()


@ray.remote
def hold(box, door):
    box.post(os.getpid())
    door.wait()
    return get_current_placement_group()


@ray.remote
def ask():
    """Return where this task, a child and a grandchild run."""
    return get_current_placement_group(), ray.get(here.remote()), ray.get(relay.remote())


@ray.remote
def relay():
    return ray.get(here.remote())


@ray.remote
class Member:
    def __init__(self, box=None):
        if box is not None:
            box.post(os.getpid())

    def pid(self):
        return os.getpid()

    def here(self):
        return get_current_placement_group()

    def child(self):
        return ray.get(here.remote())

    def child_actor(self):
        return ray.get(Member.options(num_cpus=0).remote().here.remote())

    def wait(self, box, door):
        box.post(os.getpid())
        door.wait()

    def crash(self):
        os._exit(7)


def free(name="CPU"):
    return ray.available_resources().get(name, 0.0)


# --- reserving ---


def test_a_group_reserves_its_bundles_and_gives_them_back(reserve):
    before = ray.cluster_resources()
    group = reserve({"CPU": 1, "disk": 1}, {"CPU": 2})
    assert (free(), free("disk")) == (1, 1)
    assert ray.cluster_resources()["CPU"] == before["CPU"]
    shown = group.id.hex()
    assert free(f"CPU_group_1_{shown}") == 2 and free(f"CPU_group_{shown}") == 3
    remove_placement_group(group)
    eventually(lambda: ray.available_resources() == before, "as before")
    remove_placement_group(group)


def test_a_handle_says_what_the_group_is(reserve):
    group = reserve({"CPU": 1}, {"CPU": 0.5, "disk": 1}, name="described", strategy="SPREAD")
    assert group.bundle_specs == [{"CPU": 1.0}, {"CPU": 0.5, "disk": 1.0}] and group.bundle_count == 2
    again = pickle.loads(pickle.dumps(group))
    assert again == group and hash(again) == hash(group) and again.bundle_specs == group.bundle_specs
    assert not group.is_empty and len(group.id.binary()) == 18
    table = placement_group_table(group)
    assert table["state"] == "CREATED" and table["strategy"] == "SPREAD" and table["name"] == "described"
    assert table["bundles"] == dict(enumerate(group.bundle_specs))
    assert set(table["bundles_to_node_id"].values()) == {ray.nodes()[0]["NodeID"]}
    assert placement_group_table()[group.id.hex()] == table
    assert PlacementGroup(group.id).bundle_specs == group.bundle_specs
    assert ray.get(group.ready()) == group


def test_the_handle_of_no_group():
    empty = PlacementGroup.empty()
    assert empty.is_empty and empty.bundle_specs == [] and empty != placement_group
    assert ray.get(empty.ready()) == empty and empty.wait(0)
    remove_placement_group(empty)
    assert ray.get(here.options(scheduling_strategy=InGroup(empty)).remote()) is None


def test_groups_wait_their_turn_and_keep_nothing_meanwhile(reserve, mailbox, gate):
    blockers = [hold.remote(mailbox, gate) for _ in range(2)]
    [mailbox.take() for _ in blockers]
    waiting = reserve({"CPU": 3}, wait=False)
    ready = waiting.ready()
    assert not waiting.wait(0) and not ray.wait([ready], timeout=0.05)[0]
    assert placement_group_table(waiting)["state"] == "PENDING" and free() == 2
    task = here.options(scheduling_strategy=InGroup(waiting)).remote()
    small = reserve({"CPU": 2})  # what fits goes first
    gate.open()
    ray.get(blockers)
    assert not ray.wait([ready], timeout=0.05)[0]
    remove_placement_group(small)
    assert ray.get(ready, timeout=20) == waiting and waiting.wait() and ray.get(task) == waiting


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", None])
def test_strategies_that_one_node_can_follow(strategy, reserve):
    group = reserve({"CPU": 1}, {"CPU": 1}, strategy=strategy)
    tasks = [here.options(scheduling_strategy=InGroup(group, index)).remote() for index in (0, 1)]
    assert ray.get(tasks) == [group, group]


def test_strict_spread_waits_and_says_why(reserve, told):
    group = reserve({"CPU": 1}, {"CPU": 1}, strategy="STRICT_SPREAD", wait=False, name="far apart")
    task = here.options(scheduling_strategy=InGroup(group)).remote()
    eventually(lambda: "STRICT_SPREAD puts its 2" in told(), "warned")
    assert "'far apart' cannot be placed" in told() and "one" in told()
    assert not group.wait(0.05) and free() == 4
    assert placement_group_table(group)["stats"]["scheduling_state"] == "INFEASIBLE"
    remove_placement_group(group)
    with pytest.raises(Removed, match="'far apart' was removed"):
        ray.get(task)
    assert reserve({"CPU": 1}, strategy="STRICT_SPREAD").wait(20)


def test_more_than_the_node_has_waits_and_says_what_lacks(reserve, told):
    group = reserve({"CPU": 3}, {"CPU": 2, "moon": 1}, wait=False)
    eventually(lambda: "moon: 1 asked, 0" in told(), "warned")
    assert "CPU: 5 asked, 4 in total" in told()
    assert not group.wait(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bundles": []},
        {"bundles": {"CPU": 1}},
        {"bundles": [{}]},
        {"bundles": [{"CPU": 0}]},
        {"bundles": [{"CPU": 1}, {"GPU": 0, "disk": 0}]},
        {"bundles": [{"CPU": -1}]},
        {"bundles": [{"CPU": float("nan")}]},
        {"bundles": [{"CPU": "1"}]},
        {"bundles": [{1: 1}]},
        {"bundles": ["CPU"]},
        {"bundles": [{"bundle": 1}]},
        {"bundles": [{"CPU": 1}], "strategy": "TIGHT"},
        {"bundles": [{"CPU": 1}], "lifetime": "forever"},
        {"bundles": [{"CPU": 1}], "name": 5},
    ],
    ids=str,
)
def test_groups_that_make_no_sense(wrong):
    with pytest.raises(ValueError):
        placement_group(**wrong)
    assert all_resources_back()


def test_what_is_not_there_says_so(reserve):
    for option in (
        {"topology_strategy": {"ray.io/node-id": "PACK"}},
        {"bundle_label_selector": [{"a": "b"}]},
    ):
        with pytest.raises(ray.exceptions.NotSupportedError, match=next(iter(option))):
            placement_group([{"CPU": 1}], **option)
    with pytest.raises(TypeError):
        remove_placement_group("group")
    with pytest.raises(TypeError):
        placement_group_table(5)
    with pytest.raises(TypeError):
        reserve().wait("long")
    with pytest.raises(ValueError):
        reserve().wait(-1)


# --- names ---


def test_named_groups_are_found_until_they_are_removed(reserve):
    group = reserve({"CPU": 1}, name="found")
    assert get_placement_group("found") == group
    assert get_placement_group("found").bundle_specs == [{"CPU": 1.0}]

    @ray.remote
    def find(name):
        return get_placement_group(name)

    assert ray.get(find.remote("found")) == group
    with pytest.raises(ValueError, match="'found' is taken"):
        placement_group([{"CPU": 1}], name="found")
    remove_placement_group(group)
    with pytest.raises(ValueError, match="no placement group named 'found'"):
        get_placement_group("found")
    reserve({"CPU": 1}, name="found")
    with pytest.raises(ValueError, match="non-empty"):
        get_placement_group("")


# --- running in groups ---


def test_tasks_use_their_bundle_and_nothing_beside_it(reserve, mailbox, gate):
    group = reserve({"CPU": 1}, {"CPU": 2})
    options = {"scheduling_strategy": InGroup(group, 1)}
    refs = [hold.options(**options).remote(mailbox, gate) for _ in range(3)]
    [mailbox.take() for _ in range(2)]
    with pytest.raises(TimeoutError):
        mailbox.take(timeout_s=0.2)  # a CPU of bundle 0 and one of the node are free
    assert free() == 1 and free(f"CPU_group_1_{group.id.hex()}") == 0
    anywhere = hold.options(scheduling_strategy=InGroup(group)).remote(mailbox, gate)
    mailbox.take()  # in bundle 0
    outside = hold.remote(mailbox, gate)
    mailbox.take()
    gate.open()
    assert ray.get([*refs, anywhere]) == [group] * 4 and ray.get(outside) is None


def test_a_full_node_does_not_keep_the_group_from_running(reserve, mailbox, gate):
    group = reserve({"CPU": 1})
    full = [hold.remote(mailbox, gate) for _ in range(3)]
    [mailbox.take() for _ in full]
    assert ray.get(here.options(scheduling_strategy=InGroup(group)).remote(), timeout=20) == group
    gate.open()
    ray.get(full)


def test_actors_hold_their_bundle(reserve):
    group = reserve({"CPU": 1}, {"CPU": 1})
    actor = Member.options(num_cpus=1, scheduling_strategy=InGroup(group, 0)).remote()
    assert ray.get(actor.here.remote()) == group
    assert free(f"CPU_group_0_{group.id.hex()}") == 0 and free(f"CPU_group_1_{group.id.hex()}") == 1
    light = Member.options(
        scheduling_strategy=InGroup(group, 1)
    ).remote()  # needs a CPU to be placed, holds none
    assert ray.get(light.here.remote()) == group and free(f"CPU_group_1_{group.id.hex()}") == 1


@pytest.mark.parametrize(
    ("bundles", "index", "options", "words"),
    [
        ([{"CPU": 1}], 1, {}, "bundles 0 to 0"),
        ([{"CPU": 1}], -2, {}, "is not valid"),
        ([{"CPU": 1}, {"CPU": 2}], -1, {"num_cpus": 3}, "any bundle"),
        ([{"CPU": 1}, {"CPU": 2}], 0, {"num_cpus": 2}, "bundle 0"),
        ([{"CPU": 1}], -1, {"resources": {"disk": 1}}, "disk"),
    ],
)
def test_what_fits_no_bundle_is_refused_at_once(bundles, index, options, words, reserve):
    group = reserve(*bundles)
    for target in (here, Member):
        with pytest.raises(ValueError, match=words):
            target.options(**options, scheduling_strategy=InGroup(group, index)).remote()


def test_an_actor_without_cpus_says_what_it_needs_to_be_placed(reserve):
    group = reserve({"disk": 1})
    with pytest.raises(ValueError, match="names no num_cpus"):
        Member.options(scheduling_strategy=InGroup(group)).remote()
    actor = Member.options(num_cpus=0, scheduling_strategy=InGroup(group)).remote()
    assert ray.get(actor.here.remote()) == group


def test_bundle_resources_cannot_be_had_by_their_names(reserve):
    group = reserve()
    name = f"CPU_group_0_{group.id.hex()}"
    with pytest.raises(ray.exceptions.TaskUnschedulableError, match="is a bundle's"):
        ray.get(here.options(num_cpus=0, resources={name: 1}).remote(), timeout=20)


def test_handles_travel_and_are_used_elsewhere(reserve):
    @ray.remote
    def use(group):
        return ray.get(here.options(scheduling_strategy=InGroup(group, 0)).remote())

    @ray.remote
    def make():
        group = placement_group([{"CPU": 1}], name="made in a task")
        ray.get(group.ready())
        return group

    group = reserve()
    assert ray.get(use.remote(group)) == group
    made = ray.get(make.remote())
    assert get_placement_group("made in a task") == made  # it stays as long as the driver
    assert ray.get(use.remote(made)) == made
    remove_placement_group(made)
    eventually(lambda: free() == 3, "given back")


def test_the_older_options_still_work(reserve):
    group = reserve({"CPU": 1}, {"CPU": 1})
    with pytest.warns(DeprecationWarning, match="placement_group") as warned:
        ref = here.options(placement_group=group, placement_group_bundle_index=1).remote()
    assert ray.get(ref) == group and warned[0].filename == __file__
    with pytest.warns(DeprecationWarning) as warned:
        actor = Member.options(placement_group=group, placement_group_capture_child_tasks=True).remote()
    assert ray.get([actor.here.remote(), actor.child.remote()]) == [group, group]
    assert len(warned) == 1 and warned[0].filename == __file__
    assert ray.get(here.options(placement_group="default").remote()) is None
    with pytest.raises(ValueError, match="needs a placement group"), pytest.warns(DeprecationWarning):
        here.options(placement_group_bundle_index=0).remote()


# --- children ---


@pytest.mark.parametrize("capture", [None, False, True])
def test_children_run_in_the_group_when_it_captures_them(capture, reserve):
    group = reserve({"CPU": 2})
    inside = group if capture else None
    found = ray.get(ask.options(scheduling_strategy=InGroup(group, 0, capture)).remote())
    assert found == (group, inside, inside)
    actor = Member.options(scheduling_strategy=InGroup(group, -1, capture)).remote()
    assert ray.get([actor.child.remote(), actor.child_actor.remote()]) == [inside, inside]
    assert ray.get(ask.remote()) == (None, None, None)  # maybe on the same worker


@pytest.mark.parametrize("capture", [False, True])
def test_the_context_knows_the_group(capture, reserve):
    @ray.remote
    def look():
        context = ray.get_runtime_context()
        return context.get_placement_group_id(), context.should_capture_child_tasks_in_placement_group

    group = reserve()
    strategy = InGroup(group, 0, capture)
    assert ray.get(look.options(scheduling_strategy=strategy).remote()) == (group.id.hex(), capture)
    context = ray.get_runtime_context()
    assert context.get_placement_group_id() is None
    assert not context.should_capture_child_tasks_in_placement_group


def test_captured_children_can_leave_or_choose(reserve):
    group, other = reserve({"CPU": 2}), reserve({"CPU": 1})

    @ray.remote
    def choose(other):
        with_name = here.options(scheduling_strategy=InGroup(other)).remote()
        return ray.get(
            [
                here.remote(),
                here.options(scheduling_strategy="DEFAULT").remote(),
                here.options(scheduling_strategy=InGroup(None)).remote(),
                with_name,
            ]
        )

    refs = [choose.options(scheduling_strategy=InGroup(group, 0, True)).remote(other) for _ in range(2)]
    assert ray.get(refs) == [[group, None, None, other]] * 2


def test_captured_children_that_do_not_fit_are_refused(reserve):
    group = reserve({"CPU": 1})

    @ray.remote
    def parent():
        here.options(num_cpus=2).remote()

    with pytest.raises(ValueError, match="does not fit"):
        ray.get(parent.options(scheduling_strategy=InGroup(group, 0, True)).remote())


def test_a_parent_that_waits_lends_its_cpu_inside_the_bundle(reserve, mailbox, gate):
    """One CPU in the group, none outside, and three generations that wait for each other."""
    group = reserve({"CPU": 1})
    full = [hold.remote(mailbox, gate) for _ in range(3)]
    [mailbox.take() for _ in full]
    found = ray.get(ask.options(scheduling_strategy=InGroup(group, 0, True)).remote(), timeout=20)
    assert found == (group, group, group)
    gate.open()
    ray.get(full)


# --- deaths ---


def test_a_task_whose_worker_dies_runs_again_in_its_group(reserve, tally):
    @ray.remote(max_retries=1)
    def once(tally):
        if tally.bump() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return get_current_placement_group()

    group = reserve({"CPU": 1})
    assert ray.get(once.options(scheduling_strategy=InGroup(group, 0)).remote(tally)) == group
    assert tally.count == 2


@pytest.mark.parametrize("index", [-1, 1])
def test_a_restarted_actor_is_in_its_group_again(index, reserve, mailbox, gate):
    group = reserve({"CPU": 1}, {"CPU": 1})
    actor = Member.options(
        num_cpus=1, max_restarts=1, scheduling_strategy=InGroup(group, index, True)
    ).remote()
    before = ray.get(actor.pid.remote())
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.crash.remote())
    assert ray.get(actor.here.remote()) == group and ray.get(actor.pid.remote()) != before
    assert free(f"CPU_group_{group.id.hex()}") == 1
    if index == 1:
        assert free(f"CPU_group_1_{group.id.hex()}") == 0


def test_removal_ends_tasks_that_run_or_wait(reserve, mailbox, gate):
    group = reserve({"CPU": 1}, name="doomed")
    options = {"scheduling_strategy": InGroup(group)}
    running = hold.options(**options, max_retries=0).remote(mailbox, gate)
    pid = mailbox.take()
    waiting = [hold.options(**options).remote(mailbox, gate) for _ in range(3)]
    blocked = here.options(**options).remote()
    remove_placement_group(group)
    for ref in [running, *waiting, blocked, here.options(**options).remote(), group.ready()]:
        with pytest.raises(Removed, match="placement group 'doomed' was removed"):
            ray.get(ref, timeout=20)
    assert not group.wait(20) and placement_group_table(group)["state"] == "REMOVED"
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the worker is dead")
    assert mailbox.take_all() == []


def test_a_running_task_with_retries_is_not_run_elsewhere(reserve, mailbox, gate):
    group = reserve({"CPU": 1})
    running = hold.options(max_retries=-1, scheduling_strategy=InGroup(group)).remote(mailbox, gate)
    mailbox.take()
    remove_placement_group(group)
    with pytest.raises(Removed):
        ray.get(running, timeout=20)


def test_removal_ends_actors_that_run_start_or_wait(reserve, mailbox, gate):
    group = reserve({"CPU": 2}, name="doomed")
    inside = Member.options(max_restarts=-1, num_cpus=1, scheduling_strategy=InGroup(group))
    running, full = inside.remote(), inside.remote()
    call = running.wait.remote(mailbox, gate)
    mailbox.take()
    ray.get(full.pid.remote())
    waiting = inside.remote().pid.remote()
    remove_placement_group(group)
    for ref in (call, running.pid.remote(), full.pid.remote()):
        with pytest.raises(ray.exceptions.ActorDiedError, match="placement group 'doomed' was removed"):
            ray.get(ref, timeout=20)
    for ref in (waiting, inside.remote().pid.remote()):
        with pytest.raises(ray.exceptions.ActorPlacementGroupRemoved, match="'doomed' was removed"):
            ray.get(ref, timeout=20)


def test_removal_from_inside_ends_the_one_that_asked(reserve):
    @ray.remote(max_retries=0)
    def suicide(group):
        remove_placement_group(group)
        signal.pause()

    group = reserve({"CPU": 1})
    with pytest.raises(Removed):
        ray.get(suicide.options(scheduling_strategy=InGroup(group)).remote(group), timeout=20)


def test_resources_are_free_only_when_what_used_them_is_dead(reserve, mailbox, gate):
    """Whoever gets the CPUs next starts after the end of those that had them."""

    @ray.remote
    def alive(pid):
        return os.path.exists(f"/proc/{pid}") and open(f"/proc/{pid}/stat").read().split()[2] != "Z"

    for _ in range(5):
        group = reserve({"CPU": 4})
        ref = hold.options(num_cpus=4, max_retries=0, scheduling_strategy=InGroup(group)).remote(
            mailbox, gate
        )
        pid = mailbox.take()
        after = alive.options(num_cpus=4).remote(pid)
        remove_placement_group(group)
        assert ray.get(after, timeout=20) is False
        with pytest.raises(Removed):
            ray.get(ref)


def test_groups_and_tasks_come_and_go_and_nothing_is_lost(reserve):
    for _ in range(10):
        groups = [reserve({"CPU": 1}, {"CPU": 1}, wait=False) for _ in range(4)]
        refs = [here.options(scheduling_strategy=InGroup(g)).remote() for g in groups for _ in range(2)]
        remove_placement_group(groups[3])
        for group, pair in zip(groups[:2], (refs[:2], refs[2:4]), strict=True):
            assert ray.get(pair, timeout=20) == [group, group]
            remove_placement_group(group)
        assert ray.get(refs[4:6], timeout=20) == [groups[2]] * 2
        remove_placement_group(groups[2])
        eventually(all_resources_back, "resources back")


# --- drivers and detached groups ---

OTHER = """
import ftray as ray
from ftray.util import *
ray.init(address={address!r}, namespace="other")
mine = placement_group([{{"CPU": 1}}], name="mine")
kept = placement_group([{{"CPU": 1}}], name="kept", lifetime="detached")
waiting = placement_group([{{"CPU": 4}}], name="waits")
assert mine.wait() and kept.wait()

@ray.remote
class Maker:
    def make(self):
        group = placement_group([{{"CPU": 1}}], name="of an actor")
        assert group.wait()
    def find(self):
        return [row["name"] for row in placement_group_table().values() if row["state"] == "CREATED"]

maker = Maker.options(name="maker", lifetime="detached", num_cpus=0).remote()
ray.get(maker.make.remote())
tell("made")
await_word()
"""


@pytest.mark.parametrize("end", ["finish", "kill"])
def test_a_driver_takes_its_groups_along_but_not_the_detached_ones(end, runtime, start_driver):
    address = ray.nodes()[0]["session_dir"]
    driver = start_driver(OTHER.format(address=address))
    driver.expect("made")
    states = {
        row["name"]: row["state"] for row in placement_group_table().values() if row["namespace"] == "other"
    }
    assert {n: states[n] for n in ("mine", "kept", "of an actor")} == dict.fromkeys(
        ("mine", "kept", "of an actor"), "CREATED"
    )
    with pytest.raises(ValueError):
        get_placement_group("kept")  # another namespace
    if end == "kill":
        driver.signal(signal.SIGKILL)
    else:
        driver.say("end")
    driver.finish(None)
    eventually(lambda: free() == 2, "one CPU back, two kept")
    rows = {
        row["name"]: name
        for name, row in placement_group_table().items()
        if row["state"] != "REMOVED" and row["namespace"] == "other"
    }
    assert set(rows) == {"kept", "of an actor"}
    maker = ray.get_actor("maker", namespace="other")
    assert set(ray.get(maker.find.remote())) == {"kept", "of an actor"}
    ray.kill(maker)
    eventually(lambda: free() == 3, "the actor's group went with it")
    remove_placement_group(PlacementGroup(type(PlacementGroup.empty().id).from_hex(rows["kept"])))
    eventually(all_resources_back, "resources back")
