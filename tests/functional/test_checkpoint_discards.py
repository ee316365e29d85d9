"""Checkpoints of unnamed actors go with them, however they and their session end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.drivers import Driver
from tests.helpers.processes import is_running, parent_of, wait_ended
from tests.helpers.sync import Gate, Mailbox, eventually


def make(store: object, **options: Any) -> Any:
    @ray.remote
    class Counter(ray.Checkpointable, store=str(store), **options):
        def __init__(self) -> None:
            self.n = 0

        def incr(self) -> int:
            self.n += 1
            return self.n

        def pid(self) -> int:
            return os.getpid()

        def leave(self) -> None:
            ray.actor.exit_actor()

        def stop_at(self, mailbox: Mailbox, gate: Gate) -> None:
            mailbox.post(os.getpid())
            gate.wait()

    return Counter


def keys(store: object) -> list[str]:
    return checkpoint.open(str(store)).keys()


def saved(store: object, exactly_once: bool = False, **options: Any) -> Any:
    """Return an unnamed actor that has a snapshot."""
    actor = make(store, exactly_once=exactly_once).options(**options).remote()
    assert ray.get(actor.incr.remote()) == 1
    ray.get(actor.checkpoint.remote())
    assert len(keys(store)) == 1
    return actor


def require_gone(store: object) -> None:
    eventually(lambda: not keys(store), "the key to go with its actor")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.usefixtures("runtime")
class TestActorsThatEnd:
    @pytest.mark.parametrize("exactly_once", [False, True])
    def test_killed_for_good(self, exactly_once: bool, store: Path) -> None:
        ray.kill(saved(store, exactly_once))
        require_gone(store)

    def test_killed_and_restarted_keeps_its_state(self, store: Path) -> None:
        actor = saved(store, max_restarts=1, max_task_retries=1)
        ray.kill(actor, no_restart=False)
        assert ray.get(actor.incr.remote()) == 2
        assert len(keys(store)) == 1
        os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
        require_gone(store)  # its restarts are used up

    def test_exit_actor(self, store: Path) -> None:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(saved(store).leave.remote())
        require_gone(store)

    def test_out_of_scope_while_it_has_no_process(self, store: Path) -> None:
        """The last handle goes while a restart waits for its turn, or just after: whoever comes removes."""
        actor = saved(store, max_restarts=-1)
        pid = ray.get(actor.pid.remote())
        os.kill(pid, signal.SIGKILL)
        del actor
        wait_ended([pid])
        require_gone(store)

    def test_killed_in_the_middle_of_a_call(self, store: Path, mailbox: Mailbox, gate: Gate) -> None:
        actor = saved(store)
        ref = actor.stop_at.remote(mailbox, gate)
        mailbox.take()
        ray.kill(actor)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(ref)
        require_gone(store)

    def test_the_actors_of_a_task_that_dies(self, store: Path, mailbox: Mailbox, gate: Gate) -> None:
        Counter = make(store, every=1)

        @ray.remote(max_retries=0)
        def owner() -> None:
            actor = Counter.remote()
            ray.get(actor.checkpoint.remote())
            mailbox.post(os.getpid())
            gate.wait()

        ref = owner.remote()
        os.kill(mailbox.take(), signal.SIGKILL)
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(ref)
        require_gone(store)

    def test_what_others_can_ask_for_stays(self, store: Path) -> None:
        named = make(store / "named").options(name="stays").remote()
        keyed = make(store / "keyed", checkpoint_key="stays").remote()
        for actor in (named, keyed):
            ray.get(actor.checkpoint.remote())
            pid = ray.get(actor.pid.remote())
            ray.kill(actor)
            wait_ended([pid])
        ray.kill(saved(store / "own"))
        require_gone(store / "own")  # asked for later
        assert (keys(store / "named"), keys(store / "keyed")) == (["/stays"], ["stays"])

    def test_a_key_that_somebody_took_over_is_theirs(self, store: Path) -> None:
        actor = saved(store, exactly_once=True)
        (key,) = keys(store)
        snapshot = checkpoint.open(store).describe(key).snapshots[-1].id
        pid = ray.get(actor.pid.remote())
        checkpoint.restore(store, key, snapshot, takeover=True)
        ray.kill(actor)
        wait_ended([pid])
        ray.kill(saved(store.parent / "later"))
        require_gone(store.parent / "later")
        assert keys(store) == [key]

    def test_a_store_of_the_node_is_reached_as_a_driver_reaches_it(self) -> None:
        ray.kill(saved("kv://discards"))
        require_gone("kv://discards")

    def test_the_actors_environment_is_used(self, tmp_path: Path) -> None:
        """Where the credentials of its store are."""
        (tmp_path / "site").mkdir()
        seen = tmp_path / "seen"
        (tmp_path / "site" / "sitecustomize.py").write_text(
            "import os, sys\n"
            f"if 'discard' in sys.orig_argv: open({str(seen)!r}, 'w').write(os.environ['TOKEN'])\n"
        )
        env = {"PYTHONPATH": str(tmp_path / "site"), "TOKEN": "secret"}
        ray.kill(saved(tmp_path / "store", runtime_env={"env_vars": env}))
        require_gone(tmp_path / "store")
        assert seen.read_text() == "secret"


PROGRAM = """
    import os, sys
    import ftray as ray

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Counter(ray.Checkpointable, store=sys.argv[1], every=1):
        def __init__(self):
            self.n = 0
        def incr(self):
            self.n += 1
            return self.n

    ray.init(num_cpus=1)
    actors = [Counter.remote() for _ in range(2)]
    ray.get([actor.incr.remote() for actor in actors])
    ray.get([actor.checkpoint.remote() for actor in actors])
    tell("node", os.getpid())
    word = await_word()
    if word == "group":
        ray.checkpoint.group(actors, name="pair").save()
        tell("grouped")
        await_word()
    elif word == "kill":
        ray.kill(actors[0])
    elif word == "broken":
        os.rename(sys.argv[1], sys.argv[1] + "-moved")
        open(sys.argv[1], "w").close()
        ray.kill(actors[0])
        tell("killed")
        await_word()
"""


@pytest.mark.usefixtures("no_runtime")
class TestSessionsThatEnd:
    def start(self, start_driver: Callable[..., Driver], store: Path) -> Driver:
        driver = start_driver(PROGRAM, args=[str(store)])
        driver.expect("node")
        assert len(keys(store)) == 2
        return driver

    @pytest.mark.parametrize("word", ["end", "kill"])
    def test_a_program_that_ends(
        self, word: str, start_driver: Callable[..., Driver], tmp_path: Path
    ) -> None:
        driver = self.start(start_driver, tmp_path / "store")
        driver.say(word)
        driver.finish()
        assert keys(tmp_path / "store") == []

    def test_a_program_that_is_killed(self, start_driver: Callable[..., Driver], tmp_path: Path) -> None:
        driver = self.start(start_driver, tmp_path / "store")
        driver.signal(signal.SIGKILL)
        require_gone(tmp_path / "store")
        driver.check_nothing_left()

    def test_a_session_that_is_killed_leaves_orphans(
        self, start_driver: Callable[..., Driver], tmp_path: Path
    ) -> None:
        store = tmp_path / "store"
        driver = self.start(start_driver, store)
        self.kill_session(driver, store)
        left = keys(store)
        assert len(left) == 2 and checkpoint.prune(store) == left and keys(store) == []

    def test_a_group_is_an_orphan_with_its_members(
        self, start_driver: Callable[..., Driver], tmp_path: Path
    ) -> None:
        store = tmp_path / "store"
        driver = self.start(start_driver, store)
        driver.say("group")
        driver.expect("grouped")
        self.kill_session(driver, store)
        left = keys(store)
        assert len(left) == 3 and left[0] == "_group/pair"
        assert checkpoint.prune(store) == left and keys(store) == []

    def kill_session(self, driver: Driver, store: Path) -> None:
        """With all of its processes, so that nobody can remove anything."""
        holders = [checkpoint.open(store).describe(key).holder for key in keys(store)]
        pids = [holder["pid"] for holder in holders if holder is not None]
        node = parent_of(pids[0])
        assert checkpoint.prune(store) == [], "its session lives"
        assert node is not None and is_running(node)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # they would remove their own when they see the end of the session
        os.kill(node, signal.SIGKILL)
        os.kill(driver.pid, signal.SIGKILL)
        wait_ended([*pids, node])  # one that gives back its memory has no environment to be known by any more
        driver.check_processes_ended()

    def test_what_cannot_be_removed_is_reported(
        self, start_driver: Callable[..., Driver], tmp_path: Path
    ) -> None:
        driver = self.start(start_driver, tmp_path / "store")
        driver.say("broken")
        driver.expect("killed")
        driver.expect_output(lambda line: "`ftray checkpoint prune` removes them" in line, "err")
        driver.say("end")
        driver.finish()
