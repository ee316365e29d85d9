"""Methods of actors: their options, the ones that every actor has, inheritance, and what is no method."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading

import pytest

import ftray as ray
from ftray.actor import ActorClassInheritanceException
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


class Base:
    kind = "base"

    def who(self):
        return type(self).__name__

    def overridden(self):
        return "base"


@ray.remote
class Derived(Base):
    def __init__(self, x=0):
        self.x = x

    def overridden(self):
        return "derived, " + super().overridden()

    @staticmethod
    def static(a, b=2):
        return a + b

    @classmethod
    def made(cls, a):
        return cls.__name__, cls.kind, a

    @property
    def prop(self):
        return self.x

    def get_prop(self):
        return self.prop

    def __call__(self, y):
        return ("called", y)

    def stop(self, box=None):
        if box is not None:
            box.post("never")


# --- classes ---------------------------------------------------------------------------------------------


def test_inheritance_static_and_class_methods_and_properties():
    actor = Derived.remote(5)
    assert ray.get(actor.who.remote()) == "Derived"
    assert ray.get(actor.overridden.remote()) == "derived, base"
    assert ray.get([actor.static.remote(1), actor.static.remote(1, b=3)]) == [3, 4]
    assert ray.get(actor.made.remote(1)) == ("Derived", "base", 1)
    assert ray.get(actor.get_prop.remote()) == 5
    assert ray.get(actor.__call__.remote(3)) == ("called", 3)


@pytest.mark.parametrize(
    "name, near", [("overriden", "overridden"), ("stat", "static"), ("get_pop", "get_prop")]
)
def test_method_that_does_not_exist_lists_the_near_ones(name, near):
    actor = Derived.remote()
    with pytest.raises(AttributeError) as caught:
        getattr(actor, name)
    assert repr(near) in str(caught.value) and "Derived" in str(caught.value)


@pytest.mark.parametrize("name", ["prop", "x", "kind"])
def test_attributes_are_not_read_through_the_handle(name):
    with pytest.raises(AttributeError, match="methods only"):
        getattr(Derived.remote(), name)


def test_wrong_arguments_of_static_and_class_methods_raise_at_the_call():
    actor = Derived.remote()
    with pytest.raises(TypeError, match="static"):
        actor.static.remote()
    with pytest.raises(TypeError, match="made"):
        actor.made.remote(1, 2)


def test_no_class_is_derived_from_an_actor_class():
    with pytest.raises(ActorClassInheritanceException, match="'Derived'"):

        class One(Derived):
            pass

    with pytest.raises(TypeError, match="@ftray.remote"):

        class Two(Base, Derived):
            pass


def test_handles_pickle_compare_and_name_their_actor():
    actor = Derived.remote(1)
    assert ray.get(actor.who.remote()) == "Derived"
    twin = ray.get(ray.put([actor]))[0]
    assert twin is not actor and twin == actor and hash(twin) == hash(actor)
    assert twin._actor_id == actor._actor_id
    assert actor != Derived.remote()
    assert ray.get(twin.get_prop.remote()) == 1
    with pytest.raises(TypeError, match="outside of ftray"):  # nothing would keep the actor alive
        pickle.dumps(actor)
    assert {"who", "static", "__ray_call__"} <= set(dir(actor))
    told = actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_actor_id())
    assert ray.get(told) == actor._actor_id.hex()


def test_bind_is_named_as_missing():
    with pytest.raises(ray.exceptions.NotSupportedError, match="bind"):
        Derived.bind()


# --- options of methods ----------------------------------------------------------------------------------


@ray.remote
class Flaky:
    def __init__(self):
        self.calls = 0

    def fail(self, times, error=ValueError):
        self.calls += 1
        if self.calls <= times:
            raise error(f"call {self.calls}")
        return self.calls

    @ray.method(retry_exceptions=[ValueError], max_task_retries=3)
    def marked(self, times, error=ValueError):
        return self.fail(times, error)

    @ray.method(num_returns=2)
    def two(self):
        return 1, 2

    def attempt(self, times):
        self.fail(times)
        return ray.get_runtime_context().attempt_number


def test_retried_exceptions_of_a_method():
    assert ray.get(Flaky.remote().marked.remote(3)) == 4
    with pytest.raises(ValueError, match="call 4"):
        ray.get(Flaky.remote().marked.remote(4))
    with pytest.raises(KeyError, match="call 1"):  # not one of the list
        ray.get(Flaky.remote().marked.remote(2, KeyError))


def test_retries_of_exceptions_per_call():
    retried = Flaky.remote().fail.options(retry_exceptions=True, max_task_retries=-1)
    assert ray.get(retried.remote(20)) == 21
    none = Flaky.remote().fail.options(retry_exceptions=True)  # max_task_retries is 0
    with pytest.raises(ValueError, match="call 1"):
        ray.get(none.remote(1))
    off = Flaky.remote().marked.options(retry_exceptions=False)
    with pytest.raises(ValueError, match="call 1"):
        ray.get(off.remote(1))
    inherited = Flaky.options(max_task_retries=2, max_restarts=1).remote().fail
    assert ray.get(inherited.options(retry_exceptions=[LookupError, ValueError]).remote(2)) == 3


def test_attempts_are_told():
    actor = Flaky.remote()
    assert ray.get(actor.attempt.options(retry_exceptions=True, max_task_retries=5).remote(3)) == 3


@pytest.mark.parametrize("kind", ["threads", "async"])
def test_retried_exceptions_beside_other_calls(kind):
    class Plain:
        def __init__(self):
            self.calls = 0

        @ray.method(retry_exceptions=True, max_task_retries=2)
        def f(self):
            self.calls += 1
            if self.calls < 3:
                raise ValueError
            return self.calls

    if kind == "threads":
        actor = ray.remote(max_concurrency=2)(Plain).remote()
    else:

        class WithLoop(Plain):
            async def other(self):
                return 1

        actor = ray.remote(WithLoop).remote()
    assert ray.get(actor.f.remote()) == 3


def test_num_returns_per_method_and_per_call():
    actor = Flaky.remote()
    a, b = actor.two.remote()
    assert ray.get([a, b]) == [1, 2]
    assert ray.get(actor.two.options(num_returns=1).remote()) == (1, 2)
    assert actor.two.options(num_returns=0).remote() is None


def test_a_calls_name_is_what_errors_say():
    actor = Flaky.remote()
    with pytest.raises(ValueError) as caught:
        ray.get(actor.fail.options(name="first step").remote(1))
    assert caught.value.function_name == "first step"
    with pytest.raises(ValueError) as caught:
        ray.get(Flaky.remote().fail.remote(1))
    assert caught.value.function_name == "Flaky.fail"


@pytest.mark.parametrize(
    "option, wrong, error",
    [
        ("name", 3, TypeError),
        ("name", "", ValueError),
        ("retry_exceptions", 1, TypeError),
        ("retry_exceptions", [3], TypeError),
        ("retry_exceptions", [KeyboardInterrupt], TypeError),
        ("max_task_retries", -2, ValueError),
        ("max_task_retries", 1.0, TypeError),
        ("num_returns", -1, ValueError),
        ("max_restarts", 1, ValueError),
        ("num_cpus", 1, ValueError),
    ],
)
def test_wrong_options_of_methods(option, wrong, error):
    actor = Flaky.remote()
    with pytest.raises(error, match=option):
        actor.fail.options(**{option: wrong})
    with pytest.raises(error, match=option):
        ray.method(**{option: wrong})


def test_method_needs_options():
    with pytest.raises(TypeError, match="num_returns"):
        ray.method()


def test_max_pending_calls_counts_the_calls_of_this_process(mailbox, gate):
    @ray.remote(max_pending_calls=3)
    class Slow:
        def wait(self, box, door):
            box.post()
            door.wait()
            return 1

        def f(self):
            return 2

    @ray.remote(num_cpus=0)
    def elsewhere(actor, box, door):
        return [actor.wait.remote(box, door) for _ in range(3)]

    actor = Slow.remote()
    refs = [actor.wait.remote(mailbox, gate) for _ in range(3)]
    mailbox.take()
    with pytest.raises(ray.exceptions.PendingCallsLimitExceeded, match="max_pending_calls=3"):
        actor.wait.remote(mailbox, gate)
    with pytest.raises(ray.exceptions.PendingCallsLimitExceeded):
        ray.get(ray.put([actor]))[0].f.remote()
    others = ray.get(elsewhere.remote(actor, mailbox, gate), timeout=20)  # another process has its own three
    gate.open()
    assert ray.get(refs + others) == [1] * 6
    assert ray.get(actor.f.remote()) == 2


# --- order -----------------------------------------------------------------------------------------------


@ray.remote
class Log:
    def __init__(self):
        self.seen = []

    def add(self, x):
        self.seen.append(x)
        return list(self.seen)


@ray.remote(num_cpus=0)
def late(door, value):
    door.wait()
    return value


def test_calls_overtake_one_that_waits_for_its_argument_if_allowed(gate):
    actor = Log.options(allow_out_of_order_execution=True).remote()
    waits = actor.add.remote(late.remote(gate, "late"))
    also = actor.add.remote(late.remote(gate, "late too"))
    assert ray.get([actor.add.remote(i) for i in range(3)], timeout=20)[-1] == [0, 1, 2]
    gate.open()
    ray.get([waits, also])
    assert sorted(ray.get(actor.add.remote("end"))[3:5]) == ["late", "late too"]


def test_calls_of_async_and_threaded_actors_overtake_by_default(gate):
    @ray.remote
    class Async:
        async def f(self, x):
            return x

    @ray.remote(max_concurrency=2)
    class Threads:
        def f(self, x):
            return x

    for actor_class in (Async, Threads):
        actor = actor_class.remote()
        waits = actor.f.remote(late.remote(gate, "late"))
        assert ray.get(actor.f.remote(1), timeout=20) == 1
        ray.cancel(waits)
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(waits)
        with pytest.raises(ValueError, match="allow_out_of_order_execution=False"):
            actor_class.options(allow_out_of_order_execution=False).remote()
    gate.open()


def test_calls_that_wait_die_with_their_actor(gate):
    actor = Log.options(allow_out_of_order_execution=True).remote()
    waits = actor.add.remote(late.remote(gate, "late"))
    assert ray.get(actor.add.remote(1)) == [1]
    ray.kill(actor)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.add.remote(2))
    gate.open()
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(waits)


@pytest.mark.parametrize("wrong", [1, "yes"])
def test_wrong_value_of_out_of_order(wrong):
    with pytest.raises(TypeError, match="allow_out_of_order_execution"):
        Log.options(allow_out_of_order_execution=wrong)


# --- methods of every actor ------------------------------------------------------------------------------


@ray.remote
class Loop:
    def __init__(self):
        self.n = 1

    async def f(self):
        return ray.get_runtime_context().get_task_id()

    async def nested(self):
        return await asyncio.create_task(self.f())


def test_ready_call_and_terminate():
    for actor in (Derived.remote(1), Derived.options(max_concurrency=2).remote(1), Loop.remote()):
        assert ray.get(actor.__ray_ready__.remote()) is True
        called = actor.__ray_call__.remote(lambda self, a, b=0: (type(self).__name__, a + b), 1, b=2)
        assert ray.get(called) in [("Derived", 3), ("Loop", 3)]
        pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
        with pytest.raises(ray.exceptions.ActorDiedError, match="on purpose"):
            ray.get(actor.__ray_terminate__.remote())
        eventually(lambda p=pid: not os.path.exists(f"/proc/{p}"))


def test_ray_call_raises_what_the_function_raises_and_changes_state():
    actor = Derived.remote(1)
    ray.get(actor.__ray_call__.remote(lambda self: setattr(self, "x", 9)))
    assert ray.get(actor.get_prop.remote()) == 9
    with pytest.raises(ZeroDivisionError):
        ray.get(actor.__ray_call__.remote(lambda self: 1 / 0))
    with pytest.raises(TypeError):
        actor.__ray_call__.remote()


def test_terminate_comes_after_the_calls_before_it():
    actor = Log.remote()
    refs = [actor.add.remote(i) for i in range(50)]
    actor.__ray_terminate__.remote()
    assert ray.get(refs[-1]) == list(range(50))


def test_ready_of_an_actor_whose_constructor_fails():
    @ray.remote
    class Broken:
        def __init__(self):
            raise ValueError("no way")

    with pytest.raises(ray.exceptions.ActorDiedError, match="no way") as caught:
        ray.get(Broken.remote().__ray_ready__.remote())
    assert caught.value.actor_init_failed and isinstance(caught.value.__cause__, ValueError)
    assert "in __init__" in str(caught.value)


def test_each_call_of_an_async_actor_has_its_own_task_id():
    actor = Loop.remote()
    ids = ray.get([actor.f.remote() for _ in range(10)] + [actor.nested.remote()])
    assert len(set(ids)) == 11 and all(ids)


# --- exit_actor ------------------------------------------------------------------------------------------


@ray.remote(max_restarts=-1)
class Leaves:
    def leave(self, box):
        try:
            ray.actor.exit_actor()
        finally:
            box.post("finally")

    def swallow(self):
        try:
            ray.actor.exit_actor()
        except BaseException:
            return "still here"

    def from_thread(self):
        thread = threading.Thread(target=self.swallow)
        thread.start()
        thread.join()
        return "answered"

    def at_exit(self, box):
        import atexit

        atexit.register(box.post, "atexit")

    def f(self):
        return 1


@ray.remote(max_restarts=-1)
class LeavesAsync:
    async def leave(self, box):
        try:
            ray.actor.exit_actor()
        finally:
            box.post("finally")

    async def wait(self, box, name):
        box.post("waits")
        while not os.path.exists(name):
            await asyncio.sleep(0.001)
        return "done"

    async def child(self, box):
        await asyncio.gather(self.leave(box), asyncio.sleep(0))

    async def f(self):
        return 1


def assert_left(*refs):
    for ref in refs:
        with pytest.raises(ray.exceptions.ActorDiedError, match="on purpose") as caught:
            ray.get(ref, timeout=20)
        assert caught.value.death.exit_code == 0 and caught.value.death.pid and caught.value.death.unix_time


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 3}], ids=["plain", "threads"])
def test_exit_actor_runs_finally_and_atexit_and_ends_what_is_queued(options, mailbox):
    actor = Leaves.options(**options).remote()
    ray.get(actor.at_exit.remote(mailbox))
    refs = [actor.leave.remote(mailbox), *(actor.f.remote() for _ in range(20))]
    assert [mailbox.take(), mailbox.take()] == ["finally", "atexit"]
    assert_left(refs[0], actor.f.remote())
    for ref in refs[1:]:  # threads may have had some before
        try:
            assert ray.get(ref) == 1 and options
        except ray.exceptions.ActorDiedError as error:
            assert "on purpose" in str(error)


@pytest.mark.parametrize("actor_class", [Leaves, LeavesAsync])
def test_exit_actor_from_ray_call_also_when_it_is_swallowed(actor_class):
    actor = actor_class.remote()
    assert_left(actor.__ray_call__.remote(lambda self: Leaves._cls.swallow(self)), actor.f.remote())


def test_exit_actor_in_a_thread_of_the_users_ends_the_actor_after_the_method():
    actor = Leaves.remote()
    assert ray.get(actor.from_thread.remote()) == "answered"
    assert_left(actor.f.remote())


@pytest.mark.parametrize("how", ["leave", "child"])
def test_exit_of_an_async_actor_lets_running_calls_end(how, mailbox, tmp_path):
    actor = LeavesAsync.remote()
    runs = actor.wait.remote(mailbox, str(tmp_path / "go"))
    assert mailbox.take() == "waits"
    leaves = getattr(actor, how).remote(mailbox)
    assert mailbox.take() == "finally"
    (tmp_path / "go").touch()
    assert ray.get(runs, timeout=20) == "done"
    assert_left(leaves, actor.f.remote())


def test_exit_of_a_threaded_actor_lets_running_calls_end(mailbox, gate):
    @ray.remote(max_concurrency=2)
    class Threads:
        def wait(self, box, door):
            box.post("waits")
            door.wait()
            return "done"

        def leave(self, box):
            try:
                ray.actor.exit_actor()
            finally:
                box.post("leaves")

    actor = Threads.remote()
    runs = actor.wait.remote(mailbox, gate)
    assert mailbox.take() == "waits"
    leaves = actor.leave.remote(mailbox)
    assert mailbox.take() == "leaves"
    later = actor.leave.remote(mailbox)
    gate.open()
    assert ray.get(runs, timeout=20) == "done"
    assert_left(leaves, later)
    assert mailbox.take_all() == []


def test_exit_actor_in_the_constructor():
    @ray.remote(max_restarts=-1)
    class Never:
        def __init__(self):
            ray.actor.exit_actor()

        def f(self):
            return 1

    @ray.remote(max_restarts=-1)
    class NeverAsync(Never._cls):
        async def g(self):
            return 1

    assert_left(Never.remote().f.remote(), NeverAsync.remote().g.remote())


def test_exit_actor_outside_an_actor():
    with pytest.raises(TypeError, match="inside an actor"):
        ray.actor.exit_actor()

    @ray.remote
    def task():
        ray.actor.exit_actor()

    with pytest.raises(TypeError, match="inside an actor"):
        ray.get(task.remote())
