"""Groups of actors: cuts with calls under way, and every process dying at every step of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint import faults
from ftray.exceptions import NotSupportedError, RayActorError
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")

RESTARTING = {"max_restarts": -1, "max_task_retries": -1}
# Every step is tried in tests/unit/checkpoint/test_groups.py, with simulated processes.
MEMBER_POINTS = ["group.polled", "group.captured", "group.writing"]
OPENING_POINTS = ["group.claimed", "group.sealed"]
KEEPER_POINTS = ["group.answered.hold", "group.answered.capture", "group.publish", "group.published"]


def die_at(point):
    """This process ends when it comes to that step the next time."""
    faults.active = faults._Armed(point, "exit", 1)


def account_class(store, **options):
    """An account that pays others: what one has sent, another one has received."""

    class Account(ray.Checkpointable, store=store, **options):
        def __init__(self, trap=""):
            self.sent, self.received = {}, {}
            self.others = {}
            if trap and os.path.exists(trap):
                point = Path(trap).read_text()
                os.unlink(trap)
                die_at(point)

        def save_checkpoint(self):
            return {"sent": self.sent, "received": self.received}

        def meet(self, **others):
            self.others = others

        def receive(self, sender):
            self.received[sender] = self.received.get(sender, 0) + 1

        def pay(self, me, to):
            self.sent[to] = self.sent.get(to, 0) + 1
            return ray.get(self.others[to].receive.remote(me))

        def pay_later(self, me, to):
            self.sent[to] = self.sent.get(to, 0) + 1
            self.others[to].receive.remote(me)

        def wait(self, door):
            door.wait()

        def arm(self, point):
            die_at(point)

        @checkpoint.readonly
        def books(self):
            return self.sent, self.received, os.getpid()

    return ray.remote(**RESTARTING)(Account)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def pair(store, tmp_path):
    """Makes two accounts that know each other, as a group."""
    made = []

    def make():
        remote = account_class(store)
        a, b = (
            remote.options(name=f"{side}-{tmp_path.name}").remote(str(tmp_path / f"trap-{side}"))
            for side in "ab"
        )
        made.extend((a, b))
        meet(a, b)
        return a, b, checkpoint.group([a, b], name="pair")

    yield make
    while made:
        ray.kill(made.pop())  # each has a handle of the other: else they never end


def meet(a, b):
    ray.get([a.meet.remote(b=b), b.meet.remote(a=a)])


def pay(a, b, n=1):
    ray.get([*[a.pay.remote("a", "b") for _ in range(n)], *[b.pay_later.remote("b", "a") for _ in range(n)]])
    eventually(lambda: (at := books(a, b))[1][0].get("a") == at[0][1].get("b"), "what was sent is received")


def states(store, cut):
    """What a cut holds of either account."""
    return [state for _, state in sorted(checkpoint.open(store).load("_group/pair", cut).items())]


def require_consistent(books):
    a, b = books
    sent_a, received_a = (a["sent"], a["received"]) if isinstance(a, dict) else a[:2]
    sent_b, received_b = (b["sent"], b["received"]) if isinstance(b, dict) else b[:2]
    assert sent_a.get("b", 0) == received_b.get("a", 0)
    assert sent_b.get("a", 0) == received_a.get("b", 0)
    return sent_a.get("b", 0), sent_b.get("a", 0)


def books(a, b):
    return ray.get([a.books.remote(), b.books.remote()])


def taken_back(group, generation):
    eventually(lambda: group.generation >= generation, f"generation {generation} of {group}")
    ray.get([h.__ray_ready__.remote() for h in group.handles])


def kill(actor):
    pid = ray.get(actor.books.remote())[2]
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])


# --- cuts ------------------------------------------------------------------------------------------------


def test_cuts_under_traffic_are_consistent(pair, store):
    a, b, group = pair()
    refs = []
    for _ in range(5):
        refs += [call for _ in range(30) for call in (a.pay.remote("a", "b"), b.pay_later.remote("b", "a"))]
        cut = group.save()
        require_consistent(states(store, cut))
    ray.get(refs)
    assert [info.id for info in group.list() if info.counts][-1] == cut


def test_calls_from_outside_wait_and_are_not_lost(pair, store):
    a, b, group = pair()
    refs = [a.pay.remote("a", "b") for _ in range(200)]
    group.save()
    refs += [a.pay.remote("a", "b") for _ in range(200)]
    group.save()
    ray.get(refs)
    assert books(a, b)[0][0] == {"b": 400}


def test_a_crash_takes_all_members_back(pair):
    a, b, group = pair()
    pay(a, b, 3)
    group.save(note="three")
    pay(a, b, 4)
    before = books(a, b)
    kill(b)
    taken_back(group, 2)
    after = books(a, b)
    assert require_consistent(after) == (3, 3)
    assert {one[2] for one in after}.isdisjoint(one[2] for one in before)
    meet(a, b)
    pay(a, b)
    assert require_consistent(books(a, b)) == (4, 4)
    assert group.list()[-1].note == "three"


def test_members_that_die_together_go_back_together(pair):
    a, b, group = pair()
    pay(a, b, 2)
    group.save()
    pids = [one[2] for one in books(a, b)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_ended(pids)
    taken_back(group, 2)
    assert require_consistent(books(a, b)) == (2, 2)


def test_restore_goes_back_to_an_older_cut(pair):
    a, b, group = pair()
    pay(a, b)
    older = group.save()
    pay(a, b)
    newer = group.save()
    assert group.restore(older) == older
    assert require_consistent(books(a, b)) == (1, 1)
    assert [(info.id, info.counts) for info in group.list()] == [(older, True), (newer, False)]
    with pytest.raises(checkpoint.CheckpointNotFoundError, match=f"no cut {newer}"):
        group.restore(newer)
    kill(a)  # a crash goes back to the same
    taken_back(group, 3)
    assert require_consistent(books(a, b)) == (1, 1)


def test_a_damaged_cut_is_passed_over(pair, store):
    a, b, group = pair()
    pay(a, b)
    older = group.save()
    pay(a, b)
    newer = group.save()
    assert newer != older
    newest = max((p for p in store.rglob("*cut-*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    assert group.restore() == older
    assert require_consistent(books(a, b)) == (1, 1)


# --- deaths in every phase -------------------------------------------------------------------------------


def test_a_member_that_dies_while_a_cut_is_taken(pair, store):
    a, b, group = pair()
    done = 0
    for generation, point in enumerate(MEMBER_POINTS, 2):
        pay(a, b)
        ray.get(b.arm.remote(point))
        with pytest.raises((RayActorError, checkpoint.CheckpointError)):
            group.save()
        taken_back(group, generation)
        assert require_consistent(books(a, b)) == (done, done), point
        meet(a, b)
        pay(a, b)
        cut, done = group.save(), done + 1
        assert require_consistent(states(store, cut)) == (done, done), point


def test_a_member_that_dies_while_the_group_goes_back(pair, tmp_path):
    a, b, group = pair()
    pay(a, b)
    group.save()
    for point in OPENING_POINTS:
        generation = group.generation
        (tmp_path / "trap-a").write_text(point)
        pay(a, b)
        kill(a)
        taken_back(group, generation + 1)
        eventually(lambda: not (tmp_path / "trap-a").exists(), "the member died on its way")
        assert eventually(lambda: require_consistent(books(a, b)) == (1, 1)), point
        meet(a, b)
    assert group.save()


@ray.remote
class Keeper:
    """Takes cuts in a process that may die of it."""

    def save(self, members, point):
        group = checkpoint.group(members, name="pair")
        die_at(point)
        return group.save()


def test_a_coordinator_that_dies_holds_nobody(pair, store):
    a, b, group = pair()
    for done, point in enumerate(KEEPER_POINTS, 1):
        keeper = Keeper.remote()
        with pytest.raises(RayActorError):
            ray.get(keeper.save.remote([a, b], point))
        pay(a, b)  # nobody is held
        cut = group.save()
        assert require_consistent(states(store, cut)) == (done, done), point
    assert group.generation == 1


def test_members_that_do_not_come_to_rest(pair, gate):
    a, b, group = pair()
    waits = a.wait.remote(gate)
    with pytest.raises(checkpoint.CheckpointTimeoutError, match="in time"):
        group.save(timeout_s=0.2)
    ray.get(b.books.remote())  # it goes on, though the other one is still busy
    gate.open()
    ray.get(waits)
    assert group.save()


# --- exactly once ----------------------------------------------------------------------------------------


def make_counters(store):
    class Counter(ray.Checkpointable, store=store, exactly_once=True):
        def __init__(self):
            self.n = 0

        def add(self, k):
            self.n += k
            return self.n

        @checkpoint.readonly
        def books(self):
            return self.n, None, os.getpid()

    remote = ray.remote(Counter)
    return [remote.options(name=f"{store.parent.name}-{side}").remote() for side in "xy"]


@ray.remote
def add(counter, k):
    """A call in a flow of its own, which knows of no history."""
    return ray.get(counter.add.remote(k))


def test_exactly_once_members_crash_alone_and_go_back_together(store):
    x, y = make_counters(store)
    group = checkpoint.group([x, y], name="once")
    assert ray.get([add.remote(x, 1), add.remote(y, 10)]) == [1, 10]
    cut = group.save()
    assert ray.get([add.remote(x, 1), add.remote(y, 10)]) == [2, 20]
    kill(x)
    assert ray.get([add.remote(x, 1), add.remote(y, 10)]) == [3, 30]  # nothing was lost, nobody went back
    assert group.generation == 1
    assert group.restore() == cut
    assert ray.get([add.remote(x, 1), add.remote(y, 10)]) == [2, 20]
    kill(x)
    kill(y)
    assert ray.get([add.remote(x, 1), add.remote(y, 10)]) == [3, 30]
    assert group.generation == 2


@ray.remote
def call_twice(counter, mailbox, gate):
    """One flow, with a call before and a call after the group goes back."""
    first = ray.get(counter.add.remote(1))
    mailbox.post(first)
    gate.wait()
    return ray.get(counter.add.remote(1))


def test_exactly_once_calls_of_the_old_history_are_refused(store, mailbox, gate):
    x, y = make_counters(store)
    twice = call_twice.remote(x, mailbox, gate)
    assert mailbox.take() == 1
    checkpoint.group([x, y], name="once").restore()
    gate.open()
    with pytest.raises(checkpoint.CheckpointRolledBackError):
        ray.get(twice)
    assert ray.get(x.books.remote())[0] == 1


# --- found again, and refused ----------------------------------------------------------------------------


def test_a_group_is_found_again_by_its_name(store):
    remote = account_class(store)
    a, b = (remote.options(name=name, namespace="again").remote() for name in ("a", "b"))
    meet(a, b)
    group = checkpoint.group([a, b], name="pair")
    assert group.is_new
    pay(a, b)
    group.save(note=1)
    pay(a, b)
    for actor in (a, b):
        ray.get(actor.__ray_ready__.remote())
        ray.kill(actor)
    c, d = (new_one(remote, name) for name in ("a", "b"))
    again = checkpoint.group([c, d], name="pair")
    assert not again.is_new and again.list()[-1].note == 1
    assert require_consistent(books(c, d)) == (1, 1)
    other = remote.options(name="c", namespace="again").remote()
    with pytest.raises(checkpoint.CheckpointMismatchError, match="'again/b' missing, 'again/c' too many"):
        checkpoint.group([c, other], name="pair")
    with pytest.raises(checkpoint.CheckpointOptionError, match="one group only"):
        checkpoint.group([c, d], name="another")
    for actor in (c, d):
        ray.kill(actor)


def new_one(remote, name):
    """An actor of a name that has only just become free."""

    def make():
        try:
            return remote.options(name=name, namespace="again").remote()
        except ValueError:
            return None

    return eventually(make, f"the name {name}")


def test_what_cannot_be_a_group(store, tmp_path):
    remote = account_class(store)
    a = remote.options(name="a").remote()
    with pytest.raises(checkpoint.CheckpointOptionError, match="at least one"):
        checkpoint.group([], name="g")
    for name in ("", "a/b", "x" * 81, 7):
        with pytest.raises(checkpoint.CheckpointOptionError, match="name="):
            checkpoint.group([a], name=name)
    with pytest.raises(checkpoint.CheckpointOptionError, match="keep=1"):
        checkpoint.group([a], name="g", keep=1)
    with pytest.raises(checkpoint.CheckpointOptionError, match="timeout_s=0"):
        checkpoint.group([a], name="g", timeout_s=0)
    with pytest.raises(checkpoint.CheckpointOptionError, match="not a handle"):
        checkpoint.group([a, 3], name="g")
    with pytest.raises(checkpoint.CheckpointOptionError, match="twice"):
        checkpoint.group([a, a], name="g")
    with pytest.raises(checkpoint.CheckpointOptionError, match="where its members' states are"):
        checkpoint.group([a], name="g", store=tmp_path / "elsewhere")
    alone = account_class("memory://alone").options(name="alone").remote()
    with pytest.raises(checkpoint.UnsupportedStoreError, match="a store that they all see"):
        checkpoint.group([alone], name="g")
    with pytest.raises(checkpoint.CheckpointOptionError, match="max_restarts=0"):
        checkpoint.group([remote.options(max_restarts=0).remote()], name="g")
    with pytest.raises(NotSupportedError, match="one call at a time"):
        checkpoint.group([remote.options(max_concurrency=2).remote()], name="g")
    with pytest.raises(NotSupportedError, match="exactly-once and other members"):
        checkpoint.group([a, make_counters(store)[0]], name="g")


def test_a_member_does_not_take_cuts(pair):
    a, _b, group = pair()

    def save(instance, handles):
        checkpoint.group(handles, name="pair").save()

    with pytest.raises(NotSupportedError, match="a member takes"):
        ray.get(a.__ray_call__.remote(save, group.handles))


def test_a_note_that_cannot_be_kept_holds_nobody(pair):
    _a, _b, group = pair()
    with pytest.raises(TypeError, match="pickle"):
        group.save(note=threading.Lock())
    assert group.save(note={"step": 1})


# --- the controller ----------------------------------------------------------------------------------------


def make_worker_of(store):
    class Worker(ray.Checkpointable, store=store):
        def __init__(self, i):
            self.i, self.done = i, []

        def work(self, step, victim=None, bad=None):
            if victim is not None and self.i == 1 and not os.path.exists(victim):
                Path(victim).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if bad is not None and self.i == bad:
                raise ValueError(f"step {step} is bad")
            self.done.append(step)
            return self.i, len(self.done)

        @checkpoint.readonly
        def all_done(self):
            return self.done

        @checkpoint.readonly
        def books(self):
            return self.i, self.done, os.getpid()

    return lambda i: ray.remote(**RESTARTING)(Worker).options(name=f"{store.parent.name}-{i}").remote(i)


def all_done(controller):
    return ray.get([worker.all_done.remote() for worker in controller.workers])


def test_a_controller_does_steps_again_after_a_death(store, tmp_path):
    controller = checkpoint.Controller(make_worker_of(store), 3, name="steps", every=4)
    for step in range(10):
        victim = str(tmp_path / f"victim-{step}") if step in (2, 6) else None
        assert controller.perform("work", step, victim) == [(i, step + 1) for i in range(3)]
    assert controller.step == 10 and all_done(controller) == [list(range(10))] * 3


def test_a_step_that_raises_has_no_effect(store):
    controller = checkpoint.Controller(make_worker_of(store), 2, name="raising", every=4)
    controller.perform("work", 0)
    with pytest.raises(ValueError, match="step 1 is bad"):
        controller.perform("work", 1, bad=1)
    assert controller.perform("work", 2) == [(0, 2), (1, 2)]
    assert all_done(controller) == [[0, 2], [0, 2]]


def test_a_dead_worker_is_made_anew(store):
    controller = checkpoint.Controller(make_worker_of(store), 2, name="anew", every=1)
    controller.perform("work", 0)
    ray.kill(controller.workers[0])
    assert controller.perform("work", 1) == [(0, 2), (1, 2)]
    assert all_done(controller) == [[0, 1]] * 2


def test_a_controller_goes_on_where_the_last_cut_was(store):
    make = make_worker_of(store)
    workers = [make(i) for i in range(2)]
    first = checkpoint.Controller(lambda i: workers[i], 2, name="again", every=2)
    for step in range(3):
        first.perform("work", step)
    second = checkpoint.Controller(lambda i: workers[i], 2, name="again", interval_s=3600)
    assert second.step == 2 and all_done(second) == [[0, 1]] * 2
    with pytest.raises(checkpoint.CheckpointOptionError, match="n=0"):
        checkpoint.Controller(make, 0, name="none")
    with pytest.raises(checkpoint.CheckpointOptionError, match="factory="):
        checkpoint.Controller(workers, 2, name="none")
    with pytest.raises(checkpoint.CheckpointOptionError, match="every=0"):
        checkpoint.Controller(make, 1, name="none", every=0)


def work_until_a_death(controller, fault):
    """Three steps whose arguments the program reuses; `fault` meets the cut that is due after the second."""
    step = [None]
    for step[0] in range(3):
        with fault if step[0] == 1 else contextlib.nullcontext():
            assert controller.perform("work", step) == [(i, step[0] + 1) for i in range(2)]
    kill(controller.workers[0])
    step[0] = 3
    assert controller.perform("work", step) == [(0, 4), (1, 4)]
    assert all_done(controller) == [[[0], [1], [2], [3]]] * 2


def test_steps_are_done_again_with_the_arguments_that_they_had(store):
    controller = checkpoint.Controller(make_worker_of(store), 2, name="reused", every=100)
    work_until_a_death(controller, contextlib.nullcontext())


@contextlib.contextmanager
def cut_that_fails(controller, point):
    error = checkpoint.CheckpointSaveError("no answer of the store")
    text = "no cut of 'failing' after step 2.* no answer of the store"
    with pytest.warns(RuntimeWarning, match=text), faults.armed(point, error):
        yield
    assert controller.save_error is error


@pytest.mark.parametrize("point", ["group.publish", "group.published"])
def test_a_cut_that_fails_undoes_no_step(store, point):
    controller = checkpoint.Controller(make_worker_of(store), 2, name="failing", every=2)
    work_until_a_death(controller, cut_that_fails(controller, point))
    assert controller.save_error is None and controller.group.list()[-1].note["step"] in (3, 4)


def test_a_cut_that_fails_and_is_there_is_gone_back_to(store):
    controller = checkpoint.Controller(make_worker_of(store), 2, name="failing", every=2)
    controller.perform("work", 0)
    with cut_that_fails(controller, "group.published"):
        controller.perform("work", 1)
    kill(controller.workers[0])
    assert controller.perform("work", 2) == [(0, 3), (1, 3)]
    assert all_done(controller) == [[0, 1, 2]] * 2
