"""Rules of docs/exactly-once.md under the real runtime; each test names its rule."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading

import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint.releases import NO_CEILING
from tests.helpers.processes import wait_ended
from tests.helpers.sync import Gate, eventually

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def make_book(store, **options):
    """An exactly-once actor that counts, calls others, and tells what its ledger has."""

    class Book(ray.Checkpointable, exactly_once=True, store=store, **options):
        def __init__(self, other=None):
            self.n = 0
            self.other = other  # a name: a handle is no state

        def add(self, k=1):
            self.n += k
            return self.n

        def echo(self, value):
            self.n += 1
            return value

        def add_there(self, k=1):
            self.n += 1
            return ray.get(ray.get_actor(self.other).add.remote(k))

        def call_back(self, name):
            self.n += 1
            return ray.get(ray.get_actor(name).add.remote())

        def go_round(self, own):
            self.n += 1
            return ray.get(ray.get_actor(self.other).call_back.remote(own))

        @checkpoint.readonly
        def value(self):
            return self.n

        @checkpoint.readonly
        def ledger(self):
            from ftray.checkpoint import actor

            return actor.sessions[id(self)].exactly_once.ledger.counters()

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    return ray.remote(Book)


def test_r12_r17_replies_and_reads_wait_while_the_disk_does_not_answer(store, mailbox):
    class Stalls(ray.Checkpointable, exactly_once=True, store=store, durability="power"):
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n

        @checkpoint.readonly
        def value(self):
            return self.n

        @checkpoint.readonly
        def stall(self):
            self.journal().inject("file.journal.synced", "stall")

        @checkpoint.readonly
        def tell(self, mailbox):
            mailbox.post([self.n, self.journal().wait_stalled(60)])

        @checkpoint.readonly
        def let_go(self):
            self.journal().release()

        def journal(self):
            return checkpoint.actor.sessions[id(self)].exactly_once.journal

    actor = ray.remote(Stalls).remote()
    assert ray.get(actor.add.remote()) == 1
    ray.get(actor.stall.remote())
    refs = [actor.add.remote(), actor.value.remote()]
    actor.tell.remote(mailbox)
    assert mailbox.take(60) == [2, True], "both have run"
    assert not ray.wait(refs, timeout=0.3)[0]
    actor.let_go.remote()
    assert ray.get(refs, timeout=60) == [2, 2]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", ["add", "add_later"])
def test_what_is_no_reply_is_a_crash(store, tally, error, method):
    class Shaky(ray.Checkpointable, exactly_once=True, store=store):
        def __init__(self):
            self.n = 0

        def add(self, tally):
            self.n += 1
            if tally.bump() < 2:
                raise error("not a reply")
            return self.n

    class Later(Shaky):
        async def add_later(self, tally):
            return self.add(tally)

    actor = ray.remote(Later if method == "add_later" else Shaky).remote()
    assert ray.get(getattr(actor, method).remote(tally), timeout=60) == 1, "nothing of the first two stayed"
    assert tally.count == 3


def test_what_was_awaited_at_the_same_time_ends_in_the_same_order_again(store, mailbox, gate):
    class Gathers(ray.Checkpointable, exactly_once=True, store=store):
        def __init__(self):
            self.order = []

        async def gather(self, refs, mailbox):
            async def one(place, ref):
                self.order.append(f"{place}: {await ref}")
                mailbox.post(self.order)

            await asyncio.gather(*[one(place, ref) for place, ref in enumerate(refs)])
            return self.order

        @checkpoint.readonly
        async def pid(self):
            return os.getpid()

    @ray.remote
    def say(word, gate=None):
        if gate is not None:
            gate.wait()
        return word

    actor = ray.remote(Gathers).remote()
    pid = ray.get(actor.pid.remote())
    ref = actor.gather.remote([say.remote("first", gate), say.remote("second")], mailbox)
    assert mailbox.take(60) == ["1: second"]
    gate.open()
    assert ray.get(ref, timeout=60) == ["1: second", "0: first"]
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    assert ray.get(actor.pid.remote(), timeout=60) != pid, "it was run again, with the same reply"


def test_what_no_journal_can_put_in_order_is_refused_inside_of_methods(store):
    class Asks(ray.Checkpointable, exactly_once=True, store=store):
        def __init__(self):
            self.n = 0

        def ask(self, what):
            self.n += 1
            if what == "stream":
                return list(several.options(num_returns="streaming").remote())
            return several.options(num_returns=1).remote().future().result()

    @ray.remote
    def several():
        yield 1

    actor = ray.remote(Asks).remote()
    for what, said in (("stream", 'num_returns="streaming"'), ("future", "ref.future()")):
        with pytest.raises(ray.exceptions.NotSupportedError, match=re.escape(said)):
            ray.get(actor.ask.remote(what), timeout=60)


@pytest.mark.parametrize("what", ["task", "call", "actor"])
def test_r27_nothing_leaves_a_method_before_its_start_is_durable(store, mailbox, tally, what):
    @ray.remote
    def bump(tally):
        return tally.bump()

    @ray.remote
    class Bumps:
        def __init__(self, tally=None):
            self.first = None if tally is None else tally.bump()

        def bump(self, tally):
            return tally.bump()

        def value(self):
            return self.first

    class Sends(ray.Checkpointable, exactly_once=True, store=store, durability="power"):
        def __init__(self):
            self.n = 0

        def send(self, what, other, tally, mailbox):
            journal = checkpoint.actor.sessions[id(self)].exactly_once.journal
            journal.inject("file.journal.synced", "stall")

            def watch():
                mailbox.post([journal.wait_stalled(60), tally.count])
                journal.release()

            threading.Thread(target=watch).start()
            if what == "task":
                return ray.get(bump.remote(tally))
            if what == "call":
                return ray.get(other.bump.remote(tally))
            return ray.get(Bumps.remote(tally).value.remote())

        @checkpoint.readonly
        def value(self):
            return self.n

    actor, other = ray.remote(Sends).remote(), Bumps.remote()
    assert ray.get([actor.value.remote(), other.value.remote()], timeout=60) == [0, None]
    ref = actor.send.remote(what, other, tally, mailbox)
    assert mailbox.take(60) == [True, 0], "the disk does not answer, so nobody else has heard anything"
    assert ray.get(ref, timeout=60) == 0


def test_r27_a_kill_leaves_a_method_after_its_start_and_once(store, mailbox):
    class Kills(ray.Checkpointable, exactly_once=True, store=store, durability="power"):
        def __init__(self):
            self.n = 0

        def kill(self, other, pid, mailbox):
            self.n += 1
            journal = checkpoint.actor.sessions[id(self)].exactly_once.journal
            if journal is not None:  # else it is run again by a recovery
                journal.inject("file.journal.synced", "stall")

                def watch():
                    mailbox.post([journal.wait_stalled(60), os.path.exists(f"/proc/{pid}")])
                    journal.release()

                threading.Thread(target=watch).start()
            ray.kill(other, no_restart=False)
            if journal is not None:
                eventually(lambda: not os.path.exists(f"/proc/{pid}"))
            return self.n

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    other = make_book(store, checkpoint_key="other").remote()
    actor = ray.remote(Kills).remote()
    own, its = ray.get([actor.pid.remote(), other.pid.remote()], timeout=60)
    assert ray.get(actor.kill.remote(other, its, mailbox), timeout=60) == 1
    assert mailbox.take(60) == [True, True], "it lived while the disk did not answer"
    its = ray.get(other.pid.remote(), timeout=60)
    os.kill(own, signal.SIGKILL)
    wait_ended([own])
    assert ray.get(actor.pid.remote(), timeout=60) != own
    assert ray.get(other.pid.remote(), timeout=60) == its, "nobody has killed it again"


def test_r27_a_cancel_leaves_a_method_after_its_start(store, mailbox, tally, gate):
    @ray.remote
    def holds(mailbox, tally, gate):
        try:
            mailbox.post("holds")
            gate.wait()
        finally:
            tally.bump()

    class Cancels(ray.Checkpointable, exactly_once=True, store=store, durability="power"):
        def cancel(self, refs, mailbox, tally):
            journal = checkpoint.actor.sessions[id(self)].exactly_once.journal
            journal.inject("file.journal.synced", "stall")

            def watch():
                mailbox.post([journal.wait_stalled(60), tally.count])
                journal.release()

            threading.Thread(target=watch).start()
            ray.cancel(refs[0])
            eventually(lambda: tally.count)

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    actor = ray.remote(Cancels).remote()
    assert ray.get(actor.pid.remote(), timeout=60)
    ref = holds.remote(mailbox, tally, gate)
    assert mailbox.take(60) == "holds"
    done = actor.cancel.remote([ref], mailbox, tally)
    assert mailbox.take(60) == [True, 0], "it went on while the disk did not answer"
    ray.get(done, timeout=60)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=60)


def test_calls_of_a_thread_are_forgotten_when_it_has_their_replies(store):
    """Nobody executes it again: what it acknowledges need not wait for the end of the session."""
    book = make_book(store).remote()
    replies = []
    thread = threading.Thread(target=lambda: replies.extend(ray.get(book.add.remote()) for _ in range(50)))
    thread.start()
    thread.join(60)
    assert replies == list(range(1, 51))
    assert ray.get(book.ledger.remote())["calls"] == 1, "the last one, which nobody has acknowledged"


def test_r33_what_a_method_has_called_is_released_when_its_record_is_durable(store):
    book = make_book(store)
    there = book.options(name="there-1").remote()
    here = book.options(name="here-1").remote("there-1")
    assert [ray.get(here.add_there.remote()) for _ in range(5)] == [1, 2, 3, 4, 5]
    eventually(lambda: ray.get(there.ledger.remote())["callers"] == 0)
    assert ray.get(there.ledger.remote())["released"] == 0, "nobody was executed twice: no name need stay"


def test_r33_and_not_before(store, mailbox):
    there = make_book(store).options(name="there-9").remote()

    class Holds(ray.Checkpointable, exactly_once=True, store=store):
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n

        def add_there_and_hold(self, mailbox):
            got = ray.get(ray.get_actor("there-9").add.remote())
            checkpoint.actor.sessions[id(self)].exactly_once.releases.set_ceiling(0)  # none is durable
            mailbox.post("ends")
            return got

        @checkpoint.readonly
        def let_go(self):
            checkpoint.actor.sessions[id(self)].exactly_once.releases.set_ceiling(NO_CEILING)

    here = ray.remote(Holds).remote()
    assert ray.get(here.add.remote(), timeout=60) == 1, "nothing is held for a first snapshot any more"
    ref = here.add_there_and_hold.remote(mailbox)
    assert mailbox.take(60) == "ends"
    assert not ray.wait([ref], timeout=0.3)[0]  # reports of what is over take some 20 ms
    assert ray.get(there.ledger.remote())["callers"] == 1
    here.let_go.remote()
    assert ray.get(ref, timeout=60) == 1
    eventually(lambda: ray.get(there.ledger.remote())["callers"] == 0)


def test_r37_a_call_says_what_is_known_when_it_is_sent_again(store, tmp_path, mailbox, tally):
    """Both calls are made when nothing is known. The first is answered, and the second is sent again."""
    gates = [Gate(tmp_path / f"gate-{i}") for i in range(2)]

    class Opens(ray.Checkpointable, exactly_once=True, store=store):
        def __init__(self, tally, mailbox, gates):
            self.n = 0
            number = tally.bump()
            mailbox.post(f"opens {number}")
            gates[number].wait()

        def add(self):
            self.n += 1
            return self.n

        def add_and_stay(self, mailbox, path):
            if not os.path.exists(path):
                open(path, "w").close()
                mailbox.post(os.getpid())
                signal.pause()
            return self.add()

    actor = ray.remote(Opens).options(name="opens").remote(tally, mailbox, gates)
    assert mailbox.take(60) == "opens 0"
    first, second = actor.add.remote(), actor.add_and_stay.remote(mailbox, str(tmp_path / "was here"))
    gates[0].open()
    assert ray.get(first, timeout=60) == 1
    os.kill(mailbox.take(60), signal.SIGKILL)
    assert mailbox.take(60) == "opens 1"
    (snapshot,) = [info.id for info in checkpoint.open(store).list("/opens")]
    assert checkpoint.restore(store, "/opens", snapshot).history_number == 2
    gates[1].open()
    with pytest.raises(checkpoint.CheckpointRolledBackError):
        ray.get(second, timeout=60)


def test_r32_a_method_acknowledges_nothing_that_it_may_ask_for_again(store, tmp_path):
    there = make_book(store, reply_bound_calls=4).options(name="there-2").remote()
    inside, go = tmp_path / "inside", tmp_path / "go"

    class Asks(ray.Checkpointable, exactly_once=True, store=store):
        def __init__(self):
            self.n = 0

        def twice(self, there, inside, go):
            first = there.add.remote()
            ray.wait([first])
            second = ray.get(there.add.remote())  # a call that could acknowledge the first one
            if not os.path.exists(inside):
                open(inside, "w").close()
                eventually(lambda: os.path.exists(go))
                os.kill(os.getpid(), signal.SIGKILL)
            return ray.get(first), second

    actor = ray.remote(Asks).remote()
    ref = actor.twice.remote(there, str(inside), str(go))
    eventually(inside.exists)
    for i in range(10):  # replies that may be dropped fill the bound
        ray.get(there.add.options(call_key=f"order-{i}").remote())
    go.touch()
    assert ray.get(ref, timeout=60) == (1, 2)
    assert ray.get(there.value.remote()) == 12


def test_handles_that_a_method_looks_up_are_recorded(store):
    book = make_book(store)
    there = book.options(name="there-3").remote()
    here = book.options(name="here-3").remote("there-3")
    assert ray.get(here.add_there.remote()) == 1
    pid = ray.get(here.pid.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    assert ray.get(here.add_there.remote(), timeout=60) == 2
    assert ray.get(there.value.remote()) == 2


def test_r41_a_call_that_comes_back_fails_and_does_not_wait_for_ever(store):
    book = make_book(store)
    there = book.options(name="there-4").remote()
    here = book.options(name="here-4").remote("there-4")
    with pytest.raises(checkpoint.CallCycleError):
        ray.get(here.go_round.remote("here-4"), timeout=60)
    assert ray.get(here.add.remote(), timeout=60) == 2
    assert ray.get(there.value.remote()) == 1


def test_r43_a_caller_with_more_calls_than_the_bound_is_asked_for_acknowledgements(store):
    actor = make_book(store, reply_bound_calls=4).remote()
    assert ray.get([actor.add.remote() for _ in range(200)], timeout=60) == list(range(1, 201))


def test_r43_by_bytes_and_with_the_power_waited_for(store):
    actor = make_book(store, reply_bound_bytes=10_000, durability="power").remote()
    sizes = [len(reply) for reply in ray.get([actor.echo.remote(bytes(3000)) for _ in range(40)], timeout=60)]
    assert sizes == [3000] * 40


def test_tasks_that_called_are_released_and_their_callee_stays_right(store):
    actor = make_book(store).remote()

    @ray.remote
    def adds(actor, k):
        return ray.get(actor.add.remote(k))

    assert sorted(ray.get([adds.remote(actor, 1) for _ in range(4)])) == [1, 2, 3, 4]
    eventually(lambda: ray.get(actor.ledger.remote())["callers"] == 0)


def test_a_method_that_died_in_the_middle_is_run_again_and_its_call_is_not(store, tmp_path):
    book = make_book(store)
    there = book.options(name="there-8").remote()
    mark = tmp_path / "died"

    class Dying(ray.Checkpointable, exactly_once=True, store=store):
        def __init__(self, other, mark):
            self.other, self.mark = other, mark

        def once(self):
            got = ray.get(ray.get_actor(self.other).add.remote())
            if not os.path.exists(self.mark):
                open(self.mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return got

    actor = ray.remote(Dying).remote("there-8", str(mark))
    assert ray.get(actor.once.remote(), timeout=60) == 1
    assert ray.get(there.value.remote()) == 1


def test_refusals_are_told_by_their_own_errors(store):
    actor = make_book(store).remote()
    named = actor.add.options(call_key="order-1")
    assert ray.get(named.remote(5)) == 5
    with pytest.raises(checkpoint.CallMismatchError):
        ray.get(named.remote(6))
    assert ray.get(actor.value.remote()) == 5


def test_reads_and_calls_go_on_after_a_crash(store):
    actor = make_book(store).remote()
    assert ray.get(actor.add.remote()) == 1
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    assert ray.get(actor.value.remote()) == 1 and ray.get(actor.add.remote()) == 2


JOB = """
import sys
import ftray as ray
from ftray import checkpoint

class Count(ray.Checkpointable, exactly_once=True, store=sys.argv[1], checkpoint_key="count"):
    def __init__(self):
        self.n = 0
    def add(self):
        self.n += 1
        return self.n
    @checkpoint.readonly
    def callers(self):
        from ftray.checkpoint import actor
        return actor.sessions[id(self)].exactly_once.ledger.counters()["callers"]

class Other(Count, checkpoint_key="other"):
    pass

@ray.remote
def adds(actor):
    return ray.get(actor.add.remote())

ray.init(num_cpus=2, job_key="nightly", log_to_driver=False)
actor = ray.remote(Count).remote()
other = ray.remote(Other).remote()
got = ray.get(adds.remote(actor))
ray.get([adds.remote(other) for _ in range(20)])   # their reports have gone through the same processes
tell("got", got)
tell("callers", ray.get(actor.callers.remote()))
"""


def test_r7_tasks_of_a_job_key_are_not_released_because_they_are_made_again(store, start_driver):
    for _ in range(2):
        driver = start_driver(JOB, args=[str(store)])
        assert driver.expect("got", timeout_s=60) == 1
        assert driver.expect("callers", timeout_s=60) == 1
        driver.finish()
