"""Wrong use raises at the call that is wrong, says what was given and what is allowed, and harms nothing."""

from __future__ import annotations

import threading

import pytest

import ftray as ray
from tests.helpers.processes import crash

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote
def identity(x):
    return x


@ray.remote
class Box:
    def __init__(self, value=None):
        self.value = value

    def get(self):
        return self.value


@pytest.fixture(autouse=True)
def the_runtime_goes_on(runtime):
    yield
    assert ray.get([identity.remote(i) for i in range(5)]) == list(range(5))


class HasLock:
    def __init__(self):
        self.name = "innocent"
        self.guard = threading.Lock()


# -- what cannot be pickled is named


def test_unpicklable_argument_names_the_attribute():
    with pytest.raises(TypeError) as caught:
        identity.remote(HasLock())
    assert "guard" in str(caught.value) and "lock" in str(caught.value)


def test_unpicklable_keyword_argument_names_the_argument():
    with pytest.raises(TypeError) as caught:
        identity.remote(x={"deep": [HasLock()]})
    assert "guard" in str(caught.value)


def test_unpicklable_closure_names_the_variable():
    culprit = threading.Lock()

    @ray.remote
    def captures():
        return culprit

    with pytest.raises(TypeError) as caught:
        captures.remote()
    assert "culprit" in str(caught.value) and "captures" in str(caught.value)


def test_unpicklable_actor_argument_and_class():
    with pytest.raises(TypeError, match="guard"):
        Box.remote(HasLock())
    culprit = threading.Lock()

    @ray.remote
    class Captures:
        def get(self):
            return culprit

    with pytest.raises(TypeError, match="culprit"):
        Captures.remote()


def test_unpicklable_method_argument_does_not_break_the_order_of_calls():
    box = Box.remote(1)
    before = box.get.remote()
    with pytest.raises(TypeError, match="lock"):
        Box.options(num_cpus=0).remote(threading.Lock())
    assert ray.get([before, box.get.remote()]) == [1, 1]


def test_unpicklable_put():
    with pytest.raises(TypeError, match="guard"):
        ray.put(HasLock())


def test_error_while_pickling_is_the_users_error():
    class Bomb:
        def __reduce__(self):
            raise ZeroDivisionError("in __reduce__")

    with pytest.raises((ZeroDivisionError, TypeError), match="in __reduce__"):
        identity.remote(Bomb())


# -- options


UNKNOWN = [
    lambda: ray.remote(nonsense=1)(lambda: None),
    lambda: identity.options(nonsense=1),
    lambda: Box.options(nonsense=1),
    lambda: Box.remote().get.options(nonsense=1),
]


@pytest.mark.parametrize("call", UNKNOWN, ids=["decorator", "task", "actor", "method"])
def test_unknown_option_is_named_with_what_is_allowed(call):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert "nonsense" in str(caught.value)


TASK_OPTIONS = [
    ("num_cpus", -1, ValueError),
    ("num_cpus", "one", TypeError),
    ("num_cpus", float("nan"), ValueError),
    ("num_gpus", -0.5, ValueError),
    ("memory", -1, ValueError),
    ("resources", {"widget": -1}, ValueError),
    ("resources", {"widget": "many"}, TypeError),
    ("resources", {"CPU": 1}, ValueError),
    ("resources", {1: 1}, TypeError),
    ("resources", "widget", TypeError),
    ("num_returns", -1, ValueError),
    ("num_returns", 1.5, TypeError),
    ("num_returns", "everything", ValueError),
    ("max_retries", -2, ValueError),
    ("max_retries", "often", TypeError),
    ("retry_exceptions", 1, TypeError),
    ("retry_exceptions", [1], TypeError),
    ("retry_exceptions", ["ValueError"], TypeError),
    ("name", 5, TypeError),
    ("max_restarts", 1, ValueError),
    ("max_concurrency", 2, ValueError),
]


@pytest.mark.parametrize("option, value, error", TASK_OPTIONS, ids=lambda value: str(value))
@pytest.mark.parametrize("way", ["decorator", "options"])
def test_wrong_values_of_task_options(way, option, value, error):
    with pytest.raises((ValueError, TypeError)) as caught:
        if way == "decorator":
            ray.remote(**{option: value})(lambda: None)
        else:
            identity.options(**{option: value}).remote(1)
    name = "widget" if isinstance(value, dict) and "widget" in value else option
    assert name in str(caught.value) or "CPU" in str(caught.value)
    assert isinstance(caught.value, error)


ACTOR_OPTIONS = [
    ("num_cpus", -1),
    ("max_restarts", -2),
    ("max_restarts", "many"),
    ("max_task_retries", -2),
    ("max_concurrency", 0),
    ("max_concurrency", -1),
    ("lifetime", "eternal"),
    ("name", ""),
    ("name", 5),
    ("namespace", 5),
    ("max_retries", 1),
    ("num_returns", 2),
    ("retry_exceptions", True),
]


@pytest.mark.parametrize("option, value", ACTOR_OPTIONS, ids=str)
def test_wrong_values_of_actor_options(option, value):
    with pytest.raises((ValueError, TypeError), match=option):
        Box.options(**{option: value}).remote()


def test_get_if_exists_needs_a_name():
    with pytest.raises(ValueError, match="name"):
        Box.options(get_if_exists=True).remote()


@pytest.mark.parametrize("count", [-1, "two", 1.5])
def test_wrong_num_returns_of_methods(count):
    box = Box.remote()
    with pytest.raises((ValueError, TypeError), match="num_returns"):
        box.get.options(num_returns=count).remote()


# -- things that are not remote


def test_a_remote_function_is_not_called_directly():
    with pytest.raises(TypeError, match=r"identity.*\.remote|\.remote.*identity"):
        identity(1)


@pytest.mark.parametrize("thing", [5, "text", None, [1], pytest.param(object(), id="an object")], ids=repr)
def test_remote_of_something_else(thing):
    with pytest.raises(TypeError, match="remote|function|class"):
        ray.remote(thing)


def test_remote_takes_options_by_keyword_only():
    with pytest.raises(TypeError):
        ray.remote(lambda: None, {"num_cpus": 1})


def test_async_function_as_a_task_is_refused():
    with pytest.raises((TypeError, ValueError), match="async"):

        @ray.remote
        async def coroutine():
            return 1

        coroutine.remote()


def test_refs_as_booleans_or_numbers():
    ref = ray.put(1)
    with pytest.raises(TypeError):
        ref + 1
    with pytest.raises(TypeError):
        iter(ref)
    with pytest.raises(TypeError):
        len(ref)


def test_remote_class_cannot_be_subclassed_by_mistake():
    with pytest.raises(TypeError):

        class Derived(Box):
            pass


# -- impossible requests warn


def test_infeasible_task_warns_naming_the_resource(start_driver):
    driver = start_driver(
        """
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote(resources={"unobtainium": 2})
        def never():
            return 1
        ref = never.remote()
        tell("submitted")
        await_word()
        tell("pending", ray.wait([ref], timeout=0)[0] == [])
        ray.cancel(ref)
        try:
            ray.get(ref, timeout=10)
        except ray.exceptions.TaskCancelledError:
            tell("cancelled")
        """
    )
    driver.expect("submitted")
    line = driver.expect_output(lambda text: "unobtainium" in text, stream="err")
    assert "never" in line or "2" in line
    driver.say("report")
    assert driver.expect("pending") is True
    driver.expect("cancelled")
    driver.finish()
    driver.check_nothing_left()


def test_infeasible_actor_warns_too(start_driver):
    driver = start_driver(
        """
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote(num_cpus=64)
        class Huge:
            def call(self):
                return 1
        actor = Huge.remote()
        ref = actor.call.remote()
        tell("submitted")
        await_word()
        ray.kill(actor)
        try:
            ray.get(ref, timeout=10)
        except ray.exceptions.RayActorError:
            tell("killed")
        """
    )
    driver.expect("submitted")
    driver.expect_output(lambda text: "CPU" in text and "64" in text, stream="err")
    driver.say("kill it")
    driver.expect("killed")
    driver.finish()
    driver.check_nothing_left()


def test_a_crash_while_unpickling_arguments_is_an_error_of_the_call():
    class Deadly:
        def __reduce__(self):
            return crash, ("exit",)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(identity.options(max_retries=0).remote(Deadly()))
