"""Options of tasks, actors and methods: what is accepted, merged, refused, and how it is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray import _options
from ftray._ids import PlacementGroupID
from ftray._options import (
    NOT_SUPPORTED_YET,
    actor_options,
    check,
    default_max_retries,
    merge,
    method_options,
    returns_code,
    task_options,
)
from ftray.exceptions import NotSupportedError, RayError
from ftray.util.placement_group import PlacementGroup
from ftray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

VARIABLES = ("FTRAY_TASK_MAX_RETRIES", "RAY_TASK_MAX_RETRIES")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def everything_supported(monkeypatch):
    monkeypatch.setattr(_options, "NOT_SUPPORTED_YET", ())


def test_defaults_of_a_task():
    options = task_options(check("task", {}))
    assert options.resources == {"CPU": 1.0}
    assert (options.num_returns, options.max_retries, options.retry_exceptions) == (1, 3, False)
    assert (options.name, options.max_calls, options.scheduling_strategy) == ("", 0, "DEFAULT")
    assert options.runtime_env is None


def test_defaults_of_an_actor():
    options = actor_options(check("actor", {}))
    assert (options.resources, options.placement_resources) == ({}, {"CPU": 1.0})
    assert (options.max_restarts, options.max_task_retries, options.max_concurrency) == (0, 0, None)
    assert (options.name, options.namespace, options.lifetime, options.get_if_exists) == ("", "", None, False)
    assert options.max_pending_calls == -1


def test_defaults_of_a_method():
    options = method_options(check("method", {}))
    assert (options.num_returns, options.max_task_retries, options.name) == (1, None, "")


def test_records_are_frozen_and_comparable():
    options = task_options({})
    assert options == task_options({}) != task_options({"num_returns": 2})
    with pytest.raises(AttributeError):
        options.num_returns = 5


# --- resources ---


def test_resources_are_merged_without_zeros():
    given_options = {
        "num_cpus": 0,
        "num_gpus": 0.5,
        "memory": 2**30,
        "resources": {"disk": 2, "none": 0},
        "accelerator_type": "A100",
    }
    assert task_options(check("task", given_options)).resources == {
        "GPU": 0.5,
        "memory": 2.0**30,
        "disk": 2.0,
        "accelerator_type:A100": 0.001,
    }


def test_actor_with_cpus_holds_them():
    options = actor_options(check("actor", {"num_cpus": 2, "resources": {"disk": 1}}))
    assert options.resources == options.placement_resources == {"CPU": 2.0, "disk": 1.0}
    options = actor_options(check("actor", {"num_cpus": 0}))
    assert options.resources == options.placement_resources == {}
    options = actor_options(check("actor", {"num_gpus": 1}))
    assert (options.resources, options.placement_resources) == ({"GPU": 1.0}, {"GPU": 1.0, "CPU": 1.0})


@given(st.floats(0.0001, 1e9))
def test_amounts_keep_the_quantum(amount):
    (value,) = check("task", {"num_cpus": amount}).values()
    assert value > 0
    assert math.isclose(value, amount, abs_tol=_options.RESOURCE_QUANTUM)


def test_numpy_numbers_are_numbers():
    checked = check(
        "task", {"num_cpus": np.float32(0.5), "num_returns": np.int64(2), "max_retries": np.int8(-1)}
    )
    assert checked == {"num_cpus": 0.5, "num_returns": 2, "max_retries": -1}
    assert [type(value) for value in checked.values()] == [float, int, int]


# --- wrong values ---


class LikelySchedulingStrategy:
    pass


@pytest.mark.parametrize(
    "kind, option, value, error",
    [
        ("task", "num_cpus", -1, ValueError),
        ("task", "num_cpus", float("nan"), ValueError),
        ("task", "num_cpus", float("inf"), ValueError),
        ("task", "num_cpus", 10**400, ValueError),
        ("task", "num_cpus", 0.00001, ValueError),
        ("task", "num_cpus", "2", TypeError),
        ("task", "num_cpus", True, TypeError),
        ("task", "num_cpus", [1], TypeError),
        ("task", "num_gpus", 1.5, ValueError),
        ("task", "num_gpus", -0.5, ValueError),
        ("task", "memory", -1, ValueError),
        ("task", "memory", "1GB", TypeError),
        ("task", "resources", [("a", 1)], TypeError),
        ("task", "resources", {"CPU": 1}, ValueError),
        ("task", "resources", {"GPU": 1}, ValueError),
        ("task", "resources", {"memory": 1}, ValueError),
        ("task", "resources", {1: 1}, TypeError),
        ("task", "resources", {"": 1}, TypeError),
        ("task", "resources", {"disk": -1}, ValueError),
        ("task", "resources", {"disk": "x"}, TypeError),
        ("task", "accelerator_type", 5, TypeError),
        ("task", "num_returns", -1, ValueError),
        ("task", "num_returns", 1.0, TypeError),
        ("task", "num_returns", True, TypeError),
        ("task", "num_returns", "many", ValueError),
        ("task", "max_retries", -2, ValueError),
        ("task", "max_retries", 1.5, TypeError),
        ("task", "max_retries", "3", TypeError),
        ("task", "retry_exceptions", 1, TypeError),
        ("task", "retry_exceptions", ValueError, TypeError),
        ("task", "retry_exceptions", ["ValueError"], TypeError),
        ("task", "retry_exceptions", [KeyboardInterrupt], TypeError),
        ("task", "max_calls", -1, ValueError),
        ("task", "name", "", ValueError),
        ("task", "name", 1, TypeError),
        ("task", "runtime_env", "env.yaml", TypeError),
        ("task", "scheduling_strategy", "RANDOM", ValueError),
        ("task", "scheduling_strategy", 5, TypeError),
        ("task", "scheduling_strategy", LikelySchedulingStrategy(), TypeError),
        ("actor", "placement_group", "group", TypeError),
        ("actor", "placement_group", 5, TypeError),
        ("task", "placement_group_bundle_index", -2, ValueError),
        ("task", "placement_group_bundle_index", "0", TypeError),
        ("task", "placement_group_capture_child_tasks", 1, TypeError),
        ("task", "label_selector", {"a": 1}, TypeError),
        ("actor", "max_restarts", -2, ValueError),
        ("actor", "max_restarts", "always", TypeError),
        ("actor", "max_task_retries", -5, ValueError),
        ("actor", "max_concurrency", 0, ValueError),
        ("actor", "max_concurrency", 2.0, TypeError),
        ("actor", "max_pending_calls", 0, ValueError),
        ("actor", "max_pending_calls", -2, ValueError),
        ("actor", "lifetime", "forever", ValueError),
        ("actor", "lifetime", 1, TypeError),
        ("actor", "namespace", "", ValueError),
        ("actor", "get_if_exists", 1, TypeError),
        ("actor", "concurrency_groups", ["io"], TypeError),
        ("actor", "concurrency_groups", {"io": 0}, ValueError),
        ("method", "num_returns", [2], TypeError),
        ("method", "max_task_retries", -2, ValueError),
    ],
)
def test_wrong_values_are_refused_by_name(kind, option, value, error):
    with pytest.raises(error) as caught:
        check(kind, {option: value})
    assert type(caught.value) is error
    assert option in str(caught.value)
    assert "must" in str(caught.value) or "use the option" in str(caught.value)


@pytest.mark.parametrize(
    "kind, option, parts",
    [
        ("task", "num_cpu", ["did you mean 'num_cpus'?", "no option of a remote function", "max_retries"]),
        ("task", "max_restarts", ["it is one of an actor"]),
        ("actor", "max_retrys", ["no option of an actor; did you mean 'max_task_retries'?"]),
        ("method", "num_cpus", ["of a remote function and of an actor"]),
        ("actor", "zzz", ["no option of an actor. Allowed: "]),
    ],
)
def test_unknown_options_name_what_was_meant_and_what_exists(kind, option, parts):
    with pytest.raises(ValueError) as caught:
        check(kind, {option: 1})
    for part in [repr(option), "Allowed: ", *parts]:
        assert part in str(caught.value)


def test_long_values_are_cut_in_messages():
    with pytest.raises(TypeError) as caught:
        check("task", {"name": list(range(10_000))})
    assert len(str(caught.value)) < 500


def test_get_if_exists_needs_a_name():
    with pytest.raises(ValueError, match="needs name="):
        actor_options(check("actor", {"get_if_exists": True}))
    assert actor_options(check("actor", {"get_if_exists": True, "name": "a"})).get_if_exists


def test_strategies_and_groups_are_named_once():
    group = PlacementGroup(PlacementGroupID(b"g" * 18), [{"CPU": 1.0}])
    strategy = PlacementGroupSchedulingStrategy(group, 0)
    for complete, kind in ((task_options, "task"), (actor_options, "actor")):
        complete(check(kind, {"scheduling_strategy": strategy}))
        complete(check(kind, {"placement_group": group}))
        complete(check(kind, {"placement_group": None, "scheduling_strategy": "SPREAD"}))
        with pytest.raises(ValueError, match="exclude each other"):
            complete(check(kind, {"placement_group": group, "scheduling_strategy": "SPREAD"}))
    assert check("task", {"placement_group": None}) == {
        "placement_group": False
    }  # "in none" is not the default


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: PlacementGroupSchedulingStrategy("group"), TypeError),
        (lambda: PlacementGroupSchedulingStrategy(PlacementGroup.empty(), "0"), TypeError),
        (lambda: PlacementGroupSchedulingStrategy(PlacementGroup.empty(), 0, 1), TypeError),
        (lambda: NodeAffinitySchedulingStrategy("xyz", soft=False), ValueError),
        (lambda: NodeAffinitySchedulingStrategy("ff" * 28, soft=False), ValueError),
        (lambda: NodeAffinitySchedulingStrategy(None, soft=False), ValueError),
        (lambda: NodeAffinitySchedulingStrategy("ab" * 28, False, _spill_on_unavailable=True), ValueError),
        (
            lambda: NodeAffinitySchedulingStrategy("ab" * 28, False, _fail_on_unavailable=True),
            NotSupportedError,
        ),
        (lambda: NodeLabelSchedulingStrategy({}), ValueError),
        (lambda: NodeLabelSchedulingStrategy({"zone": "a"}), ValueError),
        (lambda: NodeLabelSchedulingStrategy(["zone"]), ValueError),
        (lambda: NodeLabelSchedulingStrategy({1: Exists()}), ValueError),
        (lambda: In(), ValueError),
        (lambda: NotIn("a", 1), ValueError),
    ],
)
def test_strategies_that_make_no_sense(make, error):
    with pytest.raises(error):
        make()


def test_strategies_keep_what_they_were_given():
    assert NodeAffinitySchedulingStrategy("AB" * 28, soft=True).node_id == "ab" * 28
    labels = NodeLabelSchedulingStrategy({"zone": In("a", "b")}, soft={"kind": DoesNotExist()})
    assert labels.hard["zone"].values == ["a", "b"] and list(labels.soft) == ["kind"]


# --- not supported yet ---

EXAMPLES = {
    "label_selector": [{"zone": "a"}],
    "object_store_memory": [1000],
    "lifetime": ["detached"],
    "max_pending_calls": [5],
}
HARMLESS = {
    "label_selector": {},
    "object_store_memory": 0,
    "lifetime": "non_detached",
    "max_pending_calls": -1,
}
MISSING = [(kind, row) for row in NOT_SUPPORTED_YET for kind in row[0].split()]


@pytest.mark.parametrize("kind, row", MISSING, ids=lambda item: item if isinstance(item, str) else item[1])
def test_what_is_not_supported_yet_says_so(kind, row):
    _, option, _, feature = row
    for value in EXAMPLES[option]:
        with pytest.raises(NotSupportedError) as caught:
            check(kind, {option: value})
        assert option in str(caught.value) and feature in str(caught.value)
        assert isinstance(caught.value, NotImplementedError) and isinstance(caught.value, RayError)
    if option in HARMLESS:
        check(kind, {option: HARMLESS[option]})
    check(kind, {option: None})


def test_the_table_names_existing_options():
    for kinds, option, _, _ in NOT_SUPPORTED_YET:
        for kind in kinds.split():
            assert option in _options._CHECKS[kind]


def test_deleting_a_line_is_all_it_takes(everything_supported):
    actor = actor_options(check("actor", {"lifetime": "detached", "concurrency_groups": {"io": 2}}))
    assert (actor.lifetime, actor.concurrency_groups) == ("detached", {"io": 2})
    method = method_options(check("method", {"retry_exceptions": [ValueError], "concurrency_group": "io"}))
    assert (method.retry_exceptions, method.concurrency_group) == ((ValueError,), "io")


# --- generators


@pytest.mark.parametrize("complete", [task_options, method_options])
def test_functions_that_yield_stream_by_default(complete):
    assert complete({}, is_generator=True).num_returns == "streaming"
    assert complete({"num_returns": 2}, is_generator=True).num_returns == 2
    assert complete({}, is_generator=False).num_returns == complete({}).num_returns == 1


@pytest.mark.parametrize("complete", [task_options, method_options])
@pytest.mark.parametrize("number", ["streaming", "dynamic"])
def test_functions_that_do_not_yield_cannot_stream(complete, number):
    with pytest.raises(ValueError, match="generator functions"):
        complete({"num_returns": number}, is_generator=False)
    assert complete({"num_returns": number}).num_returns == number, "unknown: the worker finds out"


@pytest.mark.parametrize("kind", ["task", "method"])
def test_back_pressure(kind):
    option = "_generator_backpressure_num_objects"
    complete = {"task": task_options, "method": method_options}[kind]
    assert complete(check(kind, {option: 5}), is_generator=True).generator_backpressure == 5
    assert complete(check(kind, {option: -1}), is_generator=True).generator_backpressure == 0
    assert complete(check(kind, {option: -1, "num_returns": 2})).num_returns == 2
    for wrong in (0, -2, 2**31):
        with pytest.raises(ValueError, match=option):
            check(kind, {option: wrong})
    for number in (1, 3, "dynamic"):
        with pytest.raises(ValueError, match="needs num_returns='streaming'"):
            complete({option: 5, "num_returns": number})


def test_what_a_call_returns_is_one_integer_for_the_core():
    def code(**explicit):
        return returns_code(task_options(explicit))

    assert [code(num_returns=n) for n in (0, 1, 7, "dynamic", "streaming")] == [0, 1, 7, -1, -2]
    assert code(num_returns="streaming", _generator_backpressure_num_objects=10) == -12


def test_the_number_of_returns_has_a_limit():
    assert check("task", {"num_returns": 65535}) == {"num_returns": 65535}
    with pytest.raises(ValueError, match="at most 65535"):
        check("task", {"num_returns": 65536})


# --- merging and the environment ---


def test_max_calls_is_one_for_tasks_with_gpus_and_unbounded_otherwise():
    assert task_options(check("task", {"max_calls": 5})).max_calls == 5
    assert task_options(check("task", {"num_gpus": 0.5})).max_calls == 1
    assert task_options(check("task", {"num_gpus": 1, "max_calls": 0})).max_calls == 0
    assert task_options(check("task", {"num_gpus": 0})).max_calls == 0


def test_runtime_environments_are_checked_where_they_are_given():
    env = {"env_vars": {"A": "1"}}
    for kind, complete in [("task", task_options), ("actor", actor_options)]:
        assert complete(check(kind, {"runtime_env": env})).runtime_env == env
        assert complete(check(kind, {"runtime_env": {}})).runtime_env is None
        with pytest.raises(NotSupportedError, match="pip"):
            check(kind, {"runtime_env": {"pip": ["numpy"]}})


def test_options_override_and_none_puts_the_default_back():
    decorated = check("task", {"max_retries": 5, "num_cpus": 2, "retry_exceptions": [KeyError]})
    merged = merge(decorated, check("task", {"max_retries": None, "num_cpus": 0.5}))
    options = task_options(merged)
    assert (options.max_retries, options.resources) == (3, {"CPU": 0.5})
    assert options.retry_exceptions == (KeyError,)
    assert task_options(decorated).max_retries == 5


def test_checking_does_not_change_or_share_what_was_given():
    resources = {"disk": 1}
    checked = check("task", {"resources": resources})
    resources["disk"] = 5
    assert task_options(checked).resources["disk"] == 1.0
    task_options(checked).resources["more"] = 1.0
    assert "more" not in task_options(checked).resources


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, 3),
        ({"RAY_TASK_MAX_RETRIES": "7"}, 7),
        ({"FTRAY_TASK_MAX_RETRIES": "0"}, 0),
        ({"FTRAY_TASK_MAX_RETRIES": "-1", "RAY_TASK_MAX_RETRIES": "7"}, -1),
    ],
)
def test_default_retries_come_from_the_environment_at_use(environ, expected, monkeypatch):
    assert default_max_retries(environ) == expected
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    assert task_options({}).max_retries == expected
    assert task_options({"max_retries": 1}).max_retries == 1


@pytest.mark.parametrize("value", ["", "many", "1.5", "-2"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_wrong_environment_is_named(variable, value):
    with pytest.raises(ValueError, match=f"{variable}={value!r}"):
        default_max_retries({variable: value})


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("task", "max_retries"),
        ("task", "max_calls"),
        ("actor", "max_restarts"),
        ("actor", "max_task_retries"),
        ("actor", "max_concurrency"),
        ("actor", "max_pending_calls"),
        ("method", "max_task_retries"),
    ],
)
def test_numbers_that_the_core_has_no_room_for(kind, option):
    assert check(kind, {option: _options.MOST}) == {option: _options.MOST}
    for number in (2**31, 2**63, 10**30):
        with pytest.raises(ValueError, match=f"{option}={number}.* at most {_options.MOST}"):
            check(kind, {option: number})


def test_a_concurrency_group_of_more_than_the_core_has_room_for():
    with pytest.raises(ValueError, match="at most"):
        check("actor", {"concurrency_groups": {"io": 10**30}})


@pytest.mark.parametrize(
    ("kind", "given_options"),
    [
        ("task", {"name": "\ud800"}),
        ("actor", {"name": "\ud800"}),
        ("actor", {"namespace": "a\udfff"}),
        ("method", {"call_key": "\ud800"}),
        ("task", {"resources": {"\ud800": 1}}),
    ],
)
def test_text_that_nothing_can_encode(kind, given_options):
    with pytest.raises(ValueError, match="UTF-8"):
        check(kind, given_options)


def test_the_name_of_a_resource_has_a_limit():
    assert check("task", {"resources": {"a" * 65_535: 1}})
    with pytest.raises(ValueError, match="65535 bytes"):
        check("task", {"resources": {"ü" * 40_000: 1}})
