"""Values through the codec: round trips, exact types, zero-copy views, refs inside, damage."""

from __future__ import annotations

import array
import collections
import datetime
import enum
import gc
import pickle
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray._core import pickler, serial
from ftray._core.serial import deserialize, serialize
from ftray.exceptions import DeserializationError, RaySystemError, SerializationError

ZERO_COPY_MIN = 4096

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=5)
    ),
    max_leaves=20,
)


class Color(enum.IntEnum):
    RED = 1


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return (self.x, self.y) == (other.x, other.y)


class Text(str):
    pass


class Ref:
    """Pickles as refs do: it asks to be recorded."""

    def __init__(self, name, want=True):
        self.name = name
        self.want = want

    def __reduce__(self):
        assert pickler.note_ref(self) is self.want
        return Ref, (self.name, self.want)


@settings(max_examples=300)
@given(values)
def test_round_trip(value):
    back = deserialize(serialize(value))
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)  # -0.0, True inside containers


@pytest.mark.parametrize(
    "value, size",
    [
        (None, 1),
        (True, 1),
        (False, 1),
        (0, 9),
        (-(2**63), 9),
        (2**63 - 1, 9),
        (1.5, 9),
        ("", 1),
        ("grün", 6),
        (b"abc", 4),
    ],
)
def test_scalars_take_a_tag_and_their_bytes(value, size):
    assert len(serialize(value)) == size
    assert deserialize(serialize(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        Color.RED,
        Text("x"),
        2**63,
        -(2**63) - 1,
        2**2000,
        "\ud800 lone surrogate",
        Point(1, [2]),
        bytearray(b"ab"),
        {1, 2},
        frozenset({3}),
        collections.OrderedDict(a=1),
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
        range(3),
        slice(1, 2),
        Ellipsis,
        NotImplemented,
        type(None),
        int,
        Point,
        len,
        array.array("d", [1.0, 2.0]),
        [[]] * 3,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_keep_their_type(value):
    back = deserialize(serialize(value))
    assert type(back) is type(value)
    assert back == value


def test_nan_and_negative_zero():
    assert np.isnan(deserialize(serialize(float("nan"))))
    assert str(deserialize(serialize(-0.0))) == "-0.0"


@pytest.mark.parametrize("size", [102_398, 102_399, 102_400, 102_401, 5_000_000])
@pytest.mark.parametrize(
    "make", [lambda n: b"x" * n, lambda n: "y" * n, lambda n: "ü" * (n // 2), lambda n: [b"z" * n, b"z" * 10]]
)
def test_sizes_around_the_inline_limit(make, size):
    value = make(size)
    assert deserialize(serialize(value)) == value


def test_identity_inside_one_value():
    shared = [1]
    loop = {"a": shared, "b": shared}
    loop["self"] = loop
    back = deserialize(serialize(loop))
    assert back["a"] is back["b"]
    assert back["self"] is back


# --- buffers ---


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("n_bytes", [0, 8, ZERO_COPY_MIN - 8, ZERO_COPY_MIN, ZERO_COPY_MIN + 8, 1_000_000])
def test_arrays_come_back_equal_and_read_only(n_bytes, zero_copy):
    value = np.arange(n_bytes // 8, dtype=np.int64)
    back = deserialize(serialize(value), zero_copy=zero_copy)
    assert np.array_equal(back, value)
    assert back.dtype == value.dtype
    assert not back.flags.writeable or not n_bytes
    assert value.flags.writeable


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
        np.arange(20_000)[::2],
        np.zeros((0, 5)),
        np.array([object(), None], dtype=object)[1:],
        np.array([("a", 1.0)], dtype=[("n", "U3"), ("v", "f8")]),
        np.float32(2.5),
    ],
    ids=["fortran", "strided", "empty", "object", "struct", "scalar"],
)
def test_unusual_arrays(value):
    back = deserialize(serialize(value), zero_copy=True)
    assert np.array_equal(back, value)
    assert back.dtype == value.dtype


def test_big_buffers_are_aligned_and_small_ones_copied():
    small, big, other = np.arange(10), np.arange(5000.0), np.arange(7001, dtype=np.uint8)
    data = bytearray(serialize([small, big, other]))
    start = np.frombuffer(data, np.uint8).ctypes.data
    back = deserialize(data, zero_copy=True)
    inside = [start <= item.ctypes.data < start + len(data) for item in back]
    assert inside == [False, True, True]
    assert [(item.ctypes.data - start) % 64 for item in back[1:]] == [0, 0]


def test_padding_is_zeroed():
    value = [np.ones(5000, np.uint8), np.ones(5001, np.uint8), np.ones(5000, np.uint8)]
    data = serialize(value)
    assert serialize(value) == data
    assert data.count(b"\0" * 50) >= 1


class Memory(bytearray):
    """Stands for mapped memory: can be watched."""


def test_each_view_keeps_the_memory_alive():
    memory = Memory(serialize([np.arange(2000.0), np.arange(3000.0), {"k": np.arange(4000.0)}]))
    gone = weakref.ref(memory)
    first, second, third = deserialize(memory, zero_copy=True)
    del memory
    part = second[10:20]
    del first, third, second
    gc.collect()
    assert gone() is not None
    assert part.tolist() == list(range(10, 20))
    del part
    gc.collect()
    assert gone() is None


def test_copies_do_not_keep_the_memory():
    memory = Memory(serialize([np.arange(2000.0), np.arange(10.0)]))
    gone = weakref.ref(memory)
    back = deserialize(memory)
    small = deserialize(memory, zero_copy=True)[1]
    del memory
    gc.collect()
    assert gone() is None
    assert back[0].sum() == sum(range(2000)) and small.sum() == 45


def test_views_refuse_writing():
    memory = serialize(np.arange(2000.0))
    back = deserialize(memory, zero_copy=True)
    with pytest.raises(ValueError):
        back[0] = 1
    with pytest.raises(ValueError):
        back.flags.writeable = True
    raw = deserialize(serialize(pickle.PickleBuffer(bytearray(5000))), zero_copy=True)
    assert isinstance(raw, memoryview) and raw.readonly and raw.nbytes == 5000
    with pytest.raises(TypeError):
        raw[0] = 1


def test_what_was_encoded_can_change_afterwards():
    value = bytearray(b"a" * 200_000)
    data = serialize([value])
    value[:] = b"b" * 10
    assert deserialize(data) == [bytearray(b"a" * 200_000)]


# --- refs inside ---


def test_refs_inside_are_captured_in_order():
    refs: list[Ref] = []
    a, b = Ref("a"), Ref("b")
    serialize([a, {"x": (b, a)}], refs)
    assert refs == [a, b]


def test_large_values_report_their_refs_too():
    refs: list[Ref] = []
    a = Ref("a")
    serialize([a, b"x" * 200_000], refs)
    assert refs == [a]


def test_without_a_list_nothing_captures():
    serialize([Ref("a", want=False)])
    pickle.dumps(Ref("b", want=False))
    assert pickler.note_ref("c") is False


class Nesting:
    """Encodes something else while it is encoded, as a put() inside __reduce__ does."""

    inner: list[Ref]

    def __reduce__(self):
        type(self).inner = []
        serialize([Ref("inner")], self.inner)
        serialize(Ref("nobody's", want=False))
        return Nesting, ()


def test_captures_nest():
    refs: list[Ref] = []
    outer = [Ref("before"), Nesting(), Ref("after")]
    serialize(outer, refs)
    assert refs == [outer[0], outer[2]]
    assert [ref.name for ref in Nesting.inner] == ["inner"]
    assert pickler.note_ref("x") is False


def test_captures_belong_to_a_thread():
    inside, other = threading.Event(), threading.Event()
    refs: list[Ref] = []

    class Slow:
        def __reduce__(self):
            inside.set()
            assert other.wait(10)
            return list, ()

    thread = threading.Thread(target=lambda: serialize([Slow(), Ref("mine")], refs))
    thread.start()
    assert inside.wait(10)
    serialize([Ref("other", want=False)])
    other.set()
    thread.join()
    assert [ref.name for ref in refs] == ["mine"]


def test_failed_encode_leaves_no_refs_and_no_capture():
    refs: list[object] = ["kept"]
    with pytest.raises(SerializationError):
        serialize([Ref("a"), threading.Lock()], refs)
    assert refs == ["kept"]
    assert pickler.note_ref("x") is False


def test_restart_with_cloudpickle_does_not_count_refs_twice():
    refs: list[Ref] = []
    a = Ref("a")
    _, function = deserialize(serialize([a, lambda: 5], refs))
    assert function() == 5
    assert refs == [a]


def test_encoders_hold_nothing_afterwards():
    for make in (lambda: Point(1, 2), lambda: Point(np.arange(5000), b"x" * 300_000)):
        value = make()
        gone = weakref.ref(value)
        serialize([value])
        del value
        gc.collect()
        assert gone() is None


def test_many_threads_at_once():
    problems = []

    def work(seed):
        for i in range(200):
            value = {"seed": seed, "i": [i] * (i % 50), "a": np.full(i, seed)}
            back = deserialize(serialize(value))
            if back["seed"] != seed or back["i"] != value["i"] or not np.array_equal(back["a"], value["a"]):
                problems.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


# --- by value ---

WRITER = """
import functools, pickle, sys, typing
from ftray._core.serial import serialize
T = typing.TypeVar("T")
offset = 7
class Base:
    def __init__(self, n): self.n = n
    def get(self): return self.n + offset
class Derived(Base):
    __slots__ = ("extra",)
    @staticmethod
    def twice(x): return 2 * x
def recurse(n): return 1 if n == 0 else n * recurse(n - 1)
def local():
    class Inner: pass
    return Inner
values = [
    Derived(3), recurse, lambda x: x + offset, local(), T, Derived.twice, functools.partial(recurse, 3),
    Derived(4).get, sys,
]
sys.stdout.buffer.write(pickle.dumps([serialize(value) for value in values] + [serialize(values)]))
"""
READER = """
import pickle, sys
from ftray._core.serial import deserialize
blobs = pickle.loads(sys.stdin.buffer.read())
for values in ([deserialize(blob) for blob in blobs[:-1]], deserialize(blobs[-1])):
    derived, recurse, function, inner, variable, twice, bound, method, module = values
    assert (derived.get(), derived.n) == (10, 3)
    assert recurse(5) == 120 and function(1) == 8 and inner.__name__ == "Inner"
    assert variable.__name__ == "T" and twice(4) == 8 and bound() == 6 and method() == 11
    assert module is sys
"""


def run(source, **options):
    return subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, **options)


def test_what_lives_in_main_reaches_another_process():
    run(READER, input=run(WRITER).stdout)


def test_importable_things_need_no_cloudpickle():
    run("""
import sys, collections, decimal
from ftray._core.serial import serialize
values = (collections.OrderedDict, decimal.Decimal("1"), collections.Counter("aab"), {"a": [1]}, [int, len])
for value in values:
    serialize(value)
assert not {"cloudpickle", "asyncio", "numpy"} & set(sys.modules)
""")


def test_modules_registered_by_value_are_taken_by_value():
    import cloudpickle

    from tests import helpers

    assert b"cloudpickle" not in serialize(Point)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        assert b"cloudpickle" in serialize(Point(1, 2))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert b"cloudpickle" not in serialize(Point)
    assert helpers is deserialize(serialize(helpers))


# --- the user's serializers ---


class Connection:
    def __init__(self, url):
        self.url = url
        self.lock = threading.Lock()


def test_registered_serializer_is_used_inside_values_and_can_be_removed():
    pickler.register_serializer(
        Connection, serializer=lambda connection: connection.url, deserializer=lambda url: Connection(url)
    )
    try:
        back = deserialize(serialize({"c": [Connection("db://x")]}))
        assert back["c"][0].url == "db://x"
        assert deserialize(serialize([Connection("y"), lambda: 1]))[0].url == "y"
    finally:
        pickler.deregister_serializer(Connection)
    with pytest.raises(SerializationError):
        serialize(Connection("db://x"))
    pickler.deregister_serializer(Connection)


@pytest.mark.parametrize(
    "cls, functions, error",
    [
        ("no class", {"serializer": str, "deserializer": str}, TypeError),
        (dict, {"serializer": str, "deserializer": str}, ValueError),
        (Point, {"serializer": 1, "deserializer": str}, TypeError),
        (Point, {"serializer": str, "deserializer": None}, TypeError),
    ],
)
def test_wrong_registrations_are_refused(cls, functions, error):
    with pytest.raises(error):
        pickler.register_serializer(cls, **functions)


# --- damage ---

SAMPLES = [
    None,
    5,
    2.5,
    "text ü",
    b"bytes",
    {"a": [1, 2]},
    [np.arange(5), np.arange(1000.0)],
]


@pytest.mark.parametrize("value", SAMPLES, ids=lambda value: type(value).__name__)
def test_every_truncation_raises_or_gives_a_shorter_scalar(value):
    data = serialize(value)
    for n in [*range(min(len(data), 300)), len(data) - 1]:
        if type(value) in (str, bytes) and n:
            try:
                assert len(deserialize(data[:n])) <= len(value)
            except DeserializationError:
                pass
        else:
            with pytest.raises(DeserializationError):
                deserialize(data[:n])


def u64s(data, at, n):
    return [int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little") for i in range(n)]


@settings(max_examples=300)
@given(st.integers(8, 71), st.integers(0, 255))
def test_damaged_tables_raise_or_give_a_value(at, byte):
    # Only the table: pickle itself gives no guarantee for a damaged pickle.
    data = bytearray(serialize([np.arange(5), np.arange(1000.0), np.arange(1200.0)]))
    assert u64s(data, 8, 1) == [3]
    data[at] = byte
    try:
        deserialize(data, zero_copy=True)
    except DeserializationError as error:
        assert "bytes" in str(error)


@settings(max_examples=300)
@given(st.binary(max_size=64), st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 70, 128, 255]))
def test_noise_raises_or_gives_a_value(noise, tag):
    try:
        deserialize(bytes([tag]) + noise)
    except DeserializationError:
        pass


@pytest.mark.parametrize("table", [(2**60, 10), (1, 2**63), (2**64 - 1, 2**64 - 1), (0, 2**40)])
def test_absurd_counts_are_refused_at_once(table):
    head = b"\x08" + bytes(7) + b"".join(number.to_bytes(8, "little") for number in table)
    with pytest.raises(DeserializationError, match="corrupt value of"):
        deserialize(head + bytes(100))


def test_buffer_claims_that_overflow_are_refused():
    data = bytearray(serialize(np.arange(1000.0)))
    for offset, length in [(2**64 - 8, 16), (64, 2**64 - 1), (len(data), 1), (0, 8)]:
        data[24:40] = offset.to_bytes(8, "little") + length.to_bytes(8, "little")
        with pytest.raises(DeserializationError, match="buffer 0"):
            deserialize(data)


def test_missing_modules_are_named():
    blob = serialize(Point(1, 2)).replace(__name__.encode(), b"n" * len(__name__))
    with pytest.raises(
        DeserializationError, match=r"ModuleNotFoundError.*importable in every process"
    ) as caught:
        deserialize(blob)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert isinstance(caught.value, RaySystemError)


class Bomb:
    def __reduce__(self):
        return explode, ("boom",)


def explode(text):
    raise LookupError(text)


def test_failures_of_the_users_code_are_the_cause():
    with pytest.raises(DeserializationError, match="LookupError: boom") as caught:
        deserialize(serialize(Bomb()))
    assert isinstance(caught.value.__cause__, LookupError)


def test_wrong_input_type():
    with pytest.raises(TypeError):
        deserialize("text")
    assert isinstance(serial.EncodedValue, type)
