"""Call arguments through the codec: fast and pickled forms, dependencies, refs, damage."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray._core import pickler
from ftray._core.callargs import deserialize_args, register_ref_type, serialize_args
from ftray.exceptions import DeserializationError, SerializationError

FAST = ord("F")


class Ref:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        assert pickler.note_ref(self)
        return str, (f"inner {self.name}",)


class SubRef(Ref):
    pass


@pytest.fixture(autouse=True, scope="module")
def ref_type():
    previous = register_ref_type(Ref)
    yield
    assert register_ref_type(previous) is Ref


def there_and_back(args, kwargs=None, dep_values=None):
    deps: list[Ref] = []
    refs: list[Ref] = []
    data = serialize_args(args, kwargs, deps, refs)
    return data, deps, refs, deserialize_args(data, dep_values)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)


@settings(max_examples=200)
@given(st.lists(scalars, max_size=8))
def test_scalars_take_the_fast_form(args):
    data, deps, refs, back = there_and_back(tuple(args))
    assert data[0] == FAST
    assert back == (tuple(args), None)
    assert [type(value) for value in back[0]] == [type(value) for value in args]
    assert not deps and not refs


@settings(max_examples=100)
@given(
    st.lists(st.lists(scalars, max_size=2) | st.integers(), max_size=4),
    st.dictionaries(st.text(), scalars, max_size=3),
)
def test_any_arguments(args, kwargs):
    _, _, _, back = there_and_back(tuple(args), kwargs)
    assert back == (tuple(args), kwargs or None)


def test_empty():
    data, _, _, back = there_and_back(())
    assert (len(data), back) == (3, ((), None))
    assert there_and_back((), {})[3] == ((), None)


@pytest.mark.parametrize("args", [(2**70,), ("\ud800",), (b"x" * 200_000,), ("y" * 60_000, b"z" * 60_000)])
def test_what_does_not_fit_the_fast_form_is_pickled(args):
    data, _, _, back = there_and_back((1, *args))
    assert data[0] != FAST
    assert back == ((1, *args), None)


def test_more_arguments_than_the_fast_form_counts():
    args = tuple([None] * 70_000)
    data, _, _, back = there_and_back(args)
    assert data[0] != FAST
    assert back == (args, None)


def test_arrays_are_views_when_asked():
    data = bytearray(serialize_args((np.arange(5000), 3), {"k": np.arange(10)}, []))
    args, kwargs = deserialize_args(data, zero_copy=True)
    assert args[0].sum() == 5000 * 4999 // 2
    assert not args[0].flags.writeable and not kwargs["k"].flags.writeable
    start = np.frombuffer(data, np.uint8).ctypes.data
    assert start < args[0].ctypes.data < start + len(data)


# --- dependencies ---


@pytest.mark.parametrize("cls", [Ref, SubRef])
def test_top_level_refs_become_slots(cls):
    a, b = cls("a"), cls("b")
    data, deps, refs, back = there_and_back((1, a, b, a), None, ["A", ["B"], "C"])
    assert data[0] == FAST
    assert deps == [a, b, a]
    assert refs == []
    assert back == ((1, "A", ["B"], "C"), None)


def test_slots_in_the_pickled_form_and_in_kwargs():
    a, b, inner = Ref("a"), Ref("b"), Ref("c")
    data, deps, refs, back = there_and_back((a, [inner]), {"k": b, "n": 1}, ["A", "B"])
    assert data[0] != FAST
    assert deps == [a, b]
    assert refs == [inner]
    assert back == (("A", ["inner c"]), {"k": "B", "n": 1})


def test_existing_entries_of_the_lists_stay():
    deps, refs = ["first"], ["r"]
    data = serialize_args((Ref("a"), [Ref("b")]), None, deps, refs)
    assert [getattr(dep, "name", dep) for dep in deps] == ["first", "a"]
    assert [getattr(ref, "name", ref) for ref in refs] == ["r", "b"]
    assert deserialize_args(data, ["0", "1"])[0][0] == "1"


def test_large_arguments_report_their_refs():
    deps: list[Ref] = []
    refs: list[Ref] = []
    a, b = Ref("a"), Ref("b")
    data = serialize_args((a, [b], np.zeros(100_000)), None, deps, refs)
    assert (deps, refs) == ([a], [b])
    assert deserialize_args(data, [7])[0][:2] == (7, ["inner b"])


@pytest.mark.parametrize("args", [(Ref("a"), 1), (Ref("a"), [1])])
@pytest.mark.parametrize("values", [None, []])
def test_missing_dependencies_are_refused(args, values):
    data = serialize_args(args, None, [])
    with pytest.raises(DeserializationError, match="dependency 0 of 0"):
        deserialize_args(data, values)


def test_a_failed_encode_leaves_the_lists():
    deps, refs = ["first"], ["r"]
    with pytest.raises(SerializationError):
        serialize_args((Ref("a"), [Ref("b")], threading.Lock()), {"k": Ref("c")}, deps, refs)
    assert (deps, refs) == (["first"], ["r"])


def test_without_a_ref_type_refs_are_values():
    assert register_ref_type(None) is Ref
    try:
        deps: list[Ref] = []
        refs: list[Ref] = []
        serialize_args((Ref("a"),), None, deps, refs)
        assert (deps, [ref.name for ref in refs]) == ([], ["a"])
    finally:
        register_ref_type(Ref)


def test_ref_type_must_be_a_class():
    with pytest.raises(TypeError):
        register_ref_type("ObjectRef")


# --- damage ---


def test_every_truncation_is_refused():
    for args in [(1, "text", b"bytes", None, Ref("a")), ([1, 2],), (np.arange(600),)]:
        data = serialize_args(args, None, [])
        for n in range(len(data)):
            with pytest.raises(DeserializationError):
                deserialize_args(data[:n], ["A"])
    with pytest.raises(DeserializationError, match="bytes follow"):
        deserialize_args(serialize_args((1,), None, []) + b"x")


@settings(max_examples=300)
@given(st.binary(max_size=80))
def test_noise_in_the_fast_form_raises_or_gives_arguments(noise):
    try:
        args, kwargs = deserialize_args(b"F" + noise, ["A"])
    except DeserializationError:
        return
    assert type(args) is tuple and kwargs is None


def test_values_that_are_no_arguments_are_refused():
    from ftray._core.serial import serialize

    for value in (5, "text", (1, 2), ((1,), None, 3), ([1], None), ((), [])):
        with pytest.raises(DeserializationError, match="no arguments"):
            deserialize_args(serialize(value))


def test_another_process_needs_no_registration():
    data = serialize_args((Ref("a"), {"x": 1}), None, [])
    source = f"""
    from ftray._core.callargs import deserialize_args
    assert deserialize_args({data!r}, ["A"]) == (("A", {{"x": 1}}), None)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(source)], check=True)
