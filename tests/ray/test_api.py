"""The public API on a Ray cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import ftray
from ftray import exceptions
from ftray.util import ActorPool, state
from ftray.util.queue import Empty, Queue
from ftray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)
from tests.helpers.sync import DEADLINE_S, Gate, Mailbox, Tally, eventually

pytestmark = [pytest.mark.short, pytest.mark.limit(180), pytest.mark.usefixtures("cluster")]
LONG_S = 5 * DEADLINE_S


class Refused(Exception):
    """An exception whose constructor takes more than its text, which plain pickling does not survive."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"refused: {why}")
        self.code = code


@ftray.remote
def add(a: int, b: int = 1) -> int:
    return a + b


@ftray.remote
def refuse(code: int) -> None:
    raise Refused(code, "no")


@ftray.remote(max_restarts=0)
class Counter:
    def __init__(self, start: int = 0) -> None:
        if start < 0:
            raise Refused(start, "below zero")
        self.n = start

    def incr(self, by: int = 1) -> int:
        self.n += by
        return self.n

    def refuse(self) -> None:
        raise Refused(7, "method")

    def own_refusal(self) -> str:
        """Catches what another method raises: methods call each other as they are."""
        try:
            self.refuse()
        except Refused as error:
            return type(error).__name__
        return ""

    @ftray.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return self.n, -self.n

    def upto(self, n: int) -> Iterator[int]:
        yield from range(n)

    def ask(self, other: Any) -> int:
        found: int = ftray.get(other.incr.remote(100))
        return found

    def pid(self) -> int:
        return os.getpid()

    def facts(self) -> dict[str, Any]:
        here = ftray.get_runtime_context()
        return {
            "actor_id": here.get_actor_id(),
            "name": here.get_actor_name(),
            "namespace": here.namespace,
            "again": here.was_current_actor_reconstructed,
            "me": here.current_actor,
        }


# --- tasks and objects ----------------------------------------------------------------------------


def test_tasks_take_and_return_values_and_refs() -> None:
    ref = add.remote(add.remote(1), b=ftray.put(10))

    assert isinstance(ref, ftray.ObjectRef)
    assert ftray.get(ref) == 12
    assert ftray.get([add.remote(i) for i in range(3)]) == [1, 2, 3]
    assert len(ref.binary()) == 28 and len(ref.task_id().binary()) == 24


def test_refs_and_handles_nested_in_arguments_and_values() -> None:
    @ftray.remote
    def inside(box: dict[str, Any]) -> list[Any]:
        assert isinstance(box["ref"], ftray.ObjectRef) and isinstance(box["actor"], ftray.ActorHandle)
        child = add.remote(box["ref"], 5)
        return [child, ftray.get(box["actor"].incr.remote()), box["actor"]]

    counter = Counter.remote(3)
    child, count, same = ftray.get(inside.remote({"ref": ftray.put(1), "actor": counter}))

    assert (ftray.get(child), count, same == counter) == (6, 4, True)


def test_a_closure_holds_refs() -> None:
    ref = ftray.put([1, 2])

    @ftray.remote
    def total() -> int:
        return sum(ftray.get(ref))

    assert ftray.get(total.remote()) == 3


def test_options_of_tasks() -> None:
    @ftray.remote(num_returns=2, num_cpus=0.5)
    def two() -> tuple[str | None, dict[str, float]]:
        here = ftray.get_runtime_context()
        return here.get_task_name(), here.get_assigned_resources()

    name, held = two.options(name="named").remote()

    assert ftray.get(name) == "named"
    assert ftray.get(held)["CPU"] == 0.5
    assert add.options(num_returns=0).remote(1) is None


def test_a_users_exception_arrives_as_itself_and_as_a_task_error() -> None:
    with pytest.raises(Refused, match="refused: no") as caught:
        ftray.get(refuse.remote(5))

    assert isinstance(caught.value, exceptions.RayTaskError)
    assert caught.value.code == 5
    assert isinstance(caught.value.cause, Refused)
    assert "raise Refused" in caught.value.traceback_str and "inside.py" not in caught.value.traceback_str


def test_the_failure_of_an_argument_is_the_failure_of_the_task() -> None:
    with pytest.raises(Refused):
        ftray.get(add.remote(refuse.remote(1)))


def test_retries_of_exceptions(tally: Tally) -> None:
    @ftray.remote(max_retries=2, retry_exceptions=[Refused])
    def third_time(path: str, other: bool) -> int:
        number = Tally(path).bump()
        if other:
            raise KeyError("not in the list")
        if number < 2:
            raise Refused(number, "again")
        return number

    assert ftray.get(third_time.remote(tally.path, False)) == 2
    with pytest.raises(KeyError):
        ftray.get(third_time.remote(tally.path, True))
    assert tally.count == 4


def test_a_worker_that_dies() -> None:
    @ftray.remote(max_retries=0)
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(exceptions.WorkerCrashedError, match="died"):
        ftray.get(die.remote())


def test_generators_stream() -> None:
    @ftray.remote
    def produce(n: int) -> Iterator[int]:
        yield from range(n)
        raise Refused(n, "end")

    stream = produce.remote(2)
    assert isinstance(stream, ftray.ObjectRefGenerator)
    refs = list(stream)

    assert ftray.get(refs[:2]) == [0, 1]
    with pytest.raises(Refused):
        ftray.get(refs[2])
    assert stream.is_finished()
    with pytest.raises(exceptions.SerializationError, match="one consumer"):
        ftray.put(produce.remote(1))


def test_wait_and_time_outs(gate: Gate) -> None:
    @ftray.remote
    def held(gate: Any) -> int:
        gate.wait()
        return 1

    late, soon = held.remote(gate), add.remote(1)
    assert ftray.wait([late, soon], timeout=LONG_S) == ([soon], [late])
    with pytest.raises(exceptions.GetTimeoutError):
        ftray.get(late, timeout=0.01)
    with pytest.raises(ValueError, match="stands in it twice"):
        ftray.wait([soon, soon])
    with pytest.raises(ValueError, match="out of range"):
        ftray.wait([soon], num_returns=2)
    with pytest.raises(ValueError, match="timeout must be"):
        ftray.get(soon, timeout=-1)
    gate.open()
    assert ftray.get(late) == 1


def test_cancel_of_a_running_task(mailbox: Mailbox) -> None:
    @ftray.remote
    def run(box: Any) -> None:
        box.post("runs")
        while True:  # Ray interrupts between two lines, not in a call that blocks
            time.sleep(0.01)

    ref = run.remote(mailbox)
    assert mailbox.take(LONG_S) == "runs"
    ftray.cancel(ref)

    with pytest.raises(exceptions.TaskCancelledError):
        ftray.get(ref, timeout=LONG_S)


def test_futures_and_await() -> None:
    async def both() -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            await refuse.remote(2)
        return await add.remote(1), type(caught.value).__name__

    assert add.remote(4).future().result(LONG_S) == 5
    assert isinstance(refuse.remote(1).future().exception(LONG_S), Refused)
    assert asyncio.run(both()) == (2, "RayTaskError(Refused)")


def test_put_refuses_what_it_cannot_store() -> None:
    ref = ftray.put(1)
    with pytest.raises(TypeError, match="a reference already"):
        ftray.put(ref)
    with pytest.raises(exceptions.SerializationError):
        ftray.put(number for number in range(3))


def test_wrong_arguments_are_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3"):
        add.remote(1, 2, 3)
    counter = Counter.remote()
    with pytest.raises(ValueError, match="call_key='k' was given for Counter.incr: only exactly-once actors"):
        counter.incr.options(call_key="k")
    with pytest.raises(TypeError, match="unexpected keyword argument 'times'"):
        counter.incr.remote(times=2)
    with pytest.raises(AttributeError, match="did you mean 'incr'"):
        counter.inc  # noqa: B018


# --- actors ---------------------------------------------------------------------------------------


def test_actors_keep_state_and_call_each_other() -> None:
    first, second = Counter.remote(5), Counter.remote()

    assert ftray.get([first.incr.remote(), first.incr.remote(4)]) == [6, 10]
    assert ftray.get(second.ask.remote(first)) == 110
    assert ftray.get(first.pair.remote()) == [110, -110]
    assert [ftray.get(ref) for ref in first.upto.remote(3)] == [0, 1, 2]
    assert ftray.get(first.own_refusal.remote()) == "Refused"
    assert ftray.get(first.__ray_call__.remote(lambda self: self.n)) == 110
    with pytest.raises(Refused) as caught:
        ftray.get(first.refuse.remote())
    assert caught.value.function_name == "Counter.refuse"  # type: ignore[attr-defined]


def test_named_actors() -> None:
    made = Counter.options(name="alpha", lifetime="detached").remote(1)
    found = ftray.get_actor("alpha")
    facts = ftray.get(found.facts.remote())

    assert found == made and hash(found) == hash(made)
    assert ftray.get(found.pair.remote()) == [1, -1]
    assert facts == {
        "actor_id": made._actor_id.hex(),
        "name": "alpha",
        "namespace": "tests",
        "again": False,
        "me": made,
    }
    assert Counter.options(name="alpha", get_if_exists=True).remote() == made
    assert "alpha" in ftray.util.list_named_actors()
    with pytest.raises(ValueError, match="alpha"):
        Counter.options(name="alpha").remote()
    with pytest.raises(ValueError, match="no living actor named 'alpha' in namespace 'other'"):
        ftray.get_actor("alpha", "other")
    ftray.kill(found)
    eventually(lambda: is_dead(made), "Ray does not wait for what it kills", timeout_s=LONG_S)


def is_dead(actor: Any) -> bool:
    """Whether a call of the actor says that it died."""
    try:
        ftray.get(actor.incr.remote(), timeout=LONG_S)
    except exceptions.ActorDiedError:
        return True
    return False


def test_why_a_constructor_failed() -> None:
    broken = Counter.remote(-3)

    with pytest.raises(exceptions.ActorDiedError) as caught:
        ftray.get(broken.incr.remote(), timeout=LONG_S)
    assert caught.value.actor_init_failed
    assert isinstance(caught.value.__cause__, Refused)
    assert caught.value.__cause__.code == -3


def test_a_killed_actor_is_restarted() -> None:
    counter = Counter.options(max_restarts=1, max_task_retries=2).remote(1)
    pid = ftray.get(counter.pid.remote())
    os.kill(pid, signal.SIGKILL)

    assert ftray.get(counter.incr.remote(), timeout=LONG_S) == 2
    assert ftray.get(counter.facts.remote())["again"]


def test_asynchronous_actors() -> None:
    @ftray.remote
    class Meeting:
        def __init__(self) -> None:
            self.come = asyncio.Event()

        async def wait(self) -> str:
            await self.come.wait()
            return "met"

        async def arrive(self) -> int:
            self.come.set()
            return await add.remote(1)

        async def upto(self, n: int) -> AsyncIterator[int]:
            for i in range(n):
                yield i

    meeting = Meeting.remote()
    waiting = meeting.wait.remote()

    assert ftray.get(meeting.arrive.remote()) == 2
    assert ftray.get(waiting, timeout=LONG_S) == "met"
    assert [ftray.get(ref) for ref in meeting.upto.remote(2)] == [0, 1]


def test_concurrency_groups(gate: Gate) -> None:
    @ftray.remote(concurrency_groups={"io": 1})
    class Server:
        @ftray.method(concurrency_group="io")
        def held(self, gate: Any) -> str:
            gate.wait()
            return "io"

        def answer(self) -> int:
            return 1

    server = Server.remote()
    with pytest.raises(ValueError, match="concurrency_group='disk' of Server.held does not exist"):
        server.held.options(concurrency_group="disk")
    held = server.held.remote(gate)

    assert ftray.get(server.answer.remote(), timeout=LONG_S) == 1
    gate.open()
    assert ftray.get(held, timeout=LONG_S) == "io"


def test_exit_actor(mailbox: Mailbox) -> None:
    @ftray.remote(max_restarts=-1)
    class Leaver:
        def leave(self) -> None:
            ftray.exit_actor()

    leaver = Leaver.remote()
    with pytest.raises(exceptions.RayActorError):
        ftray.get(leaver.leave.remote(), timeout=LONG_S)
    with pytest.raises(TypeError, match="methods of an actor"):
        ftray.exit_actor()


def test_checkpointed_actors(tmp_path: Path) -> None:
    class Account(ftray.Checkpointable, store=str(tmp_path), every=1):
        def __init__(self) -> None:
            self.n = 0

        def deposit(self, amount: int) -> tuple[int, int]:
            self.n += amount
            return self.n, os.getpid()

    account = ftray.remote(Account).options(name="account", max_restarts=1, max_task_retries=3).remote()
    n, pid = ftray.get(account.deposit.remote(5), timeout=LONG_S)
    ftray.get(account.checkpoint.remote(), timeout=LONG_S)
    os.kill(pid, signal.SIGKILL)

    assert n == 5
    assert ftray.get(account.deposit.remote(1), timeout=LONG_S)[0] == 6
    ftray.kill(account)


# --- around them ----------------------------------------------------------------------------------


def test_pools_and_queues() -> None:
    pool = ActorPool([Counter.remote(10), Counter.remote(20)])
    assert sum(pool.map(lambda actor, by: actor.incr.remote(by), [1, 2])) == 33

    queue = Queue(maxsize=1)
    queue.put("a")
    assert queue.full() and queue.get() == "a"
    with pytest.raises(Empty):
        queue.get_nowait()
    queue.shutdown()


def test_placement_groups() -> None:
    group = ftray.util.placement_group([{"CPU": 1}], strategy="PACK", name="pack")
    assert group.wait(LONG_S)
    here = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    @ftray.remote
    def where() -> Any:
        return ftray.util.get_current_placement_group()

    assert ftray.get(where.options(scheduling_strategy=here).remote()) == group
    assert ftray.get(group.ready()) == group
    assert ftray.util.get_placement_group("pack") == group
    assert ftray.util.placement_group_table(group)["state"] == "CREATED"
    ftray.util.remove_placement_group(group)
    with pytest.raises(ValueError, match="no placement group named 'none'"):
        ftray.util.get_placement_group("none")


def test_strategies() -> None:
    node = ftray.nodes()[0]["NodeID"]

    @ftray.remote
    def where() -> str:
        return ftray.get_runtime_context().get_node_id()

    assert ftray.get(where.options(scheduling_strategy="SPREAD").remote()) == node
    assert (
        ftray.get(
            where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        )
        == node
    )


def test_environments() -> None:
    @ftray.remote(runtime_env={"env_vars": {"FTRAY_TEST_WORD": "set"}})
    def word() -> str | None:
        return os.environ.get("FTRAY_TEST_WORD")

    assert ftray.get(word.remote()) == "set"


def test_states_and_resources() -> None:
    counter = Counter.options(name="seen").remote()
    ftray.get(counter.incr.remote())
    (row,) = state.list_actors(filters=[("name", "=", "seen")])

    assert (row.state, row.class_name, row.ray_namespace) == ("ALIVE", "Counter", "tests")
    assert row.actor_id == counter._actor_id.hex()
    assert [node.state for node in state.list_nodes()] == ["ALIVE"]
    assert [job.status for job in state.list_jobs()] == ["RUNNING"]
    assert ftray.cluster_resources()["CPU"] == 2
    assert ftray.nodes()[0]["Alive"]
    eventually(lambda: [t for t in state.list_tasks(limit=1000) if t.name.endswith("incr")], timeout_s=LONG_S)
    with pytest.raises(
        exceptions.NotSupportedError, match="state of objects is not supported on the engine 'ray'"
    ):
        state.list_objects()


def test_the_key_value_store() -> None:
    from ftray.experimental import internal_kv as kv

    assert kv.put("k1", b"v", namespace="n") is False
    assert kv.put("k1", b"w", overwrite=False, namespace="n") is True
    assert (kv.get("k1", namespace="n"), kv.get("k1")) == (b"v", None)
    assert kv.list_keys("k", namespace="n") == [b"k1"]
    assert kv.delete("k", del_by_prefix=True, namespace="n") == 1
    assert not kv.exists("k1", namespace="n")


def test_facts_of_the_driver() -> None:
    here = ftray.get_runtime_context()

    assert len(here.get_node_id()) == 56 and here.namespace == "tests"
    assert here.get_task_id() is None and here.get_actor_id() is None and here.attempt_number == 0
    with pytest.raises(exceptions.NotSupportedError, match="get_call_id"):
        here.get_call_id()


# --- starting, and what is not there --------------------------------------------------------------


def test_it_runs_once() -> None:
    with pytest.raises(RuntimeError, match="was called before"):
        ftray.init(engine="ray")
    with pytest.raises(RuntimeError, match="runs on the engine 'ray'"):
        ftray.init(engine="native")
    assert ftray.init(engine="ray", ignore_reinit_error=True)["gcs_address"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"local_mode": True}, exceptions.NotSupportedError, r"init\(local_mode=True\)"),
        ({"num_cpus": 1.5}, exceptions.NotSupportedError, r"init\(num_cpus=1.5\)"),
        ({"address": "auto", "num_cpus": 1}, ValueError, "num_cpus cannot be given when attaching"),
        ({"cpus": 1}, TypeError, "does not take 'cpus'"),
        ({"address": 3}, TypeError, "address must be"),
        ({"runtime_env": {"env_var": {}}}, ValueError, "did you mean 'env_vars'"),
    ],
)
def test_arguments_of_init(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ftray.init(engine="ray", **arguments)


def test_versions_of_ray_are_checked() -> None:
    from ftray._ray import starting

    starting.check_version(ray.__version__)
    with pytest.raises(exceptions.NotSupportedError, match=r"Ray 2.9.1 is installed.*supports 2.60"):
        starting.check_version("2.9.1")


def test_every_exception_of_rays_has_one_of_ours() -> None:
    from ftray._ray import errors

    unknown = {
        name
        for name, cls in vars(ray.exceptions).items()
        if isinstance(cls, type)
        and issubclass(cls, ray.exceptions.RayError)
        and hasattr(exceptions, name)
        and cls not in errors._KNOWN
    }
    # The general ones, what this process raises itself, and what never leaves a worker.
    assert unknown == {"RayError", "RayTaskError", "UnserializableException", "AsyncioActorExit"}


def test_ray_code_and_ftray_code_in_one_program() -> None:
    @ray.remote
    def plain(word: str) -> tuple[str, int]:
        return word, ftray.get(add.remote(1))

    assert ray.get(plain.remote("ray")) == ("ray", 2)
