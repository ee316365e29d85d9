"""Public functions with arguments that they cannot take: which exception, and what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import ftray as ray
from ftray import util
from ftray.exceptions import NotSupportedError, SerializationError
from ftray.util import state
from ftray.util.placement_group import PlacementGroup
from ftray.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

pytestmark = pytest.mark.usefixtures("runtime")

Call = Callable[[Any, Any], Any]  # takes a ref and the handle of an actor
Case = tuple[Call, type[BaseException], str]


@ray.remote
def identity(x: Any = 1) -> Any:
    return x


@ray.remote
def count(n: int) -> Any:
    yield from range(n)


@ray.remote(num_cpus=0)
class Box:
    def get(self) -> int:
        return 1

    def several(self) -> Any:
        yield 1


SECONDS = "timeout must be a number of seconds"
CASES: dict[str, list[Case]] = {
    "get": [
        (lambda r, a: ray.get(5), TypeError, "takes an ObjectRef or a list of ObjectRefs, not int: 5"),
        (lambda r, a: ray.get(None), TypeError, "not NoneType: None"),
        (lambda r, a: ray.get([r, [r]]), TypeError, "item 1 is list"),
        (lambda r, a: ray.get({"a": r}), TypeError, "not dict"),
        (lambda r, a: ray.get(a), TypeError, "not ActorHandle"),
        (lambda r, a: ray.get(identity), TypeError, "not RemoteFunction"),
        (lambda r, a: ray.get(r, timeout="1"), TypeError, f"{SECONDS} or None, not '1'"),
        (lambda r, a: ray.get(r, timeout=True), TypeError, f"{SECONDS} or None, not True"),
        (lambda r, a: ray.get(r, timeout=-1), ValueError, f"{SECONDS} >= 0, or None; got -1"),
        (lambda r, a: ray.get(r, timeout=math.nan), ValueError, "got nan"),
        (lambda r, a: ray.get(r, timeout=-(10**400)), ValueError, "got -1000"),
        (lambda r, a: ray.get(r, 1), TypeError, "positional argument"),
        (lambda r, a: ray.get(r, wait=1), TypeError, "unexpected keyword argument 'wait'"),
    ],
    "put": [
        (lambda r, a: ray.put(r), TypeError, "put.. of an ObjectRef is not allowed: .*wrap it in a list"),
        (lambda r, a: ray.put(count.remote(1)), SerializationError, "it has one consumer"),
        (lambda r, a: ray.put(), TypeError, "positional argument"),
    ],
    "wait": [
        (
            lambda r, a: ray.wait(r),
            TypeError,
            "not a single one: wait.*ref",
        ),
        (lambda r, a: ray.wait(None), TypeError, "takes a list of ObjectRefs, not NoneType"),
        (lambda r, a: ray.wait({r}), TypeError, "takes a list of ObjectRefs, not set"),
        (lambda r, a: ray.wait([r, 1]), TypeError, "item 1 is int"),
        (lambda r, a: ray.wait([r, r]), ValueError, "unique ObjectRefs; item 1 stands in it twice"),
        (lambda r, a: ray.wait([r], num_returns=0), ValueError, "num_returns=0 is out of range: 1 to the 1"),
        (lambda r, a: ray.wait([r], num_returns=2), ValueError, "num_returns=2 is out of range"),
        (lambda r, a: ray.wait([r], num_returns=1.0), TypeError, "num_returns must be an int, not 1.0"),
        (lambda r, a: ray.wait([r], num_returns=True), TypeError, "num_returns must be an int, not True"),
        (lambda r, a: ray.wait([r], timeout="1"), TypeError, f"{SECONDS} or None, not '1'"),
        (lambda r, a: ray.wait([r], timeout=-0.1), ValueError, "got -0.1"),
        (lambda r, a: ray.wait([r], fetch_local=1), TypeError, "fetch_local must be a bool, not 1"),
    ],
    "cancel": [
        (lambda r, a: ray.cancel(5), TypeError, "takes an ObjectRef or an ObjectRefGenerator, not int"),
        (lambda r, a: ray.cancel([r]), TypeError, "not list"),
        (lambda r, a: ray.cancel(a), TypeError, r"use ftray.kill\(actor\) to end an actor"),
        (lambda r, a: ray.cancel(ray.put(1)), ValueError, r"made by put\(\): there is no task"),
        (lambda r, a: ray.cancel(r, force=1), TypeError, "must be True or False, not force=1"),
        (lambda r, a: ray.cancel(r, recursive="yes"), TypeError, "recursive='yes'"),
        (lambda r, a: ray.cancel(a.get.remote(), force=True), ValueError, r"use ftray.kill\(actor\)"),
    ],
    "kill": [
        (lambda r, a: ray.kill(5), ValueError, "takes an ActorHandle, not int"),
        (lambda r, a: ray.kill(r), ValueError, r"not ObjectRef: cancel tasks with ftray.cancel\(ref\)"),
        (lambda r, a: ray.kill(Box), ValueError, "not ActorClass"),
        (lambda r, a: ray.kill(a, no_restart=1), TypeError, "no_restart=1 .* must be True or False"),
    ],
    "get_actor": [
        (lambda r, a: ray.get_actor(5), TypeError, "name=5 .* must be a string"),
        (lambda r, a: ray.get_actor(""), ValueError, "name='' .* must not be empty"),
        (lambda r, a: ray.get_actor("nobody"), ValueError, "no living actor named 'nobody'"),
        (lambda r, a: ray.get_actor("x", namespace=5), TypeError, "namespace=5 .* must be a string"),
        (lambda r, a: ray.get_actor("x", namespace=""), ValueError, "namespace='' .* must not be empty"),
    ],
    "remote": [
        (lambda r, a: ray.remote(5), TypeError, "takes a function or a class, not int: 5"),
        (lambda r, a: ray.remote(len), TypeError, "takes a function or a class"),
        (lambda r, a: ray.remote(identity), TypeError, r"is remote already; use .options\(...\)"),
        (lambda r, a: ray.remote(), TypeError, "or with keyword options"),
        (lambda r, a: ray.remote(identity, 1), TypeError, "or with keyword options"),
        (lambda r, a: ray.remote(cpus=1)(lambda: 1), ValueError, "'cpus' is no option .* Allowed: "),
        (lambda r, a: identity.options(1), TypeError, "positional argument"),
        (lambda r, a: identity.options(num_cpu=1), ValueError, "did you mean 'num_cpus'"),
        (
            lambda r, a: identity.remote(1, 2),
            TypeError,
            "takes 1 positional argument but 2 were",
        ),
        (lambda r, a: identity.remote(y=1), TypeError, "unexpected keyword argument 'y'; it takes x"),
        (lambda r, a: identity(1), TypeError, r"call identity.remote\(...\)"),
        (lambda r, a: identity.bind(1), NotSupportedError, "bind"),
        (lambda r, a: Box.bind(), NotSupportedError, "bind"),
        (lambda r, a: Box(), TypeError, r"call Box.remote\(...\)"),
        (lambda r, a: Box.remote(1), TypeError, r"Box\(\) takes 0 positional arguments but 1 was given"),
    ],
    "method": [
        (lambda r, a: ray.method(), TypeError, r"for example @ftray.method\(num_returns=2\)"),
        (lambda r, a: ray.method(5), TypeError, "options by keyword"),
        (lambda r, a: ray.method(num_cpus=1), ValueError, "'num_cpus' is no option of an actor method"),
        (lambda r, a: a.get.options(num_returns=-1), ValueError, "num_returns=-1"),
        (lambda r, a: a.get.options(num_returns="streaming"), ValueError, "for generator functions"),
        (lambda r, a: a.get.options(concurrency_group="io"), ValueError, "'io' of Box.get does not exist"),
        (lambda r, a: a.get.remote(1), TypeError, r"Box.get\(\) takes 0 positional arguments but 1 was"),
        (lambda r, a: a.get(), TypeError, r"call .get.remote\(...\)"),
        (lambda r, a: a.get.bind(), NotSupportedError, "bind"),
        (lambda r, a: a.nothing, AttributeError, "has no method 'nothing'; it has get, several"),
    ],
    "ObjectRefGenerator": [
        (lambda r, a: count.remote(1).send(1), NotSupportedError, r"send\(\) is not supported"),
        (
            lambda r, a: a.several.remote().throw(ValueError()),
            NotSupportedError,
            "throw.. is not supported",
        ),
        (lambda r, a: ray.ObjectRefGenerator(), TypeError, r"cannot be made directly: call .remote\(\)"),
    ],
    "ObjectRef": [
        (lambda r, a: ray.ObjectRef(), TypeError, r"cannot be made directly: call .remote\(\)"),
        (lambda r, a: ray.ObjectRef(b"x" * 28), TypeError, "positional argument"),
        (lambda r, a: iter(r), TypeError, "not iterable"),
    ],
    "DynamicObjectRefGenerator": [
        (
            lambda r, a: ray.get(count.options(num_returns="dynamic").remote(1))["first"],
            TypeError,
            "indices must be integers",
        ),
    ],
    "ActorHandle": [
        (lambda r, a: ray.ActorHandle(), TypeError, r"cannot be made directly: call .remote\(\)")
    ],
    "exit_actor": [(lambda r, a: ray.exit_actor(), TypeError, "only be called inside an actor's method")],
    "timeline": [
        (lambda r, a: ray.timeline(5), TypeError, "filename must be a path or None, not 5"),
        (lambda r, a: ray.timeline("/no/such/file"), FileNotFoundError, "/no/such/file"),
    ],
    "init": [
        (
            lambda r, a: ray.init(),
            RuntimeError,
            "or give ignore_reinit_error=True",
        ),
        (lambda r, a: ray.init("local", 2), TypeError, "positional argument"),
        (lambda r, a: ray.init(cpus=2), TypeError, "does not take 'cpus'; it takes address, num_cpus"),
        (lambda r, a: ray.init(num_cpus="2", ignore_reinit_error=True), TypeError, "num_cpus='2'"),
    ],
    "Checkpointable": [
        (lambda r, a: type("A", (ray.Checkpointable,), {}, evry=1), ValueError, "evry is not an option of"),
    ],
}
# They take no arguments that could be wrong, or are no functions.
NO_ARGUMENTS = {
    "available_resources",
    "checkpoint",
    "cluster_resources",
    "exceptions",
    "get_gpu_ids",
    "get_runtime_context",
    "is_initialized",
    "nodes",
    "shutdown",
}

BUNDLE = [{"CPU": 1}]
UTILITIES: dict[str, list[Case]] = {
    "placement_group": [
        (lambda r, a: util.placement_group(5), ValueError, "bundles=5 .* must be a list of dicts"),
        (lambda r, a: util.placement_group([]), ValueError, r"bundles=\[\] .* and not empty"),
        (lambda r, a: util.placement_group([{}]), ValueError, "the bundle {} .* reserves nothing"),
        (lambda r, a: util.placement_group([{"CPU": -1}]), ValueError, r"bundle\['CPU'\]=-1"),
        (lambda r, a: util.placement_group([{"CPU": "1"}]), ValueError, r"bundle\['CPU'\]='1'"),
        (lambda r, a: util.placement_group([{"GPU": 1.5}]), ValueError, "1.5 GPUs: above 1 it must be whole"),
        (
            lambda r, a: util.placement_group(BUNDLE, strategy="TIGHT"),
            ValueError,
            "one of PACK, SPREAD",
        ),
        (lambda r, a: util.placement_group(BUNDLE, strategy=5), ValueError, "strategy=5"),
        (lambda r, a: util.placement_group(BUNDLE, name=5), ValueError, "name=5 .* must be a string"),
        (lambda r, a: util.placement_group(BUNDLE, lifetime="x"), ValueError, "must be None or 'detached'"),
        (
            lambda r, a: util.placement_group(BUNDLE, bundle_label_selector=[{"a": "b"}]),
            NotSupportedError,
            "bundle_label_selector",
        ),
    ],
    "remove_placement_group": [
        (
            lambda r, a: util.remove_placement_group("g"),
            TypeError,
            "a PlacementGroup is needed, not str",
        ),
    ],
    "get_placement_group": [
        (lambda r, a: util.get_placement_group(5), ValueError, "must be a non-empty string, not 5"),
        (lambda r, a: util.get_placement_group("none"), ValueError, "no placement group named 'none'"),
    ],
    "placement_group_table": [
        (lambda r, a: util.placement_group_table(5), TypeError, "a PlacementGroup is needed, not int: 5"),
    ],
    "as_completed": [
        (lambda r, a: util.as_completed(5), TypeError, "takes a list of ObjectRefs, not 5"),
        (lambda r, a: util.as_completed(r), TypeError, "takes a list of ObjectRefs, not ObjectRef"),
        (lambda r, a: util.as_completed([r, 1]), TypeError, "takes a list of ObjectRefs; 1 is none"),
        (lambda r, a: util.as_completed([r, r]), ValueError, "distinct ObjectRefs; one stands in it twice"),
        (lambda r, a: util.as_completed([r], chunk_size=0), ValueError, "chunk_size=0 .* integer >= 1"),
        (lambda r, a: util.as_completed([r], chunk_size="2"), TypeError, "chunk_size='2' .* integer >= 1"),
        (lambda r, a: util.as_completed([r], timeout="1"), TypeError, "timeout='1' .* number of seconds"),
        (lambda r, a: util.as_completed([r], timeout=-1), ValueError, "timeout=-1 .* number of seconds"),
        (lambda r, a: util.as_completed([r], yield_obj_refs=1), TypeError, "yield_obj_refs=1"),
    ],
    "map_unordered": [
        (lambda r, a: util.map_unordered(len, [1]), TypeError, "a remote function, not .*len"),
        (lambda r, a: util.map_unordered(identity, 5), TypeError, "an iterable of items, not 5"),
        (
            lambda r, a: util.map_unordered(identity, [1], backpressure_size=0),
            ValueError,
            "size=0",
        ),
        (lambda r, a: util.map_unordered(identity, [1], chunk_size=1.5), TypeError, "chunk_size=1.5"),
    ],
    "ActorPool": [
        (lambda r, a: util.ActorPool(5), TypeError, "takes a list of actor handles, not 5"),
        (lambda r, a: util.ActorPool([5]), TypeError, "consists of actor handles, not int: 5"),
        (lambda r, a: util.ActorPool([a, a]), ValueError, "is in the pool already"),
        (lambda r, a: util.ActorPool([a]).submit(5, 1), TypeError, "5 cannot be called"),
        (lambda r, a: util.ActorPool([a]).map(5, [1]), TypeError, "5 cannot be called"),
        (lambda r, a: util.ActorPool([a]).map(print, 5), TypeError, "must be iterable, not 5"),
        (lambda r, a: util.ActorPool([a]).submit(lambda a, v: 5, 1), TypeError, "must return the ObjectRef"),
    ],
    "list_named_actors": [
        (lambda r, a: util.list_named_actors(1), TypeError, "all_namespaces must be True or False, not 1"),
    ],
    "deregister_serializer": [
        (lambda r, a: util.deregister_serializer(5), TypeError, "needs a class, got 5"),
    ],
    "register_serializer": [
        (
            lambda r, a: util.register_serializer(5, serializer=str, deserializer=str),
            TypeError,
            "needs a class, got 5",
        ),
        (
            lambda r, a: util.register_serializer(int, serializer=str, deserializer=str),
            ValueError,
            "ftray itself encodes instances of int",
        ),
        (
            lambda r, a: util.register_serializer(Box._cls, serializer=1, deserializer=str),
            TypeError,
            "serializer",
        ),
    ],
}
NO_UTILITY_ARGUMENTS = {
    "get_current_placement_group",
    "get_node_ip_address",
    "inspect_serializability",
}

STATE: list[Case] = [
    (lambda r, a: state.list_tasks(limit=0), ValueError, "limit=0 is out of range; allowed are 1 to 10000"),
    (lambda r, a: state.list_tasks(limit="5"), TypeError, "limit='5' must be an integer"),
    (lambda r, a: state.list_tasks(timeout=0), ValueError, "timeout=0 is out of range"),
    (lambda r, a: state.list_tasks(filters="name=x"), TypeError, "must be a list of .key, predicate, value."),
    (lambda r, a: state.list_tasks(filters=5), TypeError, "filters=5 must be a list"),
    (lambda r, a: state.list_tasks(filters=["name"]), TypeError, "a filter is .key, predicate, value."),
    (
        lambda r, a: state.list_tasks(filters=[("shape", "=", "1")]),
        ValueError,
        "'shape' cannot be",
    ),
    (lambda r, a: state.list_tasks(filters=[("name", ">", "1")]), ValueError, "'>' .* allowed are = and !="),
    (lambda r, a: state.list_tasks(detail=1), TypeError, "detail=1"),
    (lambda r, a: state.list_tasks(raise_on_missing_output=1), TypeError, "raise_on_missing_output=1"),
    (lambda r, a: state.list_tasks(address=5), TypeError, "address must be a string or None, not 5"),
    (lambda r, a: state.get_task(5), TypeError, "a hexadecimal text, not 5"),
    (lambda r, a: state.get_actor(""), ValueError, "a hexadecimal text, not ''"),
    (lambda r, a: state.get_objects(5), TypeError, "a hexadecimal text, not 5"),
    (lambda r, a: state.summarize_tasks(timeout="1"), TypeError, "timeout='1' must be a number of seconds"),
    (lambda r, a: state.summarize_tasks(raise_on_missing_output=1), TypeError, "raise_on_missing_output=1"),
]
STRATEGIES: list[Case] = [
    (lambda r, a: NodeAffinitySchedulingStrategy("xy", soft=False), ValueError, "node_id='xy' .* 56 hex"),
    (lambda r, a: NodeAffinitySchedulingStrategy("ab" * 28, soft=1), TypeError, "soft=1 .* True or False"),
    (
        lambda r, a: PlacementGroupSchedulingStrategy("g"),
        TypeError,
        "must be a PlacementGroup",
    ),
    (
        lambda r, a: PlacementGroupSchedulingStrategy(PlacementGroup.empty(), "0"),
        TypeError,
        "placement_group_bundle_index must be an int, not '0'",
    ),
    (lambda r, a: NodeLabelSchedulingStrategy(5), ValueError, "hard must be a dict of labels to In, NotIn"),
    (lambda r, a: In(5), ValueError, "takes one or more strings"),
    (lambda r, a: identity.options(scheduling_strategy=In("a")), TypeError, "scheduling_strategy=.*must be"),
]


def test_every_public_function_has_wrong_arguments() -> None:
    public = {name for name in ray.__all__ if not name.startswith("_")}
    assert public == set(CASES) | NO_ARGUMENTS, "each public name has wrong arguments, or none"
    assert set(util.__all__) == set(UTILITIES) | NO_UTILITY_ARGUMENTS


ALL = {
    **CASES,
    **{f"util.{name}": cases for name, cases in UTILITIES.items()},
    "util.state": STATE,
    "util.scheduling_strategies": STRATEGIES,
}


@pytest.mark.parametrize("name", ALL)
def test_wrong_arguments(name: str) -> None:
    """All of a function in one test: that nothing of them is left is checked at its end."""
    ref, actor = ray.put(1), Box.remote()
    for call, error, words in ALL[name]:
        with pytest.raises(error, match=words):
            call(ref, actor)
    assert ray.get([identity.remote(ref), actor.get.remote()]) == [1, 1]
