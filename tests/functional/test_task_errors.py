"""Exceptions of user code: their class, their traceback, their way through dependent tasks."""

from __future__ import annotations

import pickle
import threading

import pytest

import ftray as ray

pytestmark = pytest.mark.usefixtures("runtime")


class AppError(Exception):
    """An application's exception with arguments of its own."""

    def __init__(self, code, detail):
        super().__init__(f"{detail} ({code})")
        self.code = code
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.code, self.detail)


class UnpicklableError(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.handle = open("/dev/null")  # noqa: SIM115  (the point: it cannot be pickled)

    def __reduce__(self):
        raise TypeError("cannot pickle this exception")


class FinalMeta(type):
    def __new__(mcs, name, bases, namespace):
        if any(isinstance(base, FinalMeta) for base in bases):
            raise TypeError("no subclasses")
        return super().__new__(mcs, name, bases, namespace)


class FinalError(Exception, metaclass=FinalMeta):
    """Cannot be subclassed, so no dual class can be made of it."""


def deep_failure():
    raise AppError(42, "deep inside")


@ray.remote
def fail_with(error):
    raise error


@ray.remote
def fail_deep():
    deep_failure()


@ray.remote
def identity(x):
    return x


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("zero"), KeyError("key"), ValueError(1, 2), AppError(1, "app"), OSError(2, "no file")],
)
def test_error_is_both_the_users_class_and_ray_task_error(error):
    ref = fail_with.remote(error)
    with pytest.raises(type(error)):
        ray.get(ref)
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(ref)
    assert isinstance(caught.value, type(error))
    assert type(caught.value.cause) is type(error)
    assert caught.value.cause.args == error.args


def test_attributes_of_the_users_exception_are_there():
    with pytest.raises(AppError) as caught:
        ray.get(fail_deep.remote())
    assert (caught.value.code, caught.value.detail) == (42, "deep inside")


def test_message_has_the_remote_traceback():
    with pytest.raises(AppError) as caught:
        ray.get(fail_deep.remote())
    text = str(caught.value)
    for part in (
        "deep_failure",
        'raise AppError(42, "deep inside")',
        "test_task_errors.py",
        "pid=",
        "fail_deep",
    ):
        assert part in text


def test_chained_exceptions_appear_in_the_traceback():
    @ray.remote
    def chained():
        try:
            deep_failure()
        except AppError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError) as caught:
        ray.get(chained.remote())
    assert "deep inside" in str(caught.value)
    assert "outer" in str(caught.value)


def test_error_runs_through_dependent_tasks_without_running_them(mailbox):
    @ray.remote
    def never(x, box):
        box.post("ran")

    ref = fail_deep.remote()
    for _ in range(3):
        ref = never.remote(ref, mailbox)
    with pytest.raises(AppError) as caught:
        ray.get(ref)
    assert caught.value.code == 42
    assert mailbox.take_all() == []


def test_error_in_a_nested_get_keeps_its_class():
    @ray.remote
    def outer():
        return ray.get(fail_deep.remote())

    with pytest.raises(AppError) as caught:
        ray.get(outer.remote())
    assert "deep_failure" in str(caught.value)


def test_nested_failed_ref_raises_only_when_got():
    @ray.remote
    def look(refs):
        try:
            ray.get(refs[0])
        except AppError as error:
            return error.code

    assert ray.get(look.remote([fail_deep.remote()])) == 42


def test_get_of_several_raises_and_the_others_stay_usable():
    good, bad = identity.remote(1), fail_deep.remote()
    with pytest.raises(AppError):
        ray.get([good, bad])
    assert ray.get(good) == 1


def test_every_result_of_a_failed_task_raises():
    refs = fail_deep.options(num_returns=3).remote()
    for ref in refs:
        with pytest.raises(AppError):
            ray.get(ref)


def test_the_same_error_can_be_got_again_and_pickled():
    ref = fail_deep.remote()
    for _ in range(2):
        with pytest.raises(AppError) as caught:
            ray.get(ref)
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ray.exceptions.RayTaskError)
    assert "deep_failure" in str(again)


def test_unpicklable_exception_still_tells_what_happened():
    @ray.remote
    def fail():
        raise UnpicklableError("the original text")

    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(fail.remote())
    assert "the original text" in str(caught.value)


def test_exception_class_that_cannot_be_subclassed():
    @ray.remote
    def fail():
        raise FinalError("final text")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    assert "final text" in str(caught.value)
    assert type(caught.value.cause) is FinalError


def test_unpicklable_result_is_an_error_that_names_the_task():
    @ray.remote
    def give_lock():
        return threading.Lock()

    with pytest.raises(TypeError) as caught:
        ray.get(give_lock.remote())
    assert "lock" in str(caught.value)
    assert "give_lock" in str(caught.value)


def test_result_that_cannot_be_unpickled_raises_at_get_and_nothing_else_breaks():
    class Bomb:
        def __reduce__(self):
            return explode, ()

    @ray.remote
    def give_bomb():
        return Bomb()

    with pytest.raises(Exception, match="boom"):
        ray.get(give_bomb.remote())
    assert ray.get(identity.remote(3)) == 3


def explode():
    raise RuntimeError("boom")


def test_argument_that_cannot_be_unpickled_is_an_error_of_the_task():
    class Bomb:
        def __reduce__(self):
            return explode, ()

    with pytest.raises(ray.exceptions.RayError, match="boom"):
        ray.get(identity.remote(Bomb()))
    assert ray.get(identity.remote(3)) == 3


def test_failing_tasks_leave_the_workers_alive():
    @ray.remote
    def pid_or_fail(fail):
        import os

        if fail:
            raise ValueError("as asked")
        return os.getpid()

    before = set(ray.get([pid_or_fail.remote(False) for _ in range(20)]))
    failing = [pid_or_fail.remote(True) for _ in range(50)]
    for ref in failing:
        with pytest.raises(ValueError):
            ray.get(ref)
    after = set(ray.get([pid_or_fail.remote(False) for _ in range(20)]))
    assert before & after
