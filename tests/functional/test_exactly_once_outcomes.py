"""`ftray.checkpoint.outcome` under the real runtime: what became of a call whose reply did not come."""

from __future__ import annotations

import os
import random
import signal

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")
LONG_S = 60


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def make_order(store, **options):
    class Orders(ray.Checkpointable, exactly_once=True, store=store, **options):
        def __init__(self):
            self.n = 0

        def add(self, k=1):
            self.n += k
            return self.n

        def fail(self):
            self.n += 1
            raise ValueError("as asked")

        def add_when(self, began, path):
            """Waits, when it has begun, for a file; the process may be killed meanwhile."""
            open(began, "w").close()
            eventually(lambda: os.path.exists(path), timeout_s=LONG_S)
            return self.add()

        def draw(self, k):
            return self.add(self.record(lambda: k))

        @checkpoint.readonly
        def value(self):
            return self.n

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    return ray.remote(Orders)


def outcome(call, timeout_s=LONG_S):
    found = checkpoint.outcome(call, timeout_s=timeout_s)
    return found.state, found.value if found.kept and found.error is None else found.error


def test_a_call_that_was_answered(store):
    actor = make_order(store).remote()
    assert outcome(actor.add.remote(5)) == ("committed", 5)
    failed = actor.fail.remote()
    state, error = outcome(failed)
    assert state == "committed" and isinstance(error, ValueError)
    assert ray.get(actor.value.remote()) == 6


def test_while_a_call_is_under_way_nobody_knows(store, tmp_path):
    actor = make_order(store).remote()
    began, go = tmp_path / "began", tmp_path / "go"
    ref, behind = actor.add_when.remote(str(began), str(go)), actor.add.remote()
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(ref, timeout=0.01)
    eventually(began.exists, timeout_s=LONG_S)
    for call in (ref, behind):
        found = checkpoint.outcome(call, timeout_s=0.05)
        assert found.state == "unknown" and found.reason
    go.touch()
    assert outcome(ref) == ("committed", 1) and outcome(behind) == ("committed", 2)


def test_after_the_actor_is_dead_its_store_says(store, tmp_path):
    actor = make_order(store, checkpoint_key="orders").remote()
    began = tmp_path / "began"
    assert ray.get(actor.add.options(call_key="done").remote(3)) == 3
    never = actor.add_when.remote(str(began), str(tmp_path / "never"))
    named = actor.add.options(call_key="later").remote(4)
    eventually(began.exists, timeout_s=LONG_S)
    ray.kill(actor)
    for ref in (never, named):
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(ref, timeout=LONG_S)
    assert outcome(never) == outcome(named) == ("not committed", None)
    assert outcome(actor.add.options(call_key="done")) == ("committed", 3)
    assert outcome(actor.add.options(call_key="later")) == ("not committed", None)


def test_an_actor_that_is_restarting_is_waited_for(store):
    actor = make_order(store).remote()
    ray.get(actor.add.options(call_key="one").remote())
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
    assert outcome(actor.add.options(call_key="one")) == ("committed", 1)
    assert outcome(actor.add.options(call_key="two")) == ("not committed", None)


def test_a_call_that_may_not_run_again(store, tmp_path):
    """Without retries a call that had begun is lost with its incarnation; the next one knows that."""
    actor = make_order(store).remote()
    began = tmp_path / "began"
    once = actor.add_when.options(max_task_retries=0).remote(str(began), str(tmp_path / "never"))
    eventually(began.exists, timeout_s=LONG_S)
    os.kill(ray.util.state.get_actor(actor._actor_id.hex())["pid"], signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorUnavailableError):
        ray.get(once, timeout=LONG_S)
    assert ray.get([actor.add.remote() for _ in range(5)], timeout=LONG_S) == [1, 2, 3, 4, 5]
    assert outcome(once) == ("not committed", None), "later calls have not acknowledged what had no reply"
    assert ray.get(actor.value.remote()) == 5


def test_a_reply_that_was_lost_with_its_process(store, tmp_path):
    """The record is durable, and the process is stopped before anybody hears of it."""
    actor = make_order(store).remote()
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    ref = actor.add.remote()
    found = checkpoint.outcome(ref, timeout_s=0.2)
    assert found.state == "unknown" and "no record of it yet" in found.reason
    os.kill(pid, signal.SIGCONT)
    assert outcome(ref) == ("committed", 1)


def dies_at(point, nth):
    return {"env_vars": {"FTRAY_CHECKPOINT_FAULT": f"{point}:exit:{nth}"}}


@pytest.mark.parametrize(
    "point, state",
    [
        ("once.value_produced", "not committed"),
        ("once.value_recorded", "unknown"),
        ("once.recorded", "committed"),
    ],
)
def test_a_process_that_dies_on_the_way_of_a_call(store, point, state):
    orders = make_order(store, checkpoint_key="orders")
    actor = orders.options(max_restarts=0, runtime_env=dies_at(point, 2)).remote()
    assert ray.get(actor.draw.remote(0), timeout=LONG_S) == 0  # without a first snapshot nothing counts
    ref = actor.draw.remote(3)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(ref, timeout=LONG_S)
    found = checkpoint.outcome(ref, timeout_s=2)
    assert found.state == state and found.kept == (state == "committed")
    assert found.value == (3 if state == "committed" else None)


def test_kills_at_any_time_leave_as_much_as_is_said_to_be_committed(store):
    orders, rng = make_order(store, checkpoint_key="orders", every=20), random.Random(5)
    committed = 0
    for _ in range(4):
        actor = orders.options(max_restarts=0).remote()
        assert ray.get(actor.value.remote(), timeout=LONG_S) == committed
        pid = ray.get(actor.pid.remote())
        refs = [actor.add.remote() for _ in range(60)]
        if rng.random() < 0.7:
            ray.wait(refs, num_returns=rng.randrange(1, 60), timeout=LONG_S)
        os.kill(pid, signal.SIGKILL)
        found = [checkpoint.outcome(ref, timeout_s=LONG_S) for ref in refs]
        assert all(each.state in ("committed", "not committed") for each in found)
        assert [each.value for each in found if each.kept] == list(
            range(committed + 1, committed + 1 + sum(each.kept for each in found))
        )
        committed += sum(each.state == "committed" for each in found)
    assert ray.get(orders.remote().value.remote(), timeout=LONG_S) == committed


def test_a_task_asks_about_its_own_calls(store):
    actor = make_order(store).options(name="paid", max_restarts=0).remote()

    @ray.remote
    def pay(actor, pid):
        paid = actor.add.remote()
        ray.wait([paid])
        os.kill(pid, signal.SIGKILL)
        wait_ended([pid])
        lost = actor.add.remote()
        ray.wait([lost])
        return [checkpoint.outcome(ref, timeout_s=LONG_S)[:3] for ref in (paid, lost)]

    found = ray.get(pay.remote(actor, ray.get(actor.pid.remote())), timeout=LONG_S)
    assert found == [("committed", True, 1), ("not committed", False, None)]


def test_the_checkpoints_of_an_actor_without_a_name_go_with_it(store):
    actor = make_order(store).options(max_restarts=0).remote()
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    ref = actor.add.remote()
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(ref, timeout=LONG_S)
    found = checkpoint.outcome(actor.add.options(call_key="k"), timeout_s=0.5)
    assert found.state == "unknown" and found.reason


def test_a_call_that_was_never_sent(store):
    actor = make_order(store).remote()

    @ray.remote
    def bad():
        raise KeyError("no such order")

    ref = actor.add.remote(bad.remote())
    with pytest.raises(KeyError):
        ray.get(ref, timeout=LONG_S)
    found = checkpoint.outcome(ref)
    assert found.state == "not committed" and "never sent" in found.reason


def test_calls_that_were_refused(store):
    actor = make_order(store).remote()
    assert ray.get(actor.add.options(call_key="k").remote(1)) == 1
    other = actor.add.options(call_key="k").remote(2)
    found = checkpoint.outcome(other, timeout_s=LONG_S)
    assert found.state == "not committed" and "refused" in found.reason
    assert outcome(actor.add.options(call_key="k")) == ("committed", 1)


def test_replies_that_are_not_kept_any_more(store):
    actor = make_order(store, reply_bound_calls=2).remote()
    for i in range(6):
        ray.get(actor.add.options(call_key=f"k{i}").remote())
    found = checkpoint.outcome(actor.add.options(call_key="k0"), timeout_s=LONG_S)
    assert found.state == "committed" and not found.kept and "not kept" in found.reason


ASKS = """
import sys
import ftray as ray
from ftray import checkpoint

class Orders(ray.Checkpointable, exactly_once=True, store=sys.argv[1]):
    def __init__(self):
        self.n = 0
    def add(self, k=1):
        self.n += k
        return self.n

ray.init(num_cpus=1, namespace="shop", log_to_driver=False)
actor = ray.remote(Orders).options(name="orders").remote()
if sys.argv[2] == "makes":
    tell("made", ray.get(actor.add.options(call_key="order-1").remote(7)))
else:
    for key in ("order-1", "order-2"):
        found = checkpoint.outcome(actor.add.options(call_key=key))
        tell(key, [found.state, found.value])
"""


def test_from_another_process_and_another_session(store, start_driver):
    driver = start_driver(ASKS, args=[str(store), "makes"])
    assert driver.expect("made", timeout_s=LONG_S) == 7
    driver.finish()
    reader = checkpoint.open(store)
    assert reader.outcome("shop/orders", call_key="order-1")[:3] == ("committed", True, 7)
    assert reader.outcome("shop/orders", call_key="order-2").state == "not committed"
    assert reader.outcome("shop/other", call_key="order-2").state == "unknown"
    driver = start_driver(ASKS, args=[str(store), "asks"])
    assert driver.expect("order-1", timeout_s=LONG_S) == ["committed", 7]
    assert driver.expect("order-2", timeout_s=LONG_S) == ["not committed", None]
    driver.finish()


def test_what_is_no_such_call(store):
    actor = make_order(store).remote()
    plain = ray.remote(lambda: 1)
    for wrong in (ray.put(1), plain.remote(), actor.add, 5, None):
        with pytest.raises(checkpoint.CheckpointOptionError):
            checkpoint.outcome(wrong)
    for wrong in (-1, "x", True, float("nan")):
        with pytest.raises(checkpoint.CheckpointOptionError, match="timeout_s"):
            checkpoint.outcome(actor.add.remote(), timeout_s=wrong)


def test_a_method_that_changes_the_state_may_not_ask(store):
    class Asks(ray.Checkpointable, exactly_once=True, store=store):
        def ask(self, refs):
            return checkpoint.outcome(refs)

    with pytest.raises(ray.exceptions.NotSupportedError, match="outcome"):
        ray.get(ray.remote(Asks).remote().ask.remote(1), timeout=LONG_S)
