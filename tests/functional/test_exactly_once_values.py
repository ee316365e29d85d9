"""What methods of exactly-once actors get from outside, and fail to send: the same when they run again."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.losing import Unreadable
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote(num_cpus=0)
def same(x):
    return x


@ray.remote(num_cpus=0)
def late(x, seconds):
    time.sleep(seconds)
    return x


@ray.remote(num_cpus=0)
def boxed(x):
    return [ray.put(x)]


@ray.remote(num_cpus=0)
def adds(other, k):
    return ray.get(other.add.remote(k))


@ray.remote(num_cpus=0, max_pending_calls=1)
class Plain:
    def wait(self, path):
        eventually(lambda: os.path.exists(path), timeout_s=30)

    def size(self, box):
        return len(ray.get(box[0]))


@ray.remote(num_cpus=0)
class Holder:
    def __init__(self, value):
        self.value = value

    def get(self):
        return self.value


class Meter(ray.Checkpointable, exactly_once=True):
    """Each method notes what came of it, and may then die, once."""

    def __init__(self, path):
        self.path, self.notes = path, []

    def note(self, what, deaths=1):
        """Die so often, if the test asks for it, after others may have seen what this method has sent."""
        self.notes.append(what)
        for n in range(deaths):
            path = f"{self.path}-{len(self.notes)}-{n}"
            if os.path.exists(f"{self.path}-dies") and not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return what

    @checkpoint.readonly
    def facts(self):
        return self.notes, os.getpid()

    def attempt(self, function, wrong):
        try:
            return self.note(str(function()))
        except wrong as error:
            return self.note(type(error).__name__)

    def unwritable_record(self):
        return self.attempt(lambda: self.record(threading.Lock), TypeError)

    def unwritable_get(self):
        return self.attempt(lambda: ray.get(boxed.remote(1)), ray.exceptions.NotSupportedError)

    def unwritable_argument(self):
        return self.attempt(lambda: same.remote(threading.Lock()), TypeError)

    def unwritable_put(self):
        return self.attempt(lambda: ray.put(threading.Lock()), TypeError)

    def wrong_cancel(self):
        plain = Plain.remote()
        ref = plain.size.remote([ray.put(b"")])
        return self.attempt(lambda: ray.cancel(ref, force=True), ValueError)

    def too_many_calls(self):
        plain = Plain.remote()
        ref = plain.wait.remote(f"{self.path}-go")
        found = self.attempt(lambda: plain.wait.remote(""), ray.exceptions.PendingCallsLimitExceeded)
        open(f"{self.path}-go", "w").close()
        ray.get(ref)
        return found

    def records_a_call(self, other):
        first = self.record(lambda: ray.get(other.add.remote(1)))
        second = ray.get(other.add.remote(10))
        third = self.record(lambda: (self.record(int), ray.get([other.add.remote(k) for k in (100, 1000)])))
        self.note([first, second, third])
        inner = [lambda: ray.get(other.add.remote(1)), lambda: ray.get(other.add.remote(9))]
        self.note(self.record(lambda: [self.record(each) for each in inner]))
        return ray.get(other.add.remote(10_000))

    def calls_after_a_failure(self, other):
        """What could not be sent has no number among the calls that could be."""
        self.attempt(lambda: adds.remote(threading.Lock(), 1), TypeError)
        self.note(ray.get(adds.remote(other, 1)))
        return ray.get(adds.remote(other, 10))

    def makes_with_refs(self):
        holders = [Holder.remote(same.remote(1)), Holder.remote(late.remote(2, 0.1))]
        return self.note(ray.get([holder.get.remote() for holder in holders]))

    def puts(self, plain):
        ray.get(plain.size.remote([ray.put(b"1")]))
        self.note("put", deaths=2)
        return ray.get(plain.size.remote([ray.put(b"22")]))

    def gives_a_ref(self, box):
        self.notes.append("ref")
        return box[0]

    def gives_a_generator(self):
        self.notes.append("generator")
        return (bytes(200_000) for _ in range(2))

    def gives_an_iterator(self):
        self.notes.append("iterator")
        return iter([1, 2])

    def until_cancelled(self, raises):
        open(f"{self.path}-runs", "w").close()
        here = ray.get_runtime_context()
        for _ in range(3000):
            if here.is_canceled():
                self.notes.append(f"cancelled, {here.is_canceled()}")
                break
            time.sleep(0.01)
        if raises:
            raise ValueError(here.is_canceled())

    def saves(self):
        self.checkpoint()

    @checkpoint.nondeterministic
    def by_snapshot(self):
        self.notes.append("snapshot")

    def __getstate__(self):
        if os.path.exists(f"{self.path}-exits"):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.__dict__

    def exits(self):
        self.notes.append("exit")
        ray.actor.exit_actor()

    def where(self):
        here = ray.get_runtime_context()
        return self.note([here.get_job_id(), here.get_call_id(), here.get_actor_id(), here.namespace])


class Sum(ray.Checkpointable, exactly_once=True):
    def __init__(self):
        self.total = 0

    def add(self, k):
        self.total += k
        return self.total


def make_meter(tmp_path):
    made = type("Meter", (Meter,), {}, store=tmp_path / "store")
    return ray.remote(num_cpus=0)(made).remote(str(tmp_path / "meter"))


def kill(actor):
    """Returns what it had noted."""
    notes, pid = ray.get(actor.facts.remote(), timeout=60)
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    return notes


def check_replayed(actor):
    """Recovery runs the calls again, twice."""
    notes = kill(actor)
    assert kill(actor) == notes
    assert ray.get(actor.facts.remote(), timeout=60)[0] == notes
    return notes


GIVEN = {
    "unwritable_record": "SerializationError",
    "unwritable_get": "NotSupportedError",
    "unwritable_argument": "SerializationError",
    "unwritable_put": "SerializationError",
    "wrong_cancel": "ValueError",
    "too_many_calls": "PendingCallsLimitExceeded",
    "makes_with_refs": [1, 2],
}


@pytest.mark.parametrize("dies", [False, True], ids=["", "dies"])
@pytest.mark.parametrize("method", GIVEN)
def test_what_a_method_gets_it_gets_again(tmp_path, method, dies):
    meter = make_meter(tmp_path)
    if dies and method != "too_many_calls":  # the actor that it has made would end with it
        (tmp_path / "meter-dies").touch()
    assert ray.get(getattr(meter, method).remote(), timeout=60) == GIVEN[method]
    assert check_replayed(meter) == [GIVEN[method]]


@pytest.mark.parametrize("dies", [False, True], ids=["", "dies"])
def test_a_recorded_function_may_call(tmp_path, dies):
    """What it calls is numbered apart, for a method that runs again does not run it again."""
    meter = make_meter(tmp_path)
    other = ray.remote(num_cpus=0)(type("Sum", (Sum,), {}, store=tmp_path / "store")).remote()
    if dies:
        (tmp_path / "meter-dies").touch()
    assert ray.get(meter.records_a_call.remote(other), timeout=60) == 11_121
    assert check_replayed(meter) == [[1, 11, (0, [111, 1111])], [1112, 1121]]
    assert ray.get(other.add.remote(0)) == 11_121


def test_calls_after_one_that_could_not_be_sent(tmp_path):
    meter = make_meter(tmp_path)
    other = ray.remote(num_cpus=0)(type("Sum", (Sum,), {}, store=tmp_path / "store")).remote()
    (tmp_path / "meter-dies").touch()
    assert ray.get(meter.calls_after_a_failure.remote(other), timeout=60) == 11
    assert check_replayed(meter) == ["SerializationError", 1]
    assert ray.get(other.add.remote(0)) == 11


def test_what_two_processes_have_put_has_two_names(tmp_path):
    meter = make_meter(tmp_path)
    (tmp_path / "meter-dies").touch()
    plain = Plain.options(max_pending_calls=-1).remote()
    assert ray.get(meter.puts.remote(plain), timeout=60) == 2
    assert check_replayed(meter) == ["put"]


def test_what_cannot_be_a_reply_is_none_when_it_runs_again(tmp_path):
    meter = make_meter(tmp_path)
    with pytest.raises(TypeError, match="a ref does not outlive its owner"):
        ray.get(meter.gives_a_ref.remote([ray.put(1)]))
    for returns in (1, 2):
        refs = meter.gives_a_generator.options(num_returns=returns).remote()
        for ref in refs if returns == 2 else [refs]:
            with pytest.raises(TypeError, match="has returned a generator"):
                ray.get(ref)
    assert list(ray.get(meter.gives_an_iterator.remote())) == [1, 2]
    assert check_replayed(meter) == ["ref", "generator", "generator", "iterator"]


@pytest.mark.parametrize("raises", [False, True])
def test_a_method_that_was_cancelled_while_it_ran(tmp_path, raises):
    meter = make_meter(tmp_path)
    ref = meter.until_cancelled.remote(raises)
    eventually((tmp_path / "meter-runs").exists)
    ray.cancel(ref)
    # Ray has its error for the caller at once, whatever the method comes to.
    own = raises and os.environ.get("FTRAY_ENGINE") != "ray"
    with pytest.raises(ValueError if own else ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=60)
    assert check_replayed(meter) == ["cancelled, True"]


def test_where_a_method_runs(tmp_path):
    meter = make_meter(tmp_path)
    here = ray.get_runtime_context()
    found = ray.get(meter.where.remote())
    assert found[0] == here.get_job_id() and found[3] == here.namespace
    assert check_replayed(meter) == [found]


def test_a_method_behind_one_that_is_not_replayed_may_send(tmp_path):
    """What it sends waits for the snapshot, which was not begun while another one was under way."""
    meter = make_meter(tmp_path)
    for _ in range(3):
        refs = [meter.saves.remote(), meter.by_snapshot.remote(), meter.makes_with_refs.remote()]
        assert ray.get(refs, timeout=30)[-1] == [1, 2]
    assert check_replayed(meter) == ["snapshot", [1, 2]] * 3


def test_an_actor_that_was_killed_before_its_last_save_goes_on(tmp_path):
    """The recorded call of exit_actor() ends no process that runs it again."""
    first = make_meter(tmp_path)
    pid = ray.get(first.facts.remote(), timeout=60)[1]
    (tmp_path / "meter-exits").touch()
    ref = first.exits.remote()
    wait_ended([pid])
    (tmp_path / "meter-exits").unlink()
    assert ray.get(ref, timeout=30) is None
    assert check_replayed(first) == ["exit"]


def test_a_call_whose_arguments_cannot_be_read_is_an_error_for_good(tmp_path):
    """It has not run, and is not run for recovery: its arguments were not readable there either."""
    meter = make_meter(tmp_path)
    with pytest.raises(ray.exceptions.RayError, match="cannot be rebuilt"):
        ray.get(meter.note.remote(Unreadable()), timeout=30)
    for _ in range(2):
        pid = ray.get(meter.facts.remote(), timeout=60)[1]
        os.kill(pid, signal.SIGKILL)
        wait_ended([pid])
    assert ray.get(meter.facts.remote(), timeout=60)[0] == []
