"""``cancel`` of actor calls, of what a call has submitted, and by whom did not submit it."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

import ftray as ray
from tests.helpers.processes import wait_fd

pytestmark = pytest.mark.usefixtures("runtime")


def assert_cancelled(*refs):
    for ref in refs:
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(ref, timeout=20)


def watch(box, end):
    """Post when it is told that it is cancelled."""
    box.post("started")
    while not ray.get_runtime_context().is_canceled():
        time.sleep(0.001)
    box.post("told")
    if end == "raise":
        raise ValueError("cleaned up")
    return "value"


@ray.remote
class Plain:
    def watch(self, box, end="return"):
        return watch(box, end)

    def wait(self, box, door):
        box.post("started")
        door.wait()
        return ray.get_runtime_context().is_canceled()

    def post(self, box, value):
        box.post(value)
        return value

    def children(self, box, door, actor):
        refs = [sleep.remote(box, door), actor.wait.remote(box, door)]
        box.post(os.getpid())
        try:
            ray.get(refs)
        finally:
            while not ray.get_runtime_context().is_canceled():  # which may come later than the door opens
                time.sleep(0.001)
            box.post("parent ends")


Threads = ray.remote(max_concurrency=2)(Plain._cls)


@ray.remote
class Loop:
    def __init__(self):
        self.seen = []

    async def wait(self, box, end="raise"):
        box.post("started")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            box.post("cancelled")
            if end == "swallow":
                return "swallowed"
            if end == "replace":
                raise ValueError("cleaned up") from None
            raise

    async def post(self, box, value):
        box.post(value)
        return value

    async def children(self, box, door):
        await asyncio.gather(asyncio.to_thread(ray.get, [sleep.remote(box, door)]))

    async def asks(self):
        return ray.get_runtime_context().is_canceled()


@ray.remote(num_cpus=0, max_retries=0)
def sleep(box, door):
    try:
        box.post("child started")
        door.wait()
        box.post("child finished")
    except KeyboardInterrupt:
        box.post("child interrupted")
        raise


SERIAL = pytest.mark.parametrize("actor_class", [Plain, Threads], ids=["plain", "threads"])


# --- queued calls ----------------------------------------------------------------------------------------


@SERIAL
def test_queued_calls_are_removed(actor_class, mailbox, gate):
    actor = actor_class.remote()
    running = [actor.wait.remote(mailbox, gate) for _ in range(1 if actor_class is Plain else 2)]
    for _ in running:
        mailbox.take()
    queued = [actor.post.remote(mailbox, i) for i in range(6)]
    for ref in queued[::2]:
        ray.cancel(ref)
    assert_cancelled(*queued[::2])  # while the others still wait
    gate.open()
    assert ray.get(queued[1::2]) == [1, 3, 5] and ray.get(running) == [False] * len(running)
    assert sorted(mailbox.take_all()) == [1, 3, 5]


@pytest.mark.parametrize("groups", [None, {"other": 1}], ids=["queue", "lane"])
def test_queued_calls_of_an_async_actor_are_removed(groups, mailbox):
    actor = Loop.options(max_concurrency=1, concurrency_groups=groups).remote()
    running = actor.wait.remote(mailbox)
    assert mailbox.take() == "started"
    queued = [actor.post.remote(mailbox, i) for i in range(6)]
    for ref in queued[::2]:
        ray.cancel(ref)
    assert_cancelled(*queued[::2])
    ray.cancel(running)
    assert_cancelled(running)
    assert ray.get(queued[1::2]) == [1, 3, 5]
    assert mailbox.take_all() == ["cancelled", 1, 3, 5]


def test_a_coroutine_that_is_cancelled_before_its_first_step_is_answered():
    """The cancel arrives in the turn in which the call is taken, or not: either way there is one answer."""

    @ray.remote
    class Slow:
        async def block(self, seconds):
            time.sleep(seconds)  # the loop stands still: what comes meanwhile is taken in one turn

        async def f(self, x):
            return x

    actor = Slow.remote()
    ray.get(actor.f.remote(0))
    for _ in range(10):
        blocked = actor.block.remote(0.01)
        refs = [actor.f.remote(i) for i in range(10)]
        for ref in refs[::2]:
            ray.cancel(ref)
        assert ray.get(refs[1::2], timeout=20) == [1, 3, 5, 7, 9]
        for i, ref in enumerate(refs[::2]):
            try:
                assert ray.get(ref, timeout=20) == i * 2
            except ray.exceptions.TaskCancelledError:
                continue
        ray.get(blocked)


def test_calls_of_a_pending_actor_are_cancelled(gate):
    @ray.remote
    class Late:
        def __init__(self, door):
            door.wait()

        def f(self):
            return 1

    actor = Late.remote(gate)
    first, second = actor.f.remote(), actor.f.remote()
    ray.cancel(first)
    assert_cancelled(first)
    gate.open()
    assert ray.get(second) == 1


# --- running calls ---------------------------------------------------------------------------------------


@SERIAL
def test_a_running_method_is_told_and_not_interrupted(actor_class, mailbox):
    actor = actor_class.remote()
    ref = actor.watch.remote(mailbox)
    assert mailbox.take() == "started"
    ray.cancel(ref)
    ray.cancel(ref)
    assert mailbox.take() == "told"
    assert_cancelled(ref)  # although it has returned a value
    assert ray.get(actor.post.remote(mailbox, 1)) == 1  # the next one is not told


@SERIAL
def test_what_a_cancelled_method_raises_is_its_outcome(actor_class, mailbox):
    actor = actor_class.remote()
    ref = actor.watch.options(max_task_retries=3).remote(mailbox, "raise")
    assert mailbox.take() == "started"
    ray.cancel(ref)
    with pytest.raises(ValueError, match="cleaned up"):
        ray.get(ref, timeout=20)
    retried = actor.watch.options(max_task_retries=-1, retry_exceptions=True).remote(mailbox, "raise")
    assert [mailbox.take(), mailbox.take()] == ["told", "started"]
    ray.cancel(retried)
    with pytest.raises((ValueError, ray.exceptions.TaskCancelledError)):  # cancelled is never retried
        ray.get(retried, timeout=20)
    ray.get(actor.post.remote(mailbox, "end"))
    assert mailbox.take_all() == ["told", "end"]


def test_a_running_coroutine_gets_cancelled_error(mailbox):
    actor = Loop.remote()
    refs = {end: actor.wait.remote(mailbox, end) for end in ("raise", "swallow", "replace")}
    assert [mailbox.take() for _ in refs] == ["started"] * 3
    other = actor.wait.remote(mailbox)
    assert mailbox.take() == "started"
    for ref in refs.values():
        ray.cancel(ref)
    assert_cancelled(refs["raise"])
    assert ray.get(refs["swallow"], timeout=20) == "swallowed"
    with pytest.raises(ValueError, match="cleaned up"):
        ray.get(refs["replace"], timeout=20)
    assert ray.wait([other], timeout=0) == ([], [other])
    ray.cancel(other)
    assert_cancelled(other)


@pytest.mark.parametrize("actor_class", [Threads, Loop], ids=["threads", "async"])
def test_calls_of_different_callers_are_told_apart(actor_class, mailbox):
    """Each caller counts its calls by itself: the first of one is not the first of the other."""

    @ray.remote(num_cpus=0)
    class Caller:
        def begin(self, actor, box):
            self.ref = actor.wait.remote(box) if actor_class is Loop else actor.watch.remote(box)

        def cancel(self):
            ray.cancel(self.ref)

        def outcome(self):
            try:
                return ray.get(self.ref, timeout=20)
            except ray.exceptions.TaskCancelledError:
                return "cancelled"

    actor = actor_class.remote()
    callers = [Caller.remote(), Caller.remote()]
    for caller in callers:
        ray.get(caller.begin.remote(actor, mailbox))
        assert mailbox.take() == "started"
    ray.get(callers[1].cancel.remote())
    assert ray.get(callers[1].outcome.remote()) == "cancelled"
    mailbox.take_all()
    ray.get(callers[0].cancel.remote())
    assert ray.get(callers[0].outcome.remote()) == "cancelled"


def test_is_canceled_of_tasks_drivers_and_async_actors(mailbox):
    @ray.remote
    def task(box):
        try:
            box.post(ray.get_runtime_context().is_canceled())
            while True:
                time.sleep(0.001)
        except KeyboardInterrupt:
            return ray.get_runtime_context().is_canceled()

    ref = task.remote(mailbox)
    assert mailbox.take() is False
    ray.cancel(ref)
    assert ray.get(ref, timeout=20) is True  # it went on, and came to an end
    with pytest.raises(RuntimeError, match="in a task"):
        ray.get_runtime_context().is_canceled()
    with pytest.raises(RuntimeError, match="CancelledError"):
        ray.get(Loop.remote().asks.remote())


# --- children --------------------------------------------------------------------------------------------


@SERIAL
def test_recursive_cancel_of_a_method_reaches_its_tasks_and_actor_calls(actor_class, mailbox, gate):
    actor, other = actor_class.remote(), Plain.remote()
    ref = actor.children.remote(mailbox, gate, other)
    started = sorted((mailbox.take() for _ in range(3)), key=str)
    assert started[1:] == ["child started", "started"]
    ray.cancel(ref)
    assert mailbox.take() == "child interrupted"  # which ends the method's get() with an error
    assert mailbox.take() == "parent ends"
    with pytest.raises(ray.exceptions.RayError):
        ray.get(ref, timeout=20)
    gate.open()


@SERIAL
def test_not_recursive_leaves_the_children_alone(actor_class, mailbox, gate):
    actor, other = actor_class.remote(), Plain.remote()
    ref = actor.children.remote(mailbox, gate, other)
    for _ in range(3):
        mailbox.take()
    ray.cancel(ref, recursive=False)
    gate.open()
    assert sorted([mailbox.take(), mailbox.take()]) == ["child finished", "parent ends"]
    assert_cancelled(ref)


@pytest.mark.parametrize("recursive", [True, False])
def test_children_of_a_coroutine(recursive, mailbox, gate):
    actor = Loop.remote()
    ref = actor.children.remote(mailbox, gate)
    assert mailbox.take() == "child started"
    ray.cancel(ref, recursive=recursive)
    assert_cancelled(ref)
    if recursive:
        assert mailbox.take() == "child interrupted"
    gate.open()
    if not recursive:
        assert mailbox.take() == "child finished"


def test_recursive_cancel_of_a_task_reaches_actor_calls_and_grandchildren(mailbox, gate):
    @ray.remote(num_cpus=0)
    def middle(box, door):
        ray.get(sleep.remote(box, door))

    @ray.remote(num_cpus=0)
    def top(box, door, actor):
        ray.get([middle.remote(box, door), actor.watch.remote(box)])

    actor = Plain.remote()
    ref = top.remote(mailbox, gate, actor)
    assert sorted([mailbox.take(), mailbox.take()]) == ["child started", "started"]
    ray.cancel(ref)
    assert_cancelled(ref)
    assert sorted([mailbox.take(), mailbox.take()]) == ["child interrupted", "told"]
    gate.open()


def test_forced_and_recursive(mailbox):
    """The process ends, but not before it has had those ended that run what its task had submitted."""

    @ray.remote(num_cpus=0, max_retries=-1)
    def nap(box):
        box.post(os.getpid())
        signal.pause()

    @ray.remote(num_cpus=0, max_retries=-1)
    def parent(box):
        ref = nap.remote(box)
        box.post(os.getpid())
        ray.get(ref)

    for _ in range(3):
        ref = parent.remote(mailbox)
        pidfds = [os.pidfd_open(mailbox.take()) for _ in range(2)]
        ray.cancel(ref, force=True)
        assert_cancelled(ref)
        for pidfd in pidfds:
            assert wait_fd(pidfd, 20)
            os.close(pidfd)
    assert mailbox.take_all() == []  # nothing ran again


def test_a_forced_cancel_ends_no_other_tasks_worker(mailbox):
    """It comes too late: the worker is in another task already, which is innocent."""

    @ray.remote(max_retries=0)
    def short(x):
        return x

    for i in range(30):
        victim, follower = short.remote(i), short.remote(-i)
        ray.cancel(victim, force=True)
        assert ray.get(follower, timeout=20) == -i
        try:
            assert ray.get(victim, timeout=20) == i
        except ray.exceptions.TaskCancelledError:
            continue


def test_force_ends_a_process_that_hangs(mailbox):
    @ray.remote(max_retries=-1)
    def hang(box):
        box.post(os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)

    ref = hang.remote(mailbox)
    pid = mailbox.take()
    pidfd = os.pidfd_open(pid)
    ray.cancel(ref, force=True)
    assert_cancelled(ref)
    assert wait_fd(pidfd, 20)
    os.close(pidfd)


# --- wrong and late --------------------------------------------------------------------------------------


def test_force_is_not_for_actor_calls(mailbox, gate):
    actor = Plain.remote()
    ref = actor.wait.remote(mailbox, gate)
    with pytest.raises(ValueError, match="kill"):
        ray.cancel(ref, force=True)
    borrowed = ray.get(ray.put([ref]))[0]
    with pytest.raises(ValueError, match="kill"):
        ray.cancel(borrowed, force=True)
    gate.open()
    assert ray.get(ref) is False
    with pytest.raises(ValueError, match="kill"):  # also of one that has finished
        ray.cancel(ref, force=True)
    ray.cancel(ref)
    assert ray.get(ref) is False


def test_what_is_no_return_of_a_task():
    with pytest.raises(ValueError, match="put"):
        ray.cancel(ray.put(1))
    with pytest.raises(TypeError, match="kill"):
        ray.cancel(Plain.remote())
    with pytest.raises(TypeError, match="force"):
        ray.cancel(ray.put(1), force=1)
    with pytest.raises(TypeError, match="recursive"):
        ray.cancel(ray.put(1), recursive=None)


@pytest.mark.parametrize("restarts", [0, -1])
def test_cancel_while_the_process_dies(restarts, mailbox, gate):
    actor = Plain.options(max_restarts=restarts, max_task_retries=-1).remote()
    for _ in range(5):
        pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
        running = actor.wait.remote(mailbox, gate)
        queued = actor.post.remote(mailbox, "never")
        assert mailbox.take() == "started"
        os.kill(pid, signal.SIGKILL)
        ray.cancel(running)
        ray.cancel(queued)
        if not restarts:
            for ref in (running, queued):  # whichever is known first, the death or the cancel
                with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.ActorDiedError)):
                    ray.get(ref, timeout=20)
            break
        assert_cancelled(running, queued)
    gate.open()
    assert mailbox.take_all() == []
    if restarts:
        assert ray.get(actor.post.remote(mailbox, "again"), timeout=20) == "again"


# --- by borrowers ----------------------------------------------------------------------------------------


@ray.remote(num_cpus=0)
def cancel_it(refs, **options):
    ray.cancel(refs[0], **options)
    try:
        ray.get(refs[0], timeout=20)
    except ray.exceptions.TaskCancelledError:
        return "cancelled"


def test_cancel_by_a_borrower(mailbox, gate):
    task = sleep.remote(mailbox, gate)
    assert mailbox.take() == "child started"
    assert ray.get(cancel_it.remote([task])) == "cancelled"
    assert mailbox.take() == "child interrupted"
    assert_cancelled(task)

    actor = Plain.remote()
    call = actor.watch.remote(mailbox)
    assert mailbox.take() == "started"
    assert ray.get(cancel_it.remote([call])) == "cancelled"
    assert mailbox.take() == "told"
    with pytest.raises(ValueError, match="kill"):
        ray.get(cancel_it.remote([actor.wait.remote(mailbox, gate)], force=True))


def test_forced_cancel_by_a_borrower(mailbox, gate):
    task = sleep.options(max_retries=-1).remote(mailbox, gate)
    assert mailbox.take() == "child started"
    assert ray.get(cancel_it.remote([task], force=True)) == "cancelled"
    assert_cancelled(task)


def test_cancel_by_a_borrower_whose_owner_is_dead(mailbox, gate):
    @ray.remote(num_cpus=0)
    class Owner:
        def begin(self, box, door):
            return [sleep.remote(box, door)], os.getpid()

    owner = Owner.remote()
    (ref,), pid = ray.get(owner.begin.remote(mailbox, gate))
    assert mailbox.take() == "child started"
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.OwnerDiedError):
        ray.get(ref, timeout=20)
    ray.cancel(ref)
    gate.open()
