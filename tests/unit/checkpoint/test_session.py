"""The life of one actor process: counting, saving, failing, ending."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import (
    Checkpointable,
    CheckpointCaptureError,
    CheckpointOptionError,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
    NoSessionError,
    engine,
    faults,
    holders,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.session import OUT_OF_SCOPE
from ftray.checkpoint.snapshots import SnapshotLog
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.testing import LocalHost, MemoryStore
from tests.helpers.sync import eventually

from .support import KEY, Counter, call, in_child, settle, start

N = SnapshotName


class GatedStore(MemoryStore):
    """A store whose `put` waits for permission, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Semaphore(1 << 20)
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None

    def block(self) -> None:
        self.allowed = threading.Semaphore(0)

    def put(self, key: str, name: SnapshotName, parts: Any) -> None:
        self.entered.release()
        assert self.allowed.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        super().put(key, name, parts)


class TestWhen:
    def test_every(self) -> None:
        store = MemoryStore()
        host, session = start(store=store, every=3)
        for _ in range(2):
            host.call(session, "incr")
        assert store.scan(KEY).snapshots == []
        call(host, session, "incr")
        assert store.scan(KEY).snapshots == [N(1, 1)]
        assert open_store(store).load(KEY) == {"n": 3}
        assert session.status()["calls_since_saved"] == 0

    def test_readonly_calls_do_not_count(self) -> None:
        store = MemoryStore()
        host, session = start(store=store)
        for _ in range(5):
            host.call(session, "value")
        settle(session)
        assert store.scan(KEY).snapshots == [] and session.status()["calls"] == 0

    def test_a_method_that_raises_counts(self) -> None:
        store = MemoryStore()
        host, session = start(store=store)
        with pytest.raises(ValueError, match="as asked"):
            host.call(session, "fail")
        settle(session)
        assert open_store(store).load(KEY) == {"n": 1}

    def test_interval_saves_an_idle_actor(self) -> None:
        store = MemoryStore()
        host, session = start(store=store, every=None, interval_s=0.01)
        host.call(session, "incr")
        host.wait_for_action()
        settle(session)
        assert open_store(store).load(KEY) == {"n": 1}
        assert open_store(store).list(KEY)[-1].reason == "interval"
        session.close(False, "test")

    def test_interval_alone_saves_nothing_unchanged(self) -> None:
        store = MemoryStore()
        host, session = start(store=store, every=None, interval_s=0.01)
        with pytest.raises(TimeoutError):
            host.wait_for_action(0.2)
        session.close(False, "test")

    def test_on_demand_from_outside_is_durable_at_its_reply(self) -> None:
        store = GatedStore()
        host, session = start(store=store, every=None)
        host.call(session, "incr")
        assert host.call(session, "checkpoint") == "1-1"
        assert store.scan(KEY).snapshots == [N(1, 1)]

    def test_on_demand_inside_a_method_is_saved_after_it(self) -> None:
        store = MemoryStore()
        host, session = start(store=store, every=None)
        assert call(host, session, "incr_and_save") == "1-1"
        assert open_store(store).load(KEY, "1-1") == {"n": 1}
        assert open_store(store).list(KEY)[0].reason == "request"

    def test_a_class_may_have_a_checkpoint_method_of_its_own(self) -> None:
        class Own(Counter):
            def checkpoint(self) -> str:
                return "own"

        host, session = start(Own, store=MemoryStore())
        assert host.call(session, "checkpoint") == "own"

    def test_one_save_in_flight_and_the_next_covers_the_rest(self) -> None:
        store = GatedStore()
        host, session = start(store=store)
        store.block()
        for _ in range(10):
            host.call(session, "incr")
        assert session.status()["in_flight"] and session.status()["wanted"] == "every"
        store.allowed.release(2)
        host.wait_for_action()
        settle(session)
        assert store.scan(KEY).snapshots == [N(1, 1), N(1, 2)]
        assert open_store(store).load(KEY) == {"n": 10} and open_store(store).load(KEY, "1-1") == {"n": 1}

    def test_the_number_told_is_the_number_saved_also_behind_a_save_in_flight(self) -> None:
        store = GatedStore()
        host, session = start(store=store)
        store.block()
        host.call(session, "incr")
        told = host.call(session, "incr_and_save")
        store.allowed.release(2)
        host.wait_for_action()
        settle(session)
        assert told == "1-2" and open_store(store).load(KEY, told) == {"n": 2}

    def test_calls_go_on_while_a_save_is_written(self) -> None:
        store = GatedStore()
        host, session = start(store=store)
        store.block()
        host.call(session, "incr")
        assert store.entered.acquire(timeout=10)
        assert [host.call(session, "incr") for _ in range(3)] == [2, 3, 4]
        store.allowed.release(10)

    def test_a_forked_child_is_not_the_actor(self, tmp_path: Path) -> None:
        _, session = start(store=tmp_path)

        def body(tell: Any) -> None:
            try:
                session.request()
            except NoSessionError as error:
                tell(str(error))

        status, told = in_child(body)
        assert status == 0 and "forked" in told[0]


class TestFailures:
    def test_a_failed_save_is_told_and_tried_again(self) -> None:
        told = []

        class Told(Counter):
            def on_checkpoint_error(self, error: Exception) -> None:
                told.append(str(error))

        store = GatedStore()
        host, session = start(Told, store=store)
        store.error = CheckpointSaveError("the disk is full")
        call(host, session, "incr")
        assert told == ["the disk is full"]
        assert [i.kind for i in host.incidents] == ["save_failed"]
        status = session.status()
        assert (status["state"], status["failures"], status["saves"]) == ("failing", 1, 0)
        assert status["last_error"] == "CheckpointSaveError: the disk is full"
        assert status["calls_since_saved"] == 1
        store.error = None
        host.wait_for_action()  # the retry, by itself
        settle(session)
        assert open_store(store).load(KEY) == {"n": 1} and session.status()["state"] == "ok"
        assert open_store(store).list(KEY)[0].id == "1-2" and open_store(store).list(KEY)[0].reason == "retry"
        session.close(False, "test")

    def test_on_demand_raises_what_failed(self) -> None:
        store = GatedStore()
        host, session = start(store=store)
        store.error = CheckpointSaveError("no")
        with pytest.raises(CheckpointSaveError, match="no"):
            host.call(session, "checkpoint")

    def test_on_demand_does_not_wait_for_ever(self) -> None:
        store = GatedStore()
        _, session = start(store=store)
        store.block()
        with pytest.raises(CheckpointTimeoutError, match="1-1"):
            session.save_now(timeout_s=0.05)
        store.allowed.release(10)

    def test_a_hook_that_raises_is_told(self) -> None:
        class Bad(Counter):
            def on_checkpoint_error(self, error: Exception) -> None:
                raise RuntimeError("hook")

        store = GatedStore()
        host, session = start(Bad, store=store)
        store.error = CheckpointSaveError("no")
        call(host, session, "incr")
        assert [i.kind for i in host.incidents] == ["save_failed", "hook_failed"]

    def test_a_state_that_becomes_impossible_to_save(self) -> None:
        class Breaks(Counter):
            def brk(self) -> None:
                self.lock = threading.Lock()

            def mend(self) -> None:
                del self.lock

        store = MemoryStore()
        host, session = start(Breaks, store=store)
        call(host, session, "incr")
        call(host, session, "brk")
        error = host.incidents[-1].error
        assert isinstance(error, CheckpointCaptureError) and error.attribute == "Breaks.lock"
        call(host, session, "mend")
        assert open_store(store).load(KEY) == {"n": 1}
        assert session.status()["state"] == "ok"

    def test_an_interrupted_capture_is_passed_on_and_tried_again(self) -> None:
        class Interrupted(Counter):
            interrupt = False

            def save_checkpoint(self) -> object:
                if type(self).interrupt:
                    type(self).interrupt = False
                    raise KeyboardInterrupt
                return super().save_checkpoint()

        store = MemoryStore()
        host, session = start(Interrupted, store=store)
        Interrupted.interrupt = True
        with pytest.raises(KeyboardInterrupt):
            host.call(session, "incr")
        assert "interrupted by KeyboardInterrupt" in host.incidents[-1].message
        call(host, session, "incr")
        assert open_store(store).load(KEY) == {"n": 2}

    def test_errors_that_are_kept_do_not_keep_the_state(self) -> None:
        store = GatedStore()
        store.error = CheckpointSaveError("no")

        class Big:
            pass

        class Keeps(Counter):
            def save_checkpoint(self) -> object:
                big = Big()
                seen.append(weakref.ref(big))
                return [big, self.n]

        seen: list[weakref.ref[Big]] = []
        host, session = start(Keeps, store=store)
        call(host, session, "incr")
        gc.collect()
        assert host.incidents and all(ref() is None for ref in seen)

    def test_a_fenced_incarnation_saves_nothing_more(self) -> None:
        store = MemoryStore()
        old_host, old = start(store=store)
        start(store=store, incarnation=2)
        with pytest.raises(FencedError, match="epoch 1"):
            old_host.call(old, "checkpoint")
        assert old.status()["state"] == "ended"
        assert [i.kind for i in old_host.incidents] == ["fenced"] and old_host.incidents[0].fatal
        with pytest.raises(NoSessionError, match="epoch 1"):
            old_host.call(old, "incr_and_save")
        assert old.close(True, "exit") is None


class TestEnd:
    def test_a_planned_end_saves_what_is_new(self) -> None:
        store = MemoryStore()
        host, session = start(store=store, every=None)
        host.call(session, "incr")
        assert session.close(True, "exit_actor") == "1-1"
        assert open_store(store).load(KEY) == {"n": 1}
        assert session.close(True, "again") == "1-1"
        with pytest.raises(NoSessionError):
            session.instance.checkpoint()

    def test_the_method_that_ends_the_actor_counts(self) -> None:
        for kind in (LocalHost, ConcurrentHost):
            store, host = MemoryStore(), kind("counter")
            session = engine.open(Counter(), host, engine.spec_of(Counter, {"every": None}), store=store)
            session.before_call("incr")
            session.instance.n = 4  # type: ignore[attr-defined]
            assert session.close(True, "exit_actor", inside="incr") == "1-1"
            assert open_store(store).load(KEY) == {"n": 4}

    def test_nothing_new_saves_nothing(self) -> None:
        store = MemoryStore()
        host, session = start(store=store)
        call(host, session, "incr")
        session.close(True, "exit")
        assert store.scan(KEY).snapshots == [N(1, 1)]

    def test_the_end_waits_for_the_save_in_flight(self) -> None:
        store = GatedStore()
        host, session = start(store=store)
        store.block()
        host.call(session, "incr")
        host.call(session, "incr")
        threading.Timer(0.05, lambda: store.allowed.release(5)).start()
        assert session.close(True, "SIGTERM") == "1-2"
        assert open_store(store).load(KEY) == {"n": 2}

    def test_the_end_is_bounded_and_says_what_was_lost(self) -> None:
        store = GatedStore()
        host, session = start(store=store)
        store.block()
        host.call(session, "incr")
        began = time.monotonic()
        assert session.close(True, "SIGTERM", timeout_s=0.1) is None
        assert time.monotonic() - began < 20
        assert host.incidents[0].kind == "final_save_failed" and "1 calls" in host.incidents[0].message
        store.allowed.release(10)

    def test_a_final_save_that_fails_is_told(self) -> None:
        store = GatedStore()
        host, session = start(store=store, every=None)
        host.call(session, "incr")
        store.error = CheckpointSaveError("no")
        assert session.close(True, "exit") is None
        assert {i.kind for i in host.incidents} == {"save_failed", "final_save_failed"}

    def test_a_killed_actor_waits_for_nothing(self) -> None:
        store = GatedStore()
        host, session = start(store=store)
        store.block()
        host.call(session, "incr")
        assert session.close(False, "kill") is None
        store.allowed.release(10)

    def test_named_actors_outlive_their_scope(self) -> None:
        store = MemoryStore()
        host, session = start(store=store, every=None)
        host.call(session, "incr")
        assert session.close(True, OUT_OF_SCOPE) == "1-1"

    def test_discard(self, tmp_path: Path) -> None:
        spec = engine.spec_of(Counter, {"store": tmp_path}) or {}
        host = LocalHost("", unique_id="n1")
        session = engine.open(Counter(), host, spec)
        call(host, session, "incr")
        session.close(False, "killed")
        assert engine.discard(spec, host.identity) and open_store(tmp_path).keys() == []
        assert not engine.discard(spec, host.identity._replace(name="named"))

    def test_discard_leaves_what_somebody_else_works_on(self, tmp_path: Path) -> None:
        spec = engine.spec_of(Counter, {"store": tmp_path}) or {}
        host = LocalHost("", unique_id="n1")
        session = engine.open(Counter(), host, spec)
        session.close(False, "killed")
        store = LocalStore(tmp_path)
        SnapshotLog(store, session.log.key, keep=2).claim(holders.tool("restore"))
        assert not engine.discard(spec, host.identity) and store.keys() == [session.log.key]

    def test_the_end_of_the_session_is_that_of_unnamed_actors(self) -> None:
        store = MemoryStore()
        for name, left in (("", []), ("named", ["test/named"])):
            host = LocalHost(name, unique_id="n1")
            session = engine.open(Counter(), host, store=store)
            host.call(session, "incr")
            session.close(True, engine.SESSION_OVER)
            assert store.keys() == left


class ConcurrentHost(LocalHost):
    max_concurrency = 4


class TestConcurrent:
    def opened(self, store: Any, host: ConcurrentHost, **options: Any) -> Any:
        spec = engine.spec_of(Counter, options)
        return engine.open(Counter(), host, spec, store=store)

    def test_a_capture_waits_for_a_gap(self) -> None:
        store, host = MemoryStore(), ConcurrentHost("counter")
        session = self.opened(store, host)
        session.before_call("incr")
        session.before_call("incr")
        session.instance.n = 5
        session.after_call("incr")
        settle(session)
        host.run_actions()
        assert store.scan(KEY).snapshots == []
        session.instance.n = 6
        session.after_call("incr")
        settle(session)
        assert open_store(store).load(KEY) == {"n": 6}

    def test_readonly_methods_do_not_stand_in_the_way(self) -> None:
        store, host = MemoryStore(), ConcurrentHost("counter")
        session = self.opened(store, host)
        session.before_call("value")
        session.before_call("incr")
        session.after_call("incr")
        settle(session)
        assert store.scan(KEY).snapshots == [N(1, 1)]

    def test_an_end_saves_although_no_action_runs_any_more(self) -> None:
        store, host = MemoryStore(), ConcurrentHost("counter")
        session = self.opened(store, host, every=None)
        session.before_call("incr")
        session.instance.n = 9
        session.after_call("incr")
        assert session.close(True, "SIGTERM", timeout_s=5) == "1-1"
        assert open_store(store).load(KEY) == {"n": 9}

    def test_an_end_waits_for_running_methods(self) -> None:
        store, host = MemoryStore(), ConcurrentHost("counter")
        session = self.opened(store, host)
        for _ in range(2):
            session.before_call("incr")
        session.instance.n = 8
        session.after_call("incr")
        ended: list[str | None] = []
        ending = threading.Thread(target=lambda: ended.append(session.close(True, "SIGTERM", timeout_s=60)))
        ending.start()
        eventually(lambda: session.running._waiting, "the end waits")
        assert store.scan(KEY).snapshots == [] and not ended
        session.instance.n = 9
        session.after_call("incr")
        ending.join(60)
        assert ended == ["1-1"] and open_store(store).load(KEY) == {"n": 9}
        assert host.incidents == []

    def test_an_end_waits_for_a_method_that_is_the_only_change(self) -> None:
        store, host = MemoryStore(), ConcurrentHost("counter")
        session = self.opened(store, host)
        session.before_call("incr")
        ending = threading.Thread(target=session.close, args=(True, "SIGTERM", 60))
        ending.start()
        eventually(lambda: session.running._waiting, "the end waits")
        session.instance.n = 1
        session.after_call("incr")
        ending.join(60)
        assert open_store(store).load(KEY) == {"n": 1}

    def test_an_end_with_methods_that_run_on_says_so(self) -> None:
        host = ConcurrentHost("counter")
        session = self.opened(MemoryStore(), host)
        session.before_call("incr")
        session.request()
        session.close(True, "SIGTERM", timeout_s=0.05)
        assert "1 methods were still running" in host.incidents[0].message

    def test_an_end_on_the_event_loop_of_its_methods_does_not_wait(self) -> None:
        class AsyncHost(ConcurrentHost):
            is_async = True

        async def main() -> None:
            session.before_call("incr")
            session.before_call("incr")
            session.after_call("incr")
            session.close(True, "SIGTERM", timeout_s=600)

        host = AsyncHost("counter")
        session = self.opened(MemoryStore(), host)
        asyncio.run(main())
        assert "1 methods were still running" in host.incidents[0].message

    def test_no_snapshot_shows_half_of_a_method(self) -> None:
        class Pair(Checkpointable, every=5):
            def __init__(self) -> None:
                self.a = self.b = 0

            def step(self) -> None:
                with lock:
                    self.a += 1
                pause.wait(0.0005)
                with lock:
                    self.b += 1

        lock, pause = threading.Lock(), threading.Event()
        seen: list[bytes] = []

        class Watching(MemoryStore):
            def put(self, key: str, name: SnapshotName, parts: Any) -> None:
                super().put(key, name, parts)
                seen.append(b"".join(parts))

        store, host = Watching(), ConcurrentHost("counter", class_name="Pair")
        session = engine.open(Pair(), host, store=store)

        def work() -> None:
            for _ in range(100):
                session.before_call("step")
                try:
                    session.instance.step()  # type: ignore[attr-defined]
                finally:
                    session.after_call("step")

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert session.close(True, "exit") is not None
        from io import BytesIO

        from ftray.checkpoint import capture, format

        states: list[Any] = [capture.load(format.read(BytesIO(raw))[1]) for raw in seen]
        assert all(s["a"] == s["b"] for s in states) and states[-1]["a"] == 300

    def test_an_async_actor_saves_on_demand(self) -> None:
        class AsyncHost(ConcurrentHost):
            is_async = True
            loop: Any = None

            def run_between_calls(self, action: Any) -> None:
                self.loop.call_soon_threadsafe(action)

        async def main() -> None:
            host = AsyncHost("counter")
            host.loop = asyncio.get_running_loop()
            store = MemoryStore()
            session = self.opened(store, host, every=None)
            session.before_call("incr")
            session.instance.incr()
            session.after_call("incr")
            assert await session.entry_points["checkpoint"]() == "1-1"
            assert open_store(store).load(KEY) == {"n": 1}
            session.close(False, "test")

        asyncio.run(main())


def test_the_errors_of_the_toolkit_pickle() -> None:
    from ftray.checkpoint import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) > 10
    for kind in kinds:
        again = pickle.loads(pickle.dumps(kind("text")))
        assert type(again) is kind and str(again) == "text"


def test_unknown_fault_points_are_refused() -> None:
    with pytest.raises(ValueError, match="file.put.renamed"), faults.armed("file.put.renmed"):
        pass
    with pytest.raises(ValueError, match="allowed"), faults.armed("file.put.renamed", "explode"):
        pass


def test_two_overrides_of_the_same_key_fence_each_other() -> None:
    store = MemoryStore()
    one_host, one = start(store=store, checkpoint_key="shared")
    call(one_host, one, "incr")
    two_host, two = start(store=store, checkpoint_key="shared")
    assert two_host.call(two, "value") == 1
    with pytest.raises(FencedError):
        one_host.call(one, "checkpoint")
    with pytest.raises(CheckpointOptionError):
        start(store=store, checkpoint_key="x" * 500)
