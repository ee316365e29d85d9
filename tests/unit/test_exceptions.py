"""Exceptions: pickling with all fields, failed tasks as the user's class, how errors travel, tracebacks."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest

from ftray import _task_errors, exceptions
from ftray._task_errors import dump_error, format_remote, load_error, make_task_error
from ftray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    DeathCause,
    DeserializationError,
    GetTimeoutError,
    HeadDiedError,
    LocalRayletDiedError,
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    UnserializableException,
    WorkerCrashedError,
)

DEATH = DeathCause(kind="signal", pid=77, signal=9, unix_time=1e9 + 0.25, incarnation=2, node_id="ab" * 28)
PUBLIC = [
    value
    for value in vars(exceptions).values()
    if inspect.isclass(value) and issubclass(value, RayError) and value is not RayTaskError
]


class Plain(Exception):
    pass


class Odd(Exception):
    """Its constructor does not take its args."""

    def __init__(self, code, *, detail):
        super().__init__(f"{detail} ({code})")
        self.code = code
        self.detail = detail

    @property
    def summary(self):
        return f"{self.code}/{self.detail}"


class Slotted(ValueError):
    __slots__ = ("__private", "q")

    def __init__(self, q):
        super().__init__(q)
        self.q = q
        self.__private = q + 1

    def private(self):
        return self.__private


class OwnReduce(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.a, self.b = a, b

    def __reduce__(self):
        return OwnReduce, (self.a, self.b)


class WrongReduce(Exception):
    """Pickles, but not back."""

    def __init__(self, a):
        super().__init__(a)
        self.a = a

    def __reduce__(self):
        return WrongReduce, (1, 2, 3)


class Refusing(KeyError):
    def __reduce__(self):
        raise TypeError("no")


class Holding(LookupError):
    def __init__(self, text):
        super().__init__(text, threading.Lock())
        self.lock = threading.Lock()
        self.kept = [1, 2]


class New(Exception):
    def __new__(cls, required):
        self = super().__new__(cls, required)
        self.required = required
        return self


class NoChildren(Exception):
    def __init_subclass__(cls):
        raise TypeError("final")


class BadText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class OsOdd(OSError):
    def __init__(self, place):
        super().__init__(5, "broken", place)
        self.place = place


def raised(error, cause=None):
    """Raise and catch, so that there is a traceback."""
    try:
        if cause is not None:
            raise error from cause
        raise error
    except BaseException as caught:
        return caught


def travel(error, cause=None):
    payload = make_task_error(raised(error, cause), "work", 4321)
    assert type(payload) is bytes
    return load_error(payload)


# --- the public classes ---


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_every_exception_has_a_text_and_pickles(cls):
    error = cls()
    assert str(error) and "\n" not in str(error)
    error.extra = [1]
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error), load_error(dump_error(error))):
        assert type(back) is cls
        assert (str(back), back.args, back.__dict__) == (str(error), error.args, error.__dict__)


@pytest.mark.parametrize(
    "error, fields",
    [
        (WorkerCrashedError("task f", death=DEATH), ["death"]),
        (ActorDiedError("m", actor_id="ff", actor_class="C", death=DEATH, actor_init_failed=True), None),
        (ActorUnavailableError(actor_id="ff", death=DEATH), ["actor_id", "death", "actor_init_failed"]),
        (TaskCancelledError(task_id="aa"), ["task_id"]),
        (exceptions.ForkedProcessError(12, 34), ["owner_pid", "pid"]),
        (ObjectLostError("0123", owner="process 5"), ["object_ref_hex", "owner"]),
        (UnserializableException("m.E", "text", "why"), ["class_name", "text", "reason"]),
        (exceptions.SerializationError("m", path="args[0]"), ["path"]),
    ],
    ids=lambda item: type(item).__name__,
)
def test_fields_survive(error, fields):
    back = pickle.loads(pickle.dumps(error))
    for name in fields or error.__dict__:
        assert getattr(back, name) == getattr(error, name)
    assert str(back) == str(error)


def test_hierarchy():
    assert issubclass(GetTimeoutError, TimeoutError)
    assert issubclass(ActorDiedError, RayActorError) and issubclass(ActorUnavailableError, RayActorError)
    assert issubclass(OwnerDiedError, ObjectLostError)
    assert issubclass(HeadDiedError, LocalRayletDiedError)
    assert issubclass(exceptions.NotSupportedError, NotImplementedError)
    assert issubclass(exceptions.OutOfMemoryError, WorkerCrashedError)


@pytest.mark.parametrize(
    "death, parts",
    [
        (DEATH, ["process 77", "SIGKILL", "2001-09-09", ".250", "incarnation 2", "node abababababab"]),
        (DeathCause(pid=5, exit_code=3, text="why"), ["process 5 exited with code 3: why"]),
        (DeathCause(signal=63), ["ended by signal 63"]),
        (DeathCause(kind="hung"), ["the process ended (hung)"]),
        (DeathCause(last_checkpoint="n=5"), ["last checkpoint: n=5"]),
    ],
)
def test_deaths_are_told(death, parts):
    for error in (WorkerCrashedError("f crashed.", death=death), ActorDiedError(actor_id="ff", death=death)):
        for part in parts:
            assert part in str(error)
        assert error.death is death


def test_deaths_from_reports():
    assert DeathCause.from_dict(None) == DeathCause()
    assert DeathCause.from_dict({"pid": 5, "signal": 9}) == DeathCause(pid=5, signal=9)
    assert "core_file" in DeathCause.from_dict({"text": "died", "core_file": "/c"}).describe()


# --- failed tasks as the user's class ---


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("zero"),
        KeyError("key"),
        Plain(1, [2]),
        Odd(3, detail="d"),
        Slotted(4),
        OwnReduce(1, 2),
        WrongReduce(7),
        Refusing("r"),
        New("needed"),
        OSError(2, "nope", "file"),
        OsOdd("there"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("no", name="n", path="p"),
        StopIteration(5),
        SyntaxError("bad", ("f.py", 1, 2, "text")),
        BadText(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_is_an_instance_of_the_users_class(error):
    got = travel(error)
    with pytest.raises(type(error)):
        raise got
    assert isinstance(got, RayTaskError) and isinstance(got, type(error))
    assert type(got.cause) is type(error)
    assert got.__cause__ is got.cause
    assert got.args == got.cause.args == error.args
    assert (got.function_name, got.pid) == ("work", 4321)
    assert "work()" in str(got) and "pid=4321" in str(got) and type(error).__name__ in str(got)
    assert "in raised" in str(got)
    again = pickle.loads(pickle.dumps(got))
    assert type(again) is type(got)
    assert str(again) == str(got)
    assert type(again.cause) is type(error) and again.args == got.args


def test_state_of_the_exception_is_reachable():
    odd = travel(Odd(3, detail="d"))
    assert (odd.code, odd.detail, odd.summary) == (3, "d", "3/d")
    slotted = travel(Slotted(4))
    assert (slotted.q, slotted.private()) == (4, 5)
    os_error = travel(OsOdd("there"))
    assert (os_error.errno, os_error.strerror, os_error.filename, os_error.place) == (
        5,
        "broken",
        "there",
        "there",
    )
    missing = travel(FileNotFoundError(2, "nope", "a", None, "b"))
    assert (missing.filename, missing.filename2) == ("a", "b")
    decode = travel(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))
    assert (decode.encoding, decode.object, decode.start, decode.reason) == ("utf-8", b"\xff", 0, "bad")
    no_module = travel(ImportError("no", name="n", path="p"))
    assert (no_module.name, no_module.path) == ("n", "p")
    assert travel(StopIteration(5)).value == 5
    with pytest.raises(AttributeError):
        _ = odd.nothing


def test_unpicklable_parts_are_replaced_and_the_rest_kept():
    got = travel(Holding("text"))
    assert isinstance(got, Holding)
    assert got.kept == [1, 2]
    assert got.args[0] == "text"
    assert "lock object" in got.args[1] and "lock object" in got.lock


def test_local_classes_travel_by_value():
    class Local(RuntimeError):
        def hint(self):
            return f"see {self.args[0]}"

    got = travel(Local("docs"))
    assert isinstance(got, Local)
    assert got.hint() == "see docs"


def test_plain_exception_is_the_task_error_itself():
    got = travel(Exception("plain"))
    assert type(got) is RayTaskError
    assert type(got.cause) is Exception and got.__cause__ is got.cause


def test_classes_that_cannot_be_derived_from():
    got = travel(NoChildren("x"))
    assert type(got) is RayTaskError
    assert type(got.cause) is NoChildren
    assert "NoChildren: x" in str(got)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_exceptions_that_are_no_exception_stay_the_cause(error):
    got = travel(error)
    assert type(got) is RayTaskError
    assert type(got.cause) is type(error)


def test_errors_of_ftray_inside_a_task():
    got = travel(ActorDiedError("gone", actor_id="ff", death=DEATH))
    assert isinstance(got, ActorDiedError) and isinstance(got, RayTaskError)
    assert (got.actor_id, got.death.pid) == ("ff", 77)
    timeout = travel(GetTimeoutError("late"))
    assert isinstance(timeout, TimeoutError)


@pytest.mark.parametrize("error", [ZeroDivisionError("zero"), Odd(1, detail="d"), New("n")])
def test_nested_tasks_keep_the_class(error):
    got = error
    for depth in range(3):
        got = load_error(make_task_error(raised(got), f"level{depth}", 100 + depth))
    assert isinstance(got, type(error))
    assert got.function_name == "level2"
    assert type(got).__name__ == f"RayTaskError({type(error).__name__})"
    for part in ("level0()", "level1()", "level2()", "pid=100"):
        assert part in str(got)
    inner = got
    while isinstance(inner, RayTaskError):
        inner = inner.cause
    assert type(inner) is type(error)


def test_each_load_gives_a_fresh_exception_of_the_same_class():
    payload = make_task_error(raised(Plain("x")), "f", 1)
    first, second = load_error(payload), load_error(payload)
    assert first is not second
    assert type(first) is type(second)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are of 3.11")
def test_exception_groups():
    got = travel(ExceptionGroup("many", [ValueError(1), KeyError(2)]))  # noqa: F821
    assert isinstance(got, ExceptionGroup)  # noqa: F821
    assert [type(inner) for inner in got.exceptions] == [ValueError, KeyError]
    assert "ValueError: 1" in str(got)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes are of 3.11")
def test_notes():
    error = Plain("x")
    error.add_note("look there")
    assert "look there" in str(travel(error))
    assert travel(error).cause.__notes__ == ["look there"]


# --- causes ---


def test_causes_and_contexts_travel():
    got = travel(ValueError("outer"), Odd(5, detail="inner"))
    assert isinstance(got, ValueError)
    assert isinstance(got.cause.__cause__, Odd) and got.cause.__cause__.code == 5
    assert "inner (5)" in str(got)
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise Plain("second")  # noqa: B904
    except Plain as error:
        back = load_error(make_task_error(error, "f", 1))
    assert back.cause.__cause__ is None
    assert isinstance(back.cause.__context__, KeyError)


def test_suppressed_contexts_do_not():
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise Plain("second") from None
    except Plain as error:
        back = load_error(make_task_error(error, "f", 1))
    assert back.cause.__context__ is None
    assert "first" not in str(back)


def test_circular_and_endless_chains_end():
    a, b = Plain("a"), Plain("b")
    a.__cause__, b.__cause__ = b, a
    assert isinstance(travel(a).cause.__cause__, Plain)
    error = Plain(0)
    for i in range(50):
        outer = Plain(i)
        outer.__cause__ = error
        error = outer
    got = travel(error).cause
    links = 0
    while got is not None:
        links, got = links + 1, got.__cause__
    assert links == _task_errors._CHAIN_MAX


def test_errors_of_ftray_keep_their_cause():
    died = ActorDiedError("constructor failed", actor_id="ff", actor_init_failed=True)
    died.__cause__ = load_error(make_task_error(raised(Odd(1, detail="d")), "C.__init__", 9))
    back = load_error(dump_error(died))
    assert type(back) is ActorDiedError
    assert isinstance(back.__cause__, Odd) and back.__cause__.code == 1


# --- what cannot travel ---


def test_classes_that_are_missing_here_cost_only_the_type():
    payload = make_task_error(raised(Odd(1, detail="the text")), "f", 1)
    got = load_error(payload.replace(__name__.encode(), b"n" * len(__name__)))
    assert isinstance(got, UnserializableException) and isinstance(got, RayTaskError)
    assert (got.class_name, got.text) == (f"{'n' * len(__name__)}.Odd", "the text (1)")
    assert "No module named" in got.reason
    assert "the text (1)" in str(got)


def test_classes_that_cannot_be_pickled_cost_only_the_type():
    lock = threading.Lock()

    class Local(RuntimeError):
        def use(self):
            return lock

    got = travel(Local("the text"))
    assert isinstance(got, UnserializableException)
    assert got.text == "the text" and "lock" in got.reason


@pytest.mark.parametrize("payload", [b"", b"noise", pickle.dumps(5), pickle.dumps(("task", {}, []))])
def test_damaged_payloads_give_an_error(payload):
    got = load_error(payload)
    assert type(got) is DeserializationError
    assert f"({len(payload)} bytes)" in str(got)
    assert got.__cause__ is not None


def test_error_values_are_raised_by_the_codec():
    from ftray._core.serial import deserialize

    with pytest.raises(ZeroDivisionError) as caught:
        deserialize(b"\x09" + make_task_error(raised(ZeroDivisionError("z")), "f", 1))
    assert isinstance(caught.value, RayTaskError)


def test_long_texts_are_cut():
    got = travel(Refusing("x" * 100_000))
    assert len(_task_errors.safe_text(got.cause)) < 20_000


# --- tracebacks ---


def run_in(filename, source, namespace=None):
    namespace = namespace or {}
    exec(compile(textwrap.dedent(source), filename, "exec"), namespace)
    return namespace


def test_frames_of_ftray_are_cut():
    package = _task_errors._PACKAGE
    user = run_in("/home/user/train.py", "def step(f): f()")["step"]
    inner = run_in(f"{package}/_api.py", "def get(): raise KeyError('k')")["get"]
    worker = run_in(f"{package}/_worker.py", "def execute(f, x): f(x)")["execute"]
    compiled = run_in("ftray/_core/execute.pyx", "def run(g, f, x): g(f, x)")["run"]
    with pytest.raises(KeyError) as caught:
        compiled(worker, user, inner)
    text = format_remote(caught.value)
    assert "/home/user/train.py" in text and "KeyError: 'k'" in text
    assert "_worker.py" not in text and "_api.py" not in text and "execute.pyx" not in text


def test_code_of_ftray_that_runs_for_the_user_stays():
    queue = run_in(f"{_task_errors._PACKAGE}/util/queue.py", "def put(): raise ValueError('full')")["put"]
    worker = run_in(f"{_task_errors._PACKAGE}/_worker.py", "def execute(f): f()")["execute"]
    with pytest.raises(ValueError) as caught:
        worker(queue)
    caught.value.__traceback__ = caught.value.__traceback__.tb_next
    assert "queue.py" in format_remote(caught.value) and "_worker.py" not in format_remote(caught.value)


def test_frames_stay_when_there_are_no_others():
    worker = run_in(f"{_task_errors._PACKAGE}/_worker.py", "def execute(): raise ValueError('bug')")[
        "execute"
    ]
    with pytest.raises(ValueError) as caught:
        worker()
    caught.value.__traceback__ = caught.value.__traceback__.tb_next
    assert "_worker.py" in format_remote(caught.value)


def test_hostile_exceptions_have_a_traceback():
    class Hostile(Exception):
        __cause__ = property(lambda self: 1 / 0)

        def __str__(self):
            raise SystemError("no")

    assert "Hostile" in format_remote(raised(Hostile()))


# --- cost ---


def test_importing_exceptions_is_cheap():
    source = """
    import json, sys
    before = set(sys.modules)
    import ftray.exceptions, ftray._options, ftray._pickling
    print(json.dumps(sorted(set(sys.modules) - before)))
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n" + textwrap.dedent(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    heavy = {"dataclasses", "inspect", "typing", "traceback", "difflib", "logging", "asyncio", "cloudpickle"}
    assert not heavy & set(json.loads(done.stdout))
