"""What cannot be pickled is named by its path; functions and classes, their sizes."""

from __future__ import annotations

import functools
import threading
import warnings

import pytest

from ftray import _pickling
from ftray._core import pickler
from ftray._core.callargs import serialize_args
from ftray._core.serial import deserialize, serialize
from ftray._pickling import pickle_function, unpickle_function
from ftray.exceptions import NotInitializedError, RayError, SerializationError

LOCK = threading.Lock()


class Config:
    def __init__(self, **config):
        self.config = config


class Slotted:
    __slots__ = ("lock",)

    def __init__(self):
        self.lock = threading.Lock()


class Stubborn:
    def __reduce__(self):
        raise ValueError("not today")


class Refusing:
    def __reduce__(self):
        raise NotInitializedError()


def capture():
    lock = threading.Lock()

    def function():
        return lock

    return function


def default(lock=LOCK):
    return lock


def uses_global():
    def inner():
        return LOCK

    return inner()


class Method:
    def use(self):
        return LOCK


def make_deep(n):
    value: list = []
    for _ in range(n):
        value = [value]
    return value


@pytest.mark.parametrize(
    "args, kwargs, path",
    [
        ((1, Config(lock=LOCK)), None, "args[1].config['lock']"),
        ((LOCK,), None, "args[0]"),
        ((), {"db": [1, {2: LOCK}]}, "kwargs['db'][1][2]"),
        (((1, (2, LOCK)),), None, "args[0][1][1]"),
        (([Slotted()],), None, "args[0][0].lock"),
        ((Stubborn(),), None, "args[0]"),
        pytest.param(({LOCK: 1},), None, f"args[0] -> key {LOCK!r}", id="a key"),
        ((functools.partial(print, LOCK),), None, "args[0].args[0]"),
        ((Config(c=LOCK).config.get,), None, "args[0] -> constructor argument 0['c']"),
    ],
)
def test_path_of_what_cannot_be_pickled(args, kwargs, path):
    with pytest.raises(SerializationError) as caught:
        serialize_args(args, kwargs, [])
    assert caught.value.path == path
    assert path in str(caught.value)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, RayError)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "function, part",
    [
        (capture(), "closure variable 'lock' of function capture.<locals>.function"),
        (lambda: LOCK, "global variable 'LOCK' used by function <lambda>"),
        (lambda lock=LOCK: lock, "default value 0 of function <lambda>"),
    ],
)
def test_functions_name_the_variable(function, part):
    with pytest.raises(SerializationError) as caught:
        pickle_function(function)
    assert part in str(caught.value)
    assert "of type _thread.lock" in str(caught.value)
    with pytest.raises(SerializationError) as caught:
        serialize_args((0, function), None, [])
    assert caught.value.path.startswith("args[1] -> ")


def test_classes_name_the_method():
    lock = threading.Lock()

    class Local:
        def use(self):
            return lock

    with pytest.raises(SerializationError) as caught:
        pickle_function(Local)
    assert ".use -> closure variable 'lock'" in caught.value.path


def test_message_says_type_reason_and_remedy():
    with pytest.raises(SerializationError) as caught:
        serialize({"f": (i for i in range(3))})
    text = str(caught.value)
    assert text.startswith(
        "cannot pickle value['f'], of type generator: TypeError: cannot pickle 'generator'"
    )
    assert "__getstate__" in text and "register_serializer" in text


def test_failures_of_the_users_hooks_are_told():
    with pytest.raises(SerializationError, match="ValueError: not today") as caught:
        serialize([Stubborn()])
    assert isinstance(caught.value.__cause__, ValueError)


def test_errors_of_ftray_pass_unchanged():
    with pytest.raises(NotInitializedError):
        serialize([Refusing()])
    with pytest.raises(NotInitializedError):
        serialize([Refusing(), lambda: 1])


def test_too_deep():
    with pytest.raises(SerializationError, match="nested too deeply"):
        serialize(make_deep(100_000))


def test_interrupts_pass():
    class Interrupting:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serialize([Interrupting()])
    assert deserialize(serialize([1])) == [1]


def test_search_is_bounded(monkeypatch):
    attempts = []
    probe = pickler.probe
    monkeypatch.setattr(pickler, "probe", lambda value: attempts.append(1) or probe(value))
    with pytest.raises(SerializationError):
        serialize([*range(2000), LOCK])
    assert len(attempts) <= _pickling._ATTEMPTS_MAX


def test_search_ends_in_cycles():
    class Cycle:
        def __reduce__(self):
            return list, (), {"me": self, "lock": LOCK}

    value = Cycle()
    with pytest.raises(SerializationError):
        serialize([value, value])


def test_probe_counts_bytes_and_captures_nothing():
    class Ref:
        def __reduce__(self):
            assert pickler.note_ref(self)
            return str, ()

    assert 1000 < pickler.probe([b"x" * 1000, Ref()]) < 1200
    assert pickler.note_ref("x") is False


# --- functions and classes ---


def test_functions_and_classes_come_back():
    offset = 5

    class Local:
        def add(self, x):
            return x + offset

    assert unpickle_function(pickle_function(lambda x: x + offset))(1) == 6
    assert unpickle_function(pickle_function(Local))().add(2) == 7
    assert unpickle_function(pickle_function(Config)) is Config
    assert unpickle_function(pickle_function(len)) is len


def test_large_functions_warn_and_name_what_they_captured(monkeypatch):
    monkeypatch.setattr(_pickling, "FUNCTION_SIZE_WARN", 10_000)
    big, small = b"x" * 20_000, b"y"
    with pytest.warns(UserWarning, match=r"closure variable 'big' .*\(0\.0 MB\)"):
        pickle_function(lambda: (big, small))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle_function(lambda: small)


def test_huge_functions_are_refused(monkeypatch):
    monkeypatch.setattr(_pickling, "FUNCTION_SIZE_WARN", 10_000)
    monkeypatch.setattr(_pickling, "FUNCTION_SIZE_MAX", 20_000)
    big = b"x" * 30_000
    with pytest.raises(SerializationError, match=r"'big'.*put\(\)"):
        pickle_function(lambda: big)


def test_refs_that_functions_capture_are_reported():
    class Ref:
        def __reduce__(self):
            assert pickler.note_ref(self)
            return str, ()

    ref, refs = Ref(), []
    pickle_function(lambda: ref, refs)
    assert refs == [ref]
