"""Cycles through processes are kept (docs/guarantees.md); breaking them frees what they held."""

from __future__ import annotations

import gc

import pytest

import ftray as ray
from tests.helpers import introspection
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote(num_cpus=0)
class Keeper:
    def keep(self, value):
        self.kept = value

    def drop(self):
        del self.kept


def is_there(name):
    try:
        return ray.get_actor(name)
    except ValueError:
        return None


@pytest.mark.parametrize("cycle", ["itself", "each other", "through a value"])
def test_actors_that_keep_each_other_stay_until_they_let_go(cycle):
    one, two, alone = (Keeper.options(name=name).remote() for name in ("one", "two", "alone"))
    block = ray.put(b"x" * 500_000)
    ray.get(alone.keep.remote([two]))
    if cycle == "itself":
        ray.get(one.keep.remote([one, block]))
    elif cycle == "each other":
        ray.get([one.keep.remote([two, block]), two.keep.remote([one])])
    else:
        ray.get(one.keep.remote([ray.put([one, block])]))
    del one, two, alone, block
    gc.collect()
    eventually(lambda: not is_there("alone"), "what nobody keeps goes")
    one = is_there("one")
    assert one is not None and introspection.counters()["blocks"] > 0
    ray.get(one.drop.remote())
    del one
    gc.collect()
    eventually(
        lambda: not is_there("one") and not is_there("two"), "and the others, once the cycle is broken"
    )
    eventually(lambda: introspection.counters()["blocks"] == 0)


def test_kill_breaks_a_cycle():
    one = Keeper.options(name="one").remote()
    block = ray.put(b"x" * 500_000)
    ray.get(one.keep.remote([one, block]))
    del block
    ray.kill(one)
    del one
    gc.collect()
    eventually(lambda: introspection.counters()["blocks"] == 0)


def test_cycles_of_python_objects_are_no_such_thing():
    node = type("Node", (), {})()
    node.me = node
    node.ref = ray.put(b"x" * 500_000)
    del node
    gc.collect()
    eventually(lambda: introspection.counters()["blocks"] == 0)
