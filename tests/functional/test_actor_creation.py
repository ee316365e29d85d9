"""From `.remote()` to a process: names about to be free, constructor arguments that are not there yet."""

from __future__ import annotations

import atexit
import gc
import os
import signal

import pytest

import ftray as ray
from ftray.util import list_named_actors
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote(num_cpus=0)
class Keeper:
    def __init__(self, value=None):
        self.value = value

    def get(self):
        return self.value

    def pid(self):
        return os.getpid()

    def end_late(self, box, door):
        """End, but not before the door opens."""
        atexit.register(lambda: (box.post("ends"), door.wait()))
        ray.exit_actor()

    def make(self, argument):
        self.value = Keeper.remote(argument[0])
        return [self.value]

    def ask(self, handles):
        return ray.get(handles[0].get.remote())


@ray.remote(num_cpus=0)
def behind(door, value):
    door.wait()
    if isinstance(value, Exception):
        raise value
    return value


@ray.remote(num_cpus=0)
def ask(handles):
    return ray.get(handles[0].get.remote())


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["new", "get_if_exists"])
def test_the_name_of_a_killed_actor_can_be_used_at_once(again):
    for i in range(10):
        actor = Keeper.options(name="next", get_if_exists=again).remote(i)
        assert ray.get(actor.get.remote()) == i  # never the one that was killed
        ray.kill(actor)
        with pytest.raises(ValueError, match="no living actor"):
            ray.get_actor("next")


@pytest.mark.parametrize("again", [False, True], ids=["new", "get_if_exists"])
def test_a_name_is_waited_for_while_its_actor_ends(mailbox, gate, again):
    old = Keeper.options(name="leaves").remote("old")
    old.end_late.remote(mailbox, gate)
    mailbox.take()
    eventually(lambda: "leaves" not in list_named_actors())
    with pytest.raises(ValueError, match="no living actor"):
        ray.get_actor("leaves")

    @ray.remote(num_cpus=0)
    def create():
        new = Keeper.options(name="leaves", get_if_exists=again).remote("new")
        return ray.get(new.get.remote()), new  # the handle: it is to live as long as others join

    new = [create.remote() for _ in range(2 if again else 1)]
    assert ray.wait(new, timeout=0.2)[0] == []
    gate.open()
    assert [value for value, _handle in ray.get(new)] == ["new"] * len(new)


# --- arguments that are not there yet --------------------------------------------------------------------


def test_handles_work_everywhere_while_an_argument_is_awaited(gate):
    actor = Keeper.remote(behind.remote(gate, "late"))
    own, elsewhere = actor.get.remote(), ask.remote([actor])
    assert ray.wait([own, elsewhere], timeout=0.2)[0] == []
    gate.open()
    assert ray.get([own, elsewhere]) == ["late", "late"]


def test_one_that_was_killed_meanwhile_is_never_made(gate, tmp_path):
    class Marks:
        def __init__(self, value, path):
            path.touch()

        def get(self):
            return 1

    argument = behind.remote(gate, 0)
    actor = ray.remote(num_cpus=0)(Marks).remote(argument, tmp_path / "made")
    calls = [actor.get.remote(), ask.remote([actor])]
    ray.kill(actor)
    for call in calls:
        with pytest.raises(ray.exceptions.ActorDiedError, match="kill"):
            ray.get(call)
    gate.open()
    ray.get(argument)
    assert ray.get(Keeper.remote(argument).get.remote()) == 0  # a later creation has gone the same way
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("late", [False, True])
def test_an_argument_that_is_an_error_is_the_death_of_the_actor_for_everybody(gate, late):
    argument = behind.remote(gate, KeyError("no such"))
    if not late:
        gate.open()
        ray.wait([argument])
    actor = Keeper.remote(argument)
    calls = [actor.get.remote(), ask.remote([actor])]
    gate.open()
    for call in calls:
        with pytest.raises(ray.exceptions.ActorDiedError) as caught:
            ray.get(call)
        assert "no such" in str(caught.value)
    with pytest.raises(ray.exceptions.ActorDiedError) as caught:
        ray.get(actor.get.remote())
    assert isinstance(caught.value.__cause__, KeyError)


def test_it_ends_with_its_creator(gate):
    maker = Keeper.remote()
    (made,) = ray.get(maker.make.remote([behind.remote(gate, 1)]))
    call = made.get.remote()
    os.kill(ray.get(maker.pid.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorDiedError, match="owner died"):
        ray.get(call)
    gate.open()


def test_a_named_one_is_there_at_once(gate):
    options = {"name": "awaited", "get_if_exists": True}
    actor = Keeper.options(**options).remote(behind.remote(gate, 5))
    assert ray.get_actor("awaited") == actor
    assert Keeper.options(**options).remote(6) == actor
    with pytest.raises(ValueError, match="taken"):
        Keeper.options(name="awaited").remote(behind.remote(gate, 7))
    gate.open()
    assert ray.get(actor.get.remote()) == 5


# --- refs inside arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 300_000])
def test_refs_inside_arguments_live_as_long_as_the_actor(size):
    holder = Keeper.remote()
    ref = ray.put(bytes(size))

    @ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    class Reads:
        def __init__(self, refs):
            self.size = len(ray.get(refs[0]))

        def get(self):
            return self.size

        def pid(self):
            return os.getpid()

    actor = Reads.remote([ref])
    keeper = Keeper.remote([actor])
    assert ray.get(holder.ask.remote([actor])) == size
    pid = ray.get(actor.pid.remote())
    assert ray.get(keeper.pid.remote())
    del actor, ref  # the keeper alone holds the actor
    gc.collect()
    os.kill(pid, signal.SIGKILL)
    (again,) = ray.get(keeper.get.remote())
    assert ray.get(again.get.remote()) == size  # its constructor has run again
