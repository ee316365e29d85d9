"""Actors whose state survives: the checkpoint toolkit under the real runtime and real deaths."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.processes import WAYS_TO_DIE, wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")

RESTARTING = {"max_restarts": -1, "max_task_retries": -1}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def make_counter(store, **options):
    """A remote class with a checkpointed count, as a user would write it."""

    class Counter(ray.Checkpointable, store=store, **options):
        def __init__(self, start=0):
            self.n = start
            self.restored = False
            self.trace = ["init"]

        def load_checkpoint(self, state):
            super().load_checkpoint(state)
            self.restored = True

        def incr(self, k=1):
            self.n += k
            return self.n

        def incr_and_save(self):
            self.n += 1
            self.checkpoint()
            self.n += 1
            return self.n

        @checkpoint.readonly
        def value(self):
            return self.n

        @checkpoint.readonly
        def was_restored(self):
            return self.restored

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    return ray.remote(**RESTARTING)(Counter)


def kill(actor):
    """SIGKILL the actor's process and return when it has ended."""
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])


def snapshots(store, key):
    return [info for info in checkpoint.open(store).verify(key) if info.counts and not info.error]


def the_key(store):
    (key,) = checkpoint.open(store).keys()
    return key


def saved_calls(store, key, calls):
    """Wait until a snapshot that contains at least so many calls is durable."""
    eventually(
        lambda: store.exists() and any(info.calls >= calls for info in snapshots(store, key)),
        f"a snapshot of {calls} calls",
    )


def test_restored_before_the_first_call(store):
    actor = make_counter(store, every=10).options(name="restored").remote(100)
    assert ray.get([actor.incr.remote() for _ in range(50)])[-1] == 150
    ray.get(actor.checkpoint.remote())
    kill(actor)
    # Sent at once, so they wait behind the restore.
    value, incremented, restored = ray.get(
        [actor.value.remote(), actor.incr.remote(), actor.was_restored.remote()]
    )
    assert (incremented, restored) == (151, True)
    # Ray lets a call that it sends again be overtaken.
    assert value == 150 or (os.environ.get("FTRAY_ENGINE") == "ray" and value == 151)


def test_every_n_calls(store):
    actor = make_counter(store, every=10).options(name="every").remote()
    ray.get([actor.incr.remote() for _ in range(25)])
    saved_calls(store, the_key(store), 20)
    kill(actor)
    assert ray.get(actor.value.remote()) in range(20, 26)


def test_readonly_calls_do_not_count(store):
    actor = make_counter(store, every=5).options(name="readonly").remote()
    ray.get([actor.value.remote() for _ in range(50)])
    assert not checkpoint.open(store).keys() or snapshots(store, the_key(store)) == []
    ray.get([actor.incr.remote() for _ in range(5)])
    saved_calls(store, the_key(store), 5)


def test_without_a_snapshot_a_restart_begins_anew(store):
    actor = make_counter(store, every=1000).options(name="anew").remote(7)
    ray.get(actor.incr.remote())
    kill(actor)
    assert ray.get([actor.value.remote(), actor.was_restored.remote()]) == [7, False]


def test_on_demand_from_outside_is_durable_when_it_returns(store):
    actor = make_counter(store, every=None, interval_s=3600).options(name="demand").remote()
    for i in range(1, 4):
        ray.get(actor.incr.remote())
        snapshot = ray.get(actor.checkpoint.remote())
        assert snapshots(store, the_key(store))[-1].id == snapshot
        kill(actor)
        assert ray.get(actor.value.remote()) == i


def test_on_demand_inside_a_method_saves_at_its_end(store):
    actor = make_counter(store, every=1000).options(name="inside").remote()
    assert ray.get(actor.incr_and_save.remote()) == 2
    eventually(lambda: snapshots(store, the_key(store)), "the snapshot")
    kill(actor)
    assert ray.get(actor.value.remote()) == 2


def test_interval(store):
    actor = make_counter(store, interval_s=0.2).options(name="interval").remote()
    ray.get(actor.incr.remote())
    saved_calls(store, the_key(store), 1)
    kill(actor)
    assert ray.get(actor.value.remote()) == 1


@pytest.mark.limit(120)
def test_repeated_kills_never_lose_what_was_saved(store):
    actor = make_counter(store, every=5).options(name="repeated").remote()
    saved = 0
    for _ in range(6):
        before = ray.get(actor.value.remote())
        assert before >= saved
        ray.get([actor.incr.remote() for _ in range(12)])
        ray.get(actor.checkpoint.remote())
        saved = before + 12
        ray.get(actor.incr.remote())
        kill(actor)
    assert ray.get(actor.value.remote()) in (saved, saved + 1)


@pytest.mark.parametrize("how", WAYS_TO_DIE)
def test_every_way_to_die(how, store, tally):
    class Fragile(ray.Checkpointable, store=store, every=1000):
        def __init__(self):
            self.n = 0

        def incr(self):
            self.n += 1
            return self.n

        def die_once(self, how, counter):
            from tests.helpers.processes import crash

            if counter.bump() == 0:
                crash(how)
            return self.n

    actor = ray.remote(**RESTARTING)(Fragile).options(name=f"fragile-{how}").remote()
    ray.get([actor.incr.remote() for _ in range(5)])
    ray.get(actor.checkpoint.remote())
    assert ray.get(actor.die_once.remote(how, tally)) == 5


def test_save_and_load_can_be_overridden(store):
    class Connected(ray.Checkpointable, store=store, every=1000):
        def __init__(self, address):
            self.connection = open(address)  # noqa: SIM115  (cannot be pickled, is made again by __init__)
            self.values = {}

        def save_checkpoint(self):
            return {"values": self.values}

        def load_checkpoint(self, state):
            self.values = {**state["values"], "loaded": not self.connection.closed}

        def set(self, key, value):
            self.values[key] = value

        @checkpoint.readonly
        def get(self):
            return self.values

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    actor = ray.remote(**RESTARTING)(Connected).options(name="connected").remote("/dev/null")
    ray.get(actor.set.remote("a", 1))
    ray.get(actor.checkpoint.remote())
    kill(actor)
    assert ray.get(actor.get.remote()) == {"a": 1, "loaded": True}


def test_getstate_is_respected(store):
    class Lean(ray.Checkpointable, store=store, every=1000):
        def __init__(self):
            self.kept, self.cache = 0, "fresh"

        def __getstate__(self):
            return {"kept": self.kept}

        def work(self):
            self.kept += 1
            self.cache = "used"

        @checkpoint.readonly
        def get(self):
            return self.kept, self.cache

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    actor = ray.remote(**RESTARTING)(Lean).options(name="lean").remote()
    ray.get(actor.work.remote())
    ray.get(actor.checkpoint.remote())
    kill(actor)
    assert ray.get(actor.get.remote()) == (1, "fresh")


def test_large_numpy_state(store):
    class Model(ray.Checkpointable, store=store, every=1000):
        def __init__(self):
            self.weights = np.zeros(1_000_000)

        def train(self, step):
            self.weights += step

        @checkpoint.readonly
        def sum(self):
            return float(self.weights.sum())

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    actor = ray.remote(**RESTARTING)(Model).options(name="model").remote()
    ray.get([actor.train.remote(step) for step in range(5)])
    ray.get(actor.checkpoint.remote())
    kill(actor)
    assert ray.get(actor.sum.remote()) == 10 * 1_000_000
    ray.get(actor.train.remote(1))  # a restored array is writable
    assert ray.get(actor.sum.remote()) == 11 * 1_000_000


@pytest.mark.parametrize("keep", [2, 4])
def test_retention(store, keep):
    actor = make_counter(store, every=None, interval_s=3600, keep=keep).options(name="kept").remote()
    ids = []
    for _ in range(keep + 4):
        ray.get(actor.incr.remote())
        ids.append(ray.get(actor.checkpoint.remote()))
    key = the_key(store)
    eventually(lambda: len(snapshots(store, key)) == keep, f"{keep} snapshots remain")
    assert [info.id for info in snapshots(store, key)] == ids[-keep:]


def test_a_damaged_snapshot_is_passed_over(store):
    actor = make_counter(store, every=None, interval_s=3600).options(name="damaged").remote()
    for _ in range(2):
        ray.get(actor.incr.remote())
        ray.get(actor.checkpoint.remote())
    key = the_key(store)
    files = [path for path in store.rglob("*") if path.is_file() and path.stat().st_size > 200]
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    newest.chmod(0o600)
    newest.write_bytes(data)
    assert len(snapshots(store, key)) == 1
    kill(actor)
    assert ray.get(actor.value.remote()) == 1


def test_a_named_actor_that_is_created_again_resumes(store):
    remote_class = make_counter(store, every=1000)
    actor = remote_class.options(name="phoenix").remote()
    ray.get([actor.incr.remote() for _ in range(9)])
    ray.get(actor.checkpoint.remote())
    end(actor)
    again = eventually(
        lambda: try_to(lambda: remote_class.options(name="phoenix").remote()), "the name is free"
    )
    assert ray.get(again.value.remote()) == 9


def try_to(call):
    try:
        return call()
    except ValueError:
        return None


def test_checkpoint_key_and_restore_modes(store):
    def make(**options):
        return make_counter(store, checkpoint_key="my-key", every=1000, **options).remote()

    first = make()
    ray.get([first.incr.remote() for _ in range(3)])
    ray.get(first.checkpoint.remote())
    assert checkpoint.open(store).keys() == ["my-key"]
    end(first)
    never = make(restore="never")
    assert ray.get(never.value.remote()) == 0
    end(never)
    required = make_counter(store, checkpoint_key="other-key", restore="require").remote()
    with pytest.raises(ray.exceptions.RayActorError, match="other-key"):
        ray.get(required.value.remote())


def end(actor):
    pid = ray.get(actor.pid.remote())
    ray.kill(actor)
    wait_ended([pid])


def test_exit_actor_saves_first(store):
    class Leaver(ray.Checkpointable, store=store, every=1000):
        def __init__(self):
            self.n = 0

        def incr(self):
            self.n += 1
            return self.n

        def leave(self):
            ray.actor.exit_actor()

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    actor = ray.remote(Leaver).options(name="leaver").remote()
    ray.get([actor.incr.remote() for _ in range(4)])
    pid = ray.get(actor.pid.remote())
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.leave.remote())
    wait_ended([pid])
    del actor
    eventually(lambda: try_to(lambda: ray.get_actor("leaver")) is None, "the actor is gone")
    assert checkpoint.open(store).load(the_key(store))["n"] == 4


def test_sigterm_saves_first(store):
    actor = make_counter(store, every=1000).options(name="terminated").remote()
    pid = ray.get(actor.pid.remote())
    ray.get([actor.incr.remote() for _ in range(4)])
    os.kill(pid, signal.SIGTERM)
    wait_ended([pid])
    assert checkpoint.open(store).load(the_key(store))["n"] == 4


def test_snapshots_of_an_unnamed_actor_go_with_it(store):
    actor = make_counter(store, every=1000).remote()
    pid = ray.get(actor.pid.remote())
    ray.get(actor.incr.remote())
    ray.get(actor.checkpoint.remote())
    assert checkpoint.open(store).keys()
    del actor
    wait_ended([pid])
    eventually(lambda: not checkpoint.open(store).keys(), "the snapshots go")


def test_a_saved_state_can_be_read_without_the_actor(store):
    actor = make_counter(store, every=1000).options(name="readable").remote(40)
    ray.get([actor.incr.remote(), actor.incr.remote()])
    ray.get(actor.checkpoint.remote())
    assert checkpoint.open(store).load(the_key(store))["n"] == 42


def test_state_that_cannot_be_saved_is_refused_at_creation(store):
    class Unsavable(ray.Checkpointable, store=store):
        def __init__(self):
            import threading

            self.mutex = threading.Lock()

        def call(self):
            return 1

    actor = ray.remote(Unsavable).options(name="unsavable").remote()
    with pytest.raises(ray.exceptions.RayActorError, match="mutex"):
        ray.get(actor.call.remote())


@pytest.mark.parametrize(
    "options, word",
    [
        ({"every": 0}, "every"),
        ({"every": "often"}, "every"),
        ({"keep": 1}, "keep"),
        ({"interval_s": -1}, "interval_s"),
        ({"restore": "maybe"}, "restore"),
        ({"nonsense": 1}, "nonsense"),
        ({"store": "unknown-scheme://bucket"}, "unknown-scheme"),
    ],
)
def test_wrong_options_raise_where_the_class_is_written(options, word, store):
    with pytest.raises((ValueError, TypeError, checkpoint.CheckpointError), match=word):
        ray.remote(make_class(**{"store": store, **options})).remote()


def make_class(**options):
    class Wrong(ray.Checkpointable, **options):
        pass

    return Wrong


def test_classes_of_the_main_module_keep_their_options(start_driver, tmp_path):
    driver = start_driver(
        """
        import os, signal, sys
        import ftray as ray
        ray.init(num_cpus=2)

        @ray.remote(max_restarts=-1, max_task_retries=-1)
        class Counter(ray.Checkpointable, store=sys.argv[1], every=1):
            def __init__(self):
                self.n = 0
            def incr(self):
                self.n += 1
                return self.n
            @ray.checkpoint.readonly
            def pid(self):
                return os.getpid()

        counter = Counter.options(name="main").remote()
        ray.get([counter.incr.remote() for _ in range(5)])
        ray.get(counter.checkpoint.remote())
        os.kill(ray.get(counter.pid.remote()), signal.SIGKILL)
        tell("next", ray.get(counter.incr.remote()))
        """,
        args=[str(tmp_path / "store")],
    )
    assert driver.expect("next") == 6
    driver.finish()
    driver.check_nothing_left()


@pytest.mark.parametrize(("namespace", "runs"), [("app", 3), (None, 2)])
def test_state_survives_the_whole_runtime(start_driver, tmp_path, namespace, runs):
    """Driver and node are killed; the program that is run again finds the state of its named actor.

    Also if it names no namespace, although its own is another one in each run.
    """
    source = """
        import sys
        import ftray as ray
        ray.init(num_cpus=2, namespace=sys.argv[2] or None)
        @ray.remote
        class Counter(ray.Checkpointable, store=sys.argv[1], every=1000):
            def __init__(self):
                self.n = 0
            def incr(self):
                self.n += 1
                return self.n
        counter = Counter.options(name="durable").remote()
        tell("n", ray.get([counter.incr.remote() for _ in range(10)])[-1])
        ray.get(counter.checkpoint.remote())
        tell("saved")
        await_word()
        """
    for run in range(1, runs + 1):
        driver = start_driver(source, args=[str(tmp_path / "store"), namespace or ""])
        assert driver.expect("n") == 10 * run
        driver.expect("saved")
        driver.signal(signal.SIGKILL)
        driver.finish(-signal.SIGKILL)
        driver.check_nothing_left()


# --- calls beside each other -----------------------------------------------------------------------------


def test_async_actor_is_captured_between_its_coroutines(store):
    class Counter(ray.Checkpointable, store=store, every=5):
        def __init__(self):
            self.n = 0

        async def incr(self):
            self.n += 1
            return self.n

        @checkpoint.readonly
        async def pid(self):
            return os.getpid()

    actor = ray.remote(**RESTARTING)(Counter).remote()
    ray.get([actor.__ray_ready__.remote() for _ in range(20)])  # does not count
    ray.get([actor.incr.remote() for _ in range(4)])
    ray.get(actor.checkpoint.remote())
    before = len(snapshots(store, the_key(store)))
    ray.get([actor.incr.remote() for _ in range(10)])
    eventually(lambda: len(snapshots(store, the_key(store))) > before, "a snapshot after so many calls")
    kill(actor)
    assert 9 <= ray.get(actor.incr.remote()) <= 15


def test_actor_with_concurrency_groups_is_captured_when_no_group_runs(store, mailbox, gate):
    class Counter(ray.Checkpointable, store=store, every=3):
        def __init__(self):
            self.n = 0

        def incr(self):
            self.n += 1
            return self.n

        @ray.method(concurrency_group="io")
        def wait(self, box, door):
            box.post("waits")
            door.wait()
            self.n += 100

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    actor = ray.remote(**RESTARTING, concurrency_groups={"io": 2})(Counter).remote()
    waits = [actor.wait.remote(mailbox, gate) for _ in range(2)]
    assert [mailbox.take(), mailbox.take()] == ["waits", "waits"]
    ray.get([actor.incr.remote() for _ in range(6)])
    assert snapshots(store, the_key(store)) == []  # half of a method's effect is no state
    gate.open()
    ray.get(waits)
    eventually(lambda: snapshots(store, the_key(store)), "a snapshot is taken when the last one ends")
    kill(actor)
    assert ray.get(actor.incr.remote()) == 207
