"""Each option that the documents list refuses what is wrong: at the call, by name, with what is allowed.

The rows are read from the tables themselves, so that an option that is documented has wrong values here, and
one that has them is documented.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ftray as ray
from ftray import _core, _options
from ftray._ids import PlacementGroupID
from ftray.checkpoint import Checkpointable
from ftray.exceptions import NotSupportedError
from ftray.experimental import internal_kv
from ftray.util.placement_group import PlacementGroup
from tests import ROOT
from tests.helpers import documents


def named(value: object) -> str:
    """Return an id that is the same in every process: no addresses."""
    return re.sub(r" at 0x\w+", "", repr(value))


GROUP = PlacementGroup(PlacementGroupID(b"g" * 18), [{"CPU": 1.0}])


class Wrong(NamedTuple):
    """What an option refuses; an option with a table row needs some of each kind that it can have.

    Attributes
    ----------
    types
        Values of a wrong type: TypeError.
    ranges
        Values of the right type that are not allowed: ValueError. None: every value of the type is.
    together
        Values that are wrong beside others, with what the message says.
    """

    types: list[Any]
    ranges: list[Any] | None
    together: list[tuple[dict[str, Any], str]] = []


AMOUNT = Wrong(["2", True, [1], b"1"], [-1, math.nan, math.inf, 0.00001, 10**400])
BOOLEAN = Wrong([1, "yes", 0.0], None)
NAME = Wrong([5, b"name"], [""])
RETRIES = Wrong(["3", 1.5, True], [-2])
GPUS = Wrong(["1", True], [-1, 1.5])
RESOURCES = Wrong(
    [["disk"], "disk", {1: 1}, {"": 1}, {"disk": "x"}],
    [{"disk": -1}, {"CPU": 1}, {"GPU": 1}, {"memory": 1}, {"object_store_memory": 1}],
)
STRATEGY = Wrong(
    [5, object(), GROUP],
    ["RANDOM", ""],
    [({"scheduling_strategy": "SPREAD", "placement_group": GROUP}, "exclude each other")],
)
RUNTIME_ENV = Wrong(["env.yaml", {"env_vars": {"A": 1}}], [{"nonsense": 1}, {"env_vars": {"": "a"}}])
NUM_RETURNS = Wrong([1.5, [2], True], [-1, 65536, "many"], [({"num_returns": "streaming"}, "generator")])
AHEAD = Wrong(
    ["5", 1.5],
    [0, -2, 2**31],
    [({"_generator_backpressure_num_objects": 5, "num_returns": 2}, "needs num_returns='streaming'")],
)
RETRY_ON = Wrong([1, ValueError, "ValueError", [5], ["ValueError"], [KeyboardInterrupt]], None)
PLACED = {
    "num_cpus": AMOUNT,
    "num_gpus": GPUS,
    "memory": AMOUNT,
    "resources": RESOURCES,
    "accelerator_type": NAME,
    "object_store_memory": AMOUNT,
    "scheduling_strategy": STRATEGY,
    "label_selector": Wrong([5, ["zone"], {"zone": 1}, {1: "a"}], None),
    "placement_group": Wrong(
        ["group", 5],
        None,
        [({"placement_group": GROUP, "scheduling_strategy": "SPREAD"}, "exclude each other")],
    ),
    "placement_group_bundle_index": Wrong(["0", 0.5], [-2]),
    "placement_group_capture_child_tasks": BOOLEAN,
    "runtime_env": RUNTIME_ENV,
    "enable_task_events": BOOLEAN,
    "name": NAME,
}
TASKS = {
    **PLACED,
    "num_returns": NUM_RETURNS,
    "_generator_backpressure_num_objects": AHEAD,
    "max_retries": RETRIES,
    "retry_exceptions": RETRY_ON,
    "max_calls": Wrong(["1", 1.5], [-1]),
}
ACTORS = {
    **PLACED,
    "namespace": NAME,
    "get_if_exists": BOOLEAN._replace(together=[({"get_if_exists": True}, "needs name=")]),
    "lifetime": Wrong([1, True], ["forever", ""]),
    "max_restarts": RETRIES,
    "max_task_retries": RETRIES,
    "max_concurrency": Wrong(["2", 2.0], [0, -1]),
    "max_pending_calls": Wrong(["5", 5.0], [0, -2]),
    "concurrency_groups": Wrong([["io"], "io", {1: 1}, {"io": "2"}], [{"": 1}, {"io": 0}]),
    "allow_out_of_order_execution": BOOLEAN._replace(
        together=[({"allow_out_of_order_execution": False, "max_concurrency": 2}, "max_concurrency > 1")]
    ),
}
METHODS = {
    "num_returns": NUM_RETURNS,
    "_generator_backpressure_num_objects": AHEAD,
    "max_task_retries": RETRIES,
    "retry_exceptions": RETRY_ON,
    "concurrency_group": NAME,
    "name": NAME,
    "enable_task_events": BOOLEAN,
    "call_key": NAME,
}
INIT = {
    "address": Wrong([5, b"auto"], None, [({"address": "auto", "num_cpus": 2}, "num_cpus cannot be given")]),
    "engine": Wrong([5, b"native"], ["dask", ""]),
    "num_cpus": AMOUNT,
    "num_gpus": Wrong(["1", True], [-1, 0.5]),
    "resources": Wrong(["disk", [1], {1: 1}, {"disk": "x"}], [{"disk": -1}]),
    "object_store_memory": Wrong(["1G", 1e9, True], [5, -1]),
    "object_spilling_directory": NAME,
    "labels": Wrong(["zone=a", ["zone"], {"zone": 1}, {1: "a"}], None),
    "namespace": NAME,
    "ignore_reinit_error": BOOLEAN,
    "log_to_driver": BOOLEAN,
    "runtime_env": RUNTIME_ENV,
    "job_key": NAME,
}
FIELDS = {
    "env_vars": Wrong(["A=1", ["A"], {"A": 1}, {1: "A"}], [{"": "a"}, {"A=B": "a"}, {"A": "\0"}]),
    "working_dir": Wrong([5, ["dir"]], [""]),
    "py_modules": Wrong(["dir", 5, [5]], [[""]]),
    "excludes": Wrong(["*.txt", [5]], None, [({"excludes": ["*.txt"]}, "of no use")]),
}


def plain() -> int:
    return 1


class Plain:
    def __init__(self) -> None:
        self.n = 0

    def method(self) -> int:
        return 1


def decorate_method(**options: Any) -> None:
    @ray.remote
    class Marked:
        @ray.method(**options)
        def method(self) -> int:
            return 1


def init(**options: Any) -> None:
    ray.init(**options)


# Heading of the table, its document, the options, and the ways to give them.
TABLES: dict[str, tuple[str, dict[str, Wrong], dict[str, Callable[..., Any]]]] = {
    "option of tasks": (
        "docs/api.md",
        TASKS,
        {
            "decorator": lambda **options: ray.remote(**options)(plain),
            "options": lambda **options: ray.remote(plain).options(**options),
        },
    ),
    "option of actors": (
        "docs/api.md",
        ACTORS,
        {
            "decorator": lambda **options: ray.remote(**options)(Plain).remote(),
            "options": lambda **options: ray.remote(Plain).options(**options).remote(),
        },
    ),
    "option of methods": ("docs/api.md", METHODS, {"decorator": decorate_method}),
    "argument": ("docs/api.md", INIT, {"init": init}),
    "field": (
        "docs/api.md",
        FIELDS,
        {
            "remote": lambda **fields: ray.remote(runtime_env=fields)(plain),
            "init": lambda **fields: ray.init(runtime_env=fields),
            "RuntimeEnv": lambda **fields: ray.runtime_env.RuntimeEnv(**fields),
        },
    ),
}


@pytest.fixture(autouse=True)
def nothing_starts() -> Iterator[None]:
    """What is wrong is refused before any process is started for it."""
    yield
    assert not _core.attached()


def rows(document: str, head: str) -> list[str]:
    text = Path(ROOT, document).read_text(encoding="utf-8")
    return [name for cells in documents.table(text, head) for name in documents.named(cells[0])]


def check_rows(document: str, head: str, cases: dict[str, Any]) -> None:
    found = set(rows(document, head))
    assert found == set(cases), (
        f"{document}, table {head!r}: each row needs its wrong values here, and each of these its row"
    )


@pytest.mark.parametrize("head", TABLES)
def test_every_row_has_wrong_values(head: str) -> None:
    document, cases, _ways = TABLES[head]
    if cases in (TASKS, ACTORS, METHODS):
        kind = head.rpartition(" ")[2].rstrip("s")
        assert set(cases) == set(_options._CHECKS[kind])
    # For both kinds `num_gpus, memory` and `placement_group...` stand in a row together.
    check_rows(document, head, cases)
    for option, wrong in cases.items():
        assert wrong.types, option
        assert wrong.ranges or wrong.ranges is None, option


CASES = [
    pytest.param(way, option, value, error, id=f"{head}-{way_name}-{option}={named(value):.40}")
    for head, (_document, cases, ways) in TABLES.items()
    for option, wrong in cases.items()
    for error, values in ((TypeError, wrong.types), (ValueError, wrong.ranges or []))
    for value in values
    for way_name, way in ways.items()
]


@pytest.mark.parametrize(("way", "option", "value", "error"), CASES)
def test_wrong_values(way: Callable[..., Any], option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        way(**{option: value})
    assert isinstance(caught.value, error) and not isinstance(caught.value, NotSupportedError)
    check_message(str(caught.value), option, value)


def parts_of(value: Any) -> list[Any]:
    """The value, and what is in it: a message may name the part that is wrong."""
    if isinstance(value, dict):
        return [value, *value, *value.values()]
    return [value, *value] if isinstance(value, list) else [value]


def check_message(text: str, option: str, value: Any) -> None:
    """It names the option, what was given and what is allowed."""
    assert option in text or any(repr(part) in text for part in parts_of(value)[1:])
    assert any(repr(part)[:40] in text or part == "" for part in parts_of(value)), f"not given: {text!r}"
    allowed = r"must|allowed|Allowed|use the option|is not empty|has no|is no field|is empty"
    assert re.search(allowed, text), f"what is allowed is not in {text!r}"


TOGETHER = [
    pytest.param(way, options, words, id=f"{head}-{way_name}-{','.join(options)}")
    for head, (_document, cases, ways) in TABLES.items()
    for wrong in cases.values()
    for options, words in wrong.together
    for way_name, way in ways.items()
]


@pytest.mark.parametrize(("way", "options", "words"), TOGETHER)
def test_values_that_exclude_each_other(way: Callable[..., Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        way(**options)
    assert words in str(caught.value)
    assert any(option in str(caught.value) for option in options)


def test_an_actor_whose_method_names_a_group_that_there_is_not() -> None:
    class Grouped:
        @ray.method(concurrency_group="disk")
        def method(self) -> int:
            return 1

    with pytest.raises(
        ValueError, match=r"concurrency_group='disk' of Grouped.method does not exist: .* 'io'"
    ):
        ray.remote(concurrency_groups={"io": 1})(Grouped).remote()


def test_marks_of_what_is_no_method() -> None:
    with pytest.raises(TypeError, match="marks methods, not int"):
        ray.method(num_returns=2)(5)
    ray.method(num_returns=2)(staticmethod(plain))
    ray.method(num_returns=2)(classmethod(plain))


def test_arguments_of_a_class_without_constructor() -> None:
    class Bare:
        pass

    with pytest.raises(TypeError, match=r"Bare\(\) takes 0 positional arguments but 1 was given"):
        ray.remote(Bare).remote(1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        ray.remote(Bare).remote(x=1)


# --- Checkpointable ---------------------------------------------------------------------------------------

KEYWORDS: dict[str, list[Any]] = {
    "store": [5, "", b"x", "nonsense://place"],
    "every": [0, -1, "10", 2.5, True],
    "interval_s": [0, -1, "1", math.nan, math.inf, True],
    "keep": [1, "2", 2.5, None],
    "checkpoint_key": [5, "", b"key"],
    "restore": ["sometimes", True, None],
    "checkpoint_version": [0, "1", 1.5],
    "durability": ["fire", True],
    "formerly": [5, [5], [""]],
    "after": [5, [5], [""]],
    "exactly_once": [1, "yes", None],
    "code_version": [-1, "3", True, 1],  # a right one, too, is for exactly-once actors only
    "takeover": [1, "yes", True],
    "verify": [1, "yes", None],
    "fencing": ["hope", True, None, "lease"],
    "lease_s": [0.5, 4000, "10", True, 20.0],
    "reply_bound_bytes": [0, -1, "1", True],
    "reply_bound_calls": [0, -1, 1.5, True],
    "journal_bound_bytes": [0, -1, "1", True],
    "save_share": [0, -0.1, 1.01, float("nan"), float("inf"), "0.5", True, None],
}


def test_every_keyword_of_checkpointable_has_wrong_values() -> None:
    check_rows("docs/checkpoint-guide.md", "keyword", KEYWORDS)


@pytest.mark.parametrize(
    ("keyword", "value"), [(keyword, value) for keyword, values in KEYWORDS.items() for value in values]
)
def test_wrong_keywords_of_checkpointable(keyword: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        type("Wrong", (Checkpointable,), {}, **{keyword: value})
    text = str(caught.value)
    assert keyword in text and (repr(value) in text or value == "" or value == [""])


# --- the internal key-value store -------------------------------------------------------------------------

LONG = "k" * 65537
STORE_CALLS: dict[str, list[tuple[Callable[[], Any], type[Exception], str]]] = {
    "put": [
        (lambda: internal_kv.put(5, "v"), TypeError, "the key must be bytes or a string, not int: 5"),
        (lambda: internal_kv.put("k", 5), TypeError, "the value must be bytes or a string, not int: 5"),
        (lambda: internal_kv.put("k", "v", 1), TypeError, "overwrite must be a bool, not int"),
        (
            lambda: internal_kv.put("k", "v", namespace=5),
            TypeError,
            "the namespace must be bytes or a string",
        ),
        (lambda: internal_kv.put(LONG, "v"), ValueError, "65537 bytes; .* at most 65536"),
        (lambda: internal_kv.put("k", bytes((64 << 20) + 1)), ValueError, "at most 67108864"),
    ],
    "get": [
        (lambda: internal_kv.get(None), TypeError, "the key must be bytes or a string"),
        (lambda: internal_kv.get("k", namespace=LONG), ValueError, "the namespace has 65537 bytes"),
    ],
    "exists": [(lambda: internal_kv.exists(5), TypeError, "the key must be bytes or a string")],
    "delete": [
        (lambda: internal_kv.delete(5), TypeError, "the key must be bytes or a string"),
        (
            lambda: internal_kv.delete("k", del_by_prefix=1),
            TypeError,
            "del_by_prefix must be a bool, not int",
        ),
    ],
    "list_keys": [(lambda: internal_kv.list_keys(5), TypeError, "the key must be bytes or a string")],
    "initialized": [(lambda: internal_kv.initialized(5), TypeError, "positional argument")],  # type: ignore[call-arg]
}


def test_every_function_of_the_store_has_wrong_arguments() -> None:
    check_rows("docs/api.md", "function", STORE_CALLS)


@pytest.mark.parametrize(
    ("call", "error", "words"), [case for calls in STORE_CALLS.values() for case in calls], ids=named
)
def test_wrong_arguments_of_the_store(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
