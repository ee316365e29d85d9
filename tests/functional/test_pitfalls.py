"""What is known to go wrong in such runtimes, as far as no other file has it.

Signals and leadership, hangs and the GIL, user code inside pickling, and refs that outlive what protected
them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time

import pytest

import ftray as ray
from tests.helpers import introspection, processes
from tests.helpers.sync import DEADLINE_S, eventually

runtime = pytest.mark.usefixtures("runtime")


@ray.remote
def held(gate, value):
    gate.wait()
    return value


@ray.remote
def triple(x):
    return 3 * x


# --- one thread leads the I/O


class AlarmError(Exception):
    pass


@pytest.fixture
def alarm():
    """``alarm(seconds)``: from then on the main thread is interrupted by AlarmError, once."""

    def ring(signum, frame):
        raise AlarmError

    before = signal.signal(signal.SIGUSR1, ring)
    timers = []

    def after(delay_s):
        timer = threading.Timer(delay_s, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
        timers.append(timer)
        timer.start()

    yield after
    for timer in timers:
        timer.cancel()
        timer.join()
    signal.signal(signal.SIGUSR1, before)


def get_in_thread(ref, into):
    thread = threading.Thread(target=lambda: into.append(ray.get(ref)))
    thread.start()
    return thread


@runtime
@pytest.mark.parametrize("others", [0, 1, 3])
def test_the_main_thread_wakes_for_signals_whoever_leads(gate, alarm, others):
    """Another thread, which waits longer, sleeps in the kernel for all of them."""
    got = []
    ref = held.remote(gate, "late")
    threads = [get_in_thread(ref, got) for _ in range(others)]
    start = time.monotonic()
    alarm(0.2)
    with pytest.raises(AlarmError):
        ray.get(ref)
    assert time.monotonic() - start < 20, "the alarm did not wake it"
    gate.open()
    assert ray.get(ref) == "late"
    for thread in threads:
        thread.join(DEADLINE_S)
    assert got == ["late"] * others


@runtime
def test_a_leader_that_leaves_promotes_another(tmp_path):
    """Each of several waiting threads is answered, in any order, although who did the I/O is gone."""
    from tests.helpers.sync import Gate

    gates = [Gate(tmp_path / f"gate{i}") for i in range(4)]
    got = []
    waiting = [get_in_thread(held.options(num_cpus=0).remote(gate, i), got) for i, gate in enumerate(gates)]
    for i in (0, 3, 1, 2):
        gates[i].open()
        waiting[i].join(DEADLINE_S)
        assert got[-1] == i
    assert ray.get(triple.remote(2)) == 6


@runtime
def test_threads_submit_get_and_put_while_others_hold_the_gil():
    """Nobody waits for the core's lock with the GIL held, or for the GIL under the lock."""
    stop = threading.Event()
    wrong = []

    def compute():
        while not stop.is_set():
            sum(range(1000))

    def use(base):
        try:
            for i in range(100):
                refs = [triple.remote(base + j) for j in range(5)]
                kept = ray.put(base + i)
                assert ray.get(refs) == [3 * (base + j) for j in range(5)]
                assert ray.get(kept) == base + i
        except BaseException as error:
            wrong.append(error)

    busy = [threading.Thread(target=compute) for _ in range(2)]
    users = [threading.Thread(target=use, args=(1000 * n,)) for n in range(6)]
    for thread in busy + users:
        thread.start()
    for thread in users:
        thread.join(50)
    stop.set()
    for thread in busy:
        thread.join()
    assert wrong == [] and not any(thread.is_alive() for thread in users)


# --- user code runs under no lock


class Nosy:
    """Uses the runtime while it is pickled and while it is unpickled."""

    def __init__(self, value):
        self.value = value

    def __getstate__(self):
        return ray.put(self.value)

    def __setstate__(self, ref):
        self.value = ray.get(ref)

    def __del__(self):
        if ray.is_initialized():
            ray.put("last words")


@ray.remote
def through(x):
    gc.collect()
    return x


@runtime
@pytest.mark.parametrize("size", [10, 300_000], ids=["inline", "shared memory"])
def test_pickling_and_unpickling_may_call_the_runtime(size):
    value = b"v" * size
    assert ray.get(ray.put(Nosy(value))).value == value
    refs = [through.remote(Nosy(value)) for _ in range(20)]
    assert [result.value for result in ray.get(refs)] == [value] * 20


class GetsItsTask:
    """Unpickling it on the driver needs the driver's own I/O."""

    def __reduce__(self):
        return remote_constant, ()


def remote_constant():
    return ray.get(triple.remote(14))


@runtime
def test_unpickling_a_result_may_run_a_task():
    @ray.remote
    def make():
        return [GetsItsTask()]

    assert ray.get(make.remote()) == [42]


# --- liveness

HANG = """
import ctypes, os, sys, time
import ftray as ray
ray.init(num_cpus=2)

@ray.remote(max_retries=0)
def pid_then(what, box):
    box.post(os.getpid())
    if what == "hold the GIL":
        ctypes.PyDLL(None).usleep(4_000_000)
    if what == "compute":
        end = time.monotonic() + 4
        while time.monotonic() < end:
            pass
    return os.getpid()

@ray.remote(max_restarts=1, max_task_retries=0)
class Actor:
    def pid_then(self, what, box):
        box.post(os.getpid())
        if what == "hold the GIL":
            ctypes.PyDLL(None).usleep(4_000_000)
        return os.getpid()
"""


@pytest.fixture
def impatient(start_driver):
    """A driver whose node waits one second for a sign of life that is due."""
    return lambda source: start_driver(HANG + source, env={"FTRAY_HANG_TIMEOUT_S": "1"})


SENDER = "\nfrom tests.helpers.sync import Sender\nbox = Sender({path!r})\n"


def test_a_stopped_worker_is_killed_as_hung(impatient, mailbox):
    driver = impatient(
        SENDER.format(path=mailbox.path)
        + """
try:
    import signal
    @ray.remote(max_retries=0)
    def stop_myself(box):
        box.post(os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
    ray.get(stop_myself.remote(box), timeout=20)
except Exception as error:
    tell("error", [type(error).__name__, str(error)])
tell("alive", ray.get(pid_then.remote("", box)))
ray.shutdown()
"""
    )
    pid = mailbox.take()
    name, text = driver.expect("error")
    assert name == "WorkerCrashedError" and str(pid) in text
    assert any(word in text for word in ("hung", "heartbeat", "hang")), text
    processes.wait_ended([pid])
    assert driver.expect("alive") != pid
    driver.finish()


def test_a_stopped_actor_is_killed_as_hung_and_restarted(impatient, mailbox):
    driver = impatient(
        SENDER.format(path=mailbox.path)
        + """
actor = Actor.remote()
first = ray.get(actor.pid_then.remote("", box))
tell("first", first)
await_word()
second = None
while second is None:
    try:
        second = ray.get(actor.pid_then.remote("", box), timeout=20)
    except ray.exceptions.ActorUnavailableError:
        pass
tell("second", second)
ray.shutdown()
"""
    )
    first = driver.expect("first")
    processes.send_signal(first, signal.SIGSTOP)
    driver.say("stopped")
    assert driver.expect("second") != first
    driver.finish()


def test_workers_that_hold_the_gil_for_long_are_alive(impatient, mailbox):
    """Twice as long as a silence may last; a thread without the GIL beats meanwhile."""
    driver = impatient(
        SENDER.format(path=mailbox.path)
        + """
actor = Actor.remote()
calls = [pid_then.remote("hold the GIL", box), pid_then.remote("compute", box)]
tell("pids", ray.get([*calls, actor.pid_then.remote("hold the GIL", box)]))
ray.shutdown()
"""
    )
    began = {mailbox.take() for _ in range(3)}
    assert len(began) == 3 and set(driver.expect("pids")) == began
    driver.finish()


# --- refs whose protection went away


@ray.remote
def give_back(gate, refs):
    gate.wait()
    return refs


@ray.remote
class Asker:
    def ask(self, refs):
        """Ask for a value and lose interest before it is there."""
        try:
            ray.get(refs[0], timeout=0.1)
        except ray.exceptions.GetTimeoutError:
            return "not yet"
        return "there"

    def ping(self):
        return "pong"


@runtime
def test_refs_inside_a_value_that_nobody_waits_for_any_more_are_given_back(gate):
    """The asker has gone on when the value comes; the refs inside were registered in its name."""
    asker = Asker.remote()
    inner = ray.put(b"x" * 500_000)
    outer = give_back.remote(gate, [inner])
    assert ray.get(asker.ask.remote([outer])) == "not yet"
    gate.open()
    assert len(ray.get(outer)) == 1
    assert ray.get(asker.ping.remote()) == "pong"
    del inner, outer
    gc.collect()
    eventually(lambda: introspection.counters()["blocks"] == 0, "the large object is freed", 5)
    assert ray.get(asker.ping.remote()) == "pong"  # it lives: its death would have freed them


OWNER_FORGOT = """
import os, sys
import ftray as ray
from tests.helpers.sync import Sender, Waiter
ray.init(num_cpus=2)
box, gate = Sender(sys.argv[1]), Waiter(sys.argv[2])

@ray.remote(max_concurrency=2)
class Owner:
    def begin(self, relay, keeper, me):
        return ray.get(relay.relay.remote([ray.put("x")], keeper, me))
    def read(self, refs):
        return ray.get(refs[0])
    def ping(self):
        return "pong"

@ray.remote
class Relay:
    def pid(self):
        return os.getpid()
    def relay(self, refs, keeper, owner):
        self.kept = refs, keeper.keep.remote(refs, owner)

@ray.remote
class Keeper:
    def keep(self, refs, owner):
        box.post("running")
        gate.wait()
        try:
            box.post(ray.get(owner.read.remote(refs), timeout=8))
        except Exception as error:
            box.post(type(error).__mro__[1].__name__ + " " + type(error).__name__)

owner, relay, keeper = Owner.remote(), Relay.remote(), Keeper.remote()
pid = ray.get(relay.pid.remote())
ray.get(owner.begin.remote(relay, keeper, owner))
tell("relay", pid)
await_word()
tell("owner", ray.get(owner.ping.remote()))
await_word()
ray.shutdown()
"""


def test_a_ref_that_comes_back_to_an_owner_who_forgot_it_is_lost_and_not_waited_for(
    start_driver, mailbox, gate
):
    """The only borrower that the owner knew died in the middle of handing the ref on."""
    driver = start_driver(OWNER_FORGOT, args=[mailbox.path, gate.path])
    relay = driver.expect("relay")
    assert mailbox.take() == "running"
    processes.end(relay)
    driver.say("go on")
    assert driver.expect("owner") == "pong"
    gate.open()
    answer = mailbox.take()
    # "x" is no error: then the owner had not heard of the death yet when the ref came.
    assert answer == "x" or "ObjectLostError" in answer
    driver.say("stop")
    driver.finish()


@ray.remote
class Lender:
    """Owns an object that it has handed to a relay."""

    def begin(self, relay, keeper, gate, box):
        ray.get(relay.pending.remote())  # this channel is made first, so it is looked at first
        lent = ray.put("lent")
        self.other = keeper.wait_for.remote(gate, box)
        ray.get(relay.hand_on.remote([lent], keeper))
        return os.getpid()

    def ping(self):
        return "pong"


@ray.remote
class Relay:
    """Hands refs on, and holds them only until that call has ended."""

    def hand_on(self, refs, keeper):
        keeper.keep.remote(refs)

    def pending(self):
        from ftray import _core

        return _core.debug_counters()["pending_tasks"]


@ray.remote(max_concurrency=4)
class Keeper:
    def __init__(self, gate, box):
        self.gate, self.box, self.waiting = gate, box, 0

    def wait_for(self, gate, box):
        self.waiting += 1
        box.post("waiting")
        gate.wait()
        self.waiting -= 1

    def how_many_wait(self):
        return self.waiting

    def keep(self, refs):
        self.kept = refs
        self.box.post("keeping")
        self.gate.wait()

    def use(self):
        return ray.get(self.kept[0])


@runtime
def test_a_borrow_is_known_to_the_owner_before_its_relay_lets_go(tmp_path, mailbox, gate):
    """Two calls run beside each other in the borrower: one for the owner, the other brought the ref.

    The owner stands still while first one and then the other ends, and then hears the relay first: that it
    is done with the object. By then the owner must know that the keeper has it.
    """
    from tests.helpers.sync import Gate

    second = Gate(tmp_path / "second")
    relay, keeper, lender = Relay.remote(), Keeper.remote(second, mailbox), Lender.remote()
    pid = ray.get(lender.begin.remote(relay, keeper, gate, mailbox))
    assert {mailbox.take(), mailbox.take()} == {"waiting", "keeping"}
    assert ray.get(lender.ping.remote()) == "pong"
    os.kill(pid, signal.SIGSTOP)
    try:
        gate.open()
        eventually(lambda: ray.get(keeper.how_many_wait.remote()) == 0)
        second.open()
        # Either the relay has let go by now, or (rightly) it cannot before the owner has answered the keeper.
        with contextlib.suppress(TimeoutError):
            eventually(lambda: ray.get(relay.pending.remote()) == 0, timeout_s=1)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ray.get(lender.ping.remote()) == "pong"
    assert ray.get(keeper.use.remote()) == "lent"


def test_the_children_of_a_driver_are_left_to_it(start_driver):
    """Only ftrayd reaps what it has not started; a driver's own children keep their exit status for it."""
    driver = start_driver(
        """
        import os, subprocess, sys
        import ftray as ray
        own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
        os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
        ray.init(num_cpus=1)
        @ray.remote(max_retries=0)
        def end():
            os._exit(1)
        try:
            ray.get(end.remote())
        except ray.exceptions.WorkerCrashedError:
            tell("crashed")
        ray.shutdown()
        tell("status", own.wait())
        """
    )
    driver.expect("crashed")
    assert driver.expect("status") == 7
    driver.finish()
