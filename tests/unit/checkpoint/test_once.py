"""Serving an exactly-once actor: who is let in, in which order, and when an answer leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from ftray.checkpoint import (
    CallCycleError,
    CallerHeldBackError,
    CallMismatchError,
    Checkpointable,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
    NoSessionError,
    ReplyExpiredError,
    StaleCallerError,
    engine,
    readonly,
)
from ftray.checkpoint.serving import ExactlyOnceCalls
from ftray.checkpoint.testing import Caller, InlineBackground, LocalHost
from ftray.checkpoint.values import CALL_ID, current

from .once_support import KEY, Lives, Tally, hooks, memory, started


class TestAcceptance:
    def test_a_duplicate_gets_the_recorded_reply(self) -> None:
        lives = started()
        call = lives.make("incr", 5)
        assert lives.send(call) == 5 and lives.send(call) == 5
        assert lives.call("value") == 5

    def test_an_error_is_a_reply(self) -> None:
        lives = started()
        call = lives.make("fail")
        for _ in range(2):
            with pytest.raises(ValueError, match="at 1"):
                lives.send(call)
        assert lives.call("value") == 1

    def test_a_duplicate_attaches_to_the_call_in_progress(self) -> None:
        lives = started()
        inside, go = threading.Event(), threading.Event()

        def slow(self: Tally) -> int:
            inside.set()
            assert go.wait(10)
            self.n += 1
            return self.n

        hooks.append(slow)
        call = lives.make("run", None)
        calls, replies = lives.host.calls_of(lives.session), []
        threads = [threading.Thread(target=lambda: replies.append(call.sent_to(calls))) for _ in range(3)]
        threads[0].start()
        assert inside.wait(10)
        for thread in threads[1:]:
            thread.start()
        while len(calls._running[call.head[CALL_ID]].waiting) < 2:
            threading.Event().wait(0.001)
        go.set()
        for thread in threads:
            thread.join(10)
        assert replies == [1, 1, 1] and lives.call("value") == 1

    def test_a_known_call_with_other_arguments_changes_nothing(self) -> None:
        lives, caller = started(), Caller(parent=b"p" * 16)
        lives.send(caller.call(KEY, "incr", 5))
        for other in (caller.numbered(KEY, 1, "incr", 6), caller.numbered(KEY, 1, "fail")):
            with pytest.raises(CallMismatchError, match="same calls in the same order"):
                lives.send(other)
        assert lives.call("value") == 5 and lives.send(caller.numbered(KEY, 1, "incr", 5)) == 5

    def test_an_older_attempt_of_the_caller_is_refused(self) -> None:
        lives, parent = started(), b"p" * 16
        lives.send(Caller(b"r" * 16, parent=parent, attempt=1).call(KEY, "incr"))
        with pytest.raises(StaleCallerError, match="newer one"):
            lives.send(Caller(b"r" * 16, parent=parent, attempt=0).call(KEY, "incr"))
        assert lives.call("value") == 1

    def test_what_was_acknowledged_and_went_is_never_run_again(self) -> None:
        lives = started()
        first = lives.make("incr")
        lives.send(first)
        lives.call("incr")
        with pytest.raises(ReplyExpiredError, match="never run twice"):
            lives.send(first)
        assert lives.call("value") == 2

    def test_a_call_that_comes_back_is_refused(self) -> None:
        from ftray._core.identity import call_id, derive_callee_key
        from ftray._core.records import encode_head

        lives, key = started(), derive_callee_key(KEY)
        call = lives.make("incr")
        call.head = encode_head(
            root_kind=0,
            root=b"r" * 16,
            parent=b"p" * 16,
            call_id=call_id(b"p" * 16, key, 1, 0),
            n=1,
            chain=(key,),
        )
        with pytest.raises(CallCycleError, match="comes back"):
            lives.send(call)

    def test_a_caller_is_held_back_until_there_is_room(self) -> None:
        lives = started(reply_bound_calls=2)
        lives.host._calls = ExactlyOnceCalls(lives.session, held_back_s=0.05)
        forgetful = Caller(parent=b"p" * 16, acknowledges=False)
        for _ in range(2):
            lives.send(forgetful.call(KEY, "incr"))
        third = forgetful.call(KEY, "incr")
        with pytest.raises(CallerHeldBackError, match="reply_bound"):
            lives.send(third)
        lives.host._calls = ExactlyOnceCalls(lives.session, held_back_s=10)
        replies: list[int] = []
        calls = lives.host.calls_of(lives.session)
        thread = threading.Thread(target=lambda: replies.append(third.sent_to(calls)))
        thread.start()
        while not calls._lines:
            threading.Event().wait(0.001)
        lives.once.release([b"p" * 16], [])
        thread.join(10)
        assert replies == [3]

    def test_a_later_call_does_not_take_the_room_that_an_earlier_one_waits_for(self) -> None:
        """Its reply would never be acknowledged: a caller has to have the earlier one's first."""
        lives = started(reply_bound_calls=2)
        caller = Caller()

        async def main() -> list[int]:
            calls = ExactlyOnceCalls(lives.session, held_back_s=5)

            async def made(number: int) -> int:
                return await caller.numbered(KEY, number, "incr").sent_to_async(calls)

            tasks = [asyncio.ensure_future(made(number)) for number in range(1, 9)]
            while not caller._answered.get(KEY):
                await asyncio.sleep(0)
            for number in range(9, 33):  # each says what has arrived, and so makes room, when others wait
                tasks.append(asyncio.ensure_future(made(number)))
                await asyncio.sleep(0)
            while not all(task.done() for task in tasks):
                calls.acknowledged(caller.numbered(KEY, 33, "incr").head)
                await asyncio.sleep(0)
            return [task.result() for task in tasks]

        assert asyncio.run(main()) == list(range(1, 33))

    def test_who_asks_again_does_not_wait_in_line(self) -> None:
        """The replies that fill the bound are its own: it has to get them to make room."""
        lives = started(reply_bound_calls=2)
        caller = Caller()
        made = [caller.call(KEY, "incr") for _ in range(3)]
        for call in made[:2]:
            lives.host.calls_of(lives.session).call(call.head, call.method, call.args)

        async def main() -> list[int]:
            calls = ExactlyOnceCalls(lives.session, held_back_s=5)
            waits = asyncio.ensure_future(made[2].sent_to_async(calls))
            while not calls._lines:
                await asyncio.sleep(0)
            again = [await call.sent_to_async(calls) for call in made[:2]]
            calls.acknowledged(caller.call(KEY, "incr").head)
            return [*again, await waits]

        assert asyncio.run(main()) == [1, 2, 3]

    def test_a_caller_does_not_wait_behind_another_one(self) -> None:
        lives = started(reply_bound_calls=2)
        calls = lives.host.calls_of(lives.session)
        forgetful = Caller(parent=b"p" * 16, acknowledges=False)
        for _ in range(2):
            lives.send(forgetful.call(KEY, "incr"))

        async def main() -> int:
            waits = asyncio.ensure_future(forgetful.call(KEY, "incr").sent_to_async(calls))
            while not calls._lines:
                await asyncio.sleep(0)
            value: int = await Caller().call(KEY, "incr").sent_to_async(calls)
            assert not waits.done()
            waits.cancel()
            return value

        assert asyncio.run(main()) == 3

    def test_an_unknown_method_is_not_entered(self) -> None:
        lives = started()
        with pytest.raises(AttributeError, match="nothing"):
            lives.call("nothing")
        assert lives.once.ledger.counters()["accepted"] == 0 and lives.once.last_position == 1


class TestOrder:
    def test_methods_that_change_the_state_run_alone(self) -> None:
        lives = started()
        depth: list[int] = []

        def step(self: Tally) -> None:
            depth.append(1)
            threading.Event().wait(0.002)
            assert len(depth) == 1
            depth.pop()

        calls = lives.host.calls_of(lives.session)
        hooks.extend([step] * 12)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                caller = Caller()
                for _ in range(3):
                    caller.call(KEY, "run", None).sent_to(calls)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert errors == [] and hooks == []

    def test_async_methods_hold_the_actor_from_start_to_end(self) -> None:
        class Slow(Tally):
            async def slow(self) -> list[int]:
                self.seen.append(1)
                for _ in range(5):
                    await asyncio.sleep(0)
                self.seen.append(-1)
                return list(self.seen)

            @readonly
            async def look(self) -> list[int]:
                await asyncio.sleep(0)
                return list(self.seen)

        async def main() -> None:
            session, calls = await _async_session(Slow)
            caller = Caller()
            made = [caller.call(KEY, "slow" if i % 2 else "look") for i in range(8)]
            for reply in await asyncio.gather(*(c.sent_to_async(calls) for c in made)):
                assert sum(reply) == 0, "half of a method was seen"
            session.close(False, "test")

        asyncio.run(main())

    def test_cancelling_gives_up_waiting_only(self) -> None:
        class Slow(Tally):
            async def slow(self) -> int:
                entered.set()
                await go.wait()
                self.n += 1
                return self.n

        async def main() -> None:
            nonlocal entered, go
            entered, go = asyncio.Event(), asyncio.Event()
            session, calls = await _async_session(Slow)
            call = Caller().call(KEY, "slow")
            waiting = asyncio.ensure_future(call.sent_to_async(calls))
            await entered.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            go.set()
            assert await call.sent_to_async(calls) == 1 and session.instance.n == 1  # type: ignore[attr-defined]
            session.close(False, "test")

        entered: Any = None
        go: Any = None
        asyncio.run(main())

    def test_no_turn_in_time_enters_nothing(self) -> None:
        lives = started()
        inside, go = threading.Event(), threading.Event()

        def slow(self: Tally) -> None:
            inside.set()
            assert go.wait(10)

        hooks.append(slow)
        thread = threading.Thread(target=lambda: lives.call("run", None))
        thread.start()
        assert inside.wait(10)
        call = Caller().call(KEY, "incr")
        with pytest.raises(CheckpointTimeoutError, match="no turn"):
            call.sent_to(lives.host.calls_of(lives.session), 0.02)
        go.set()
        thread.join(10)
        assert lives.send(call) == 1


class AsyncHost(LocalHost):
    is_async = True
    max_concurrency = 8


async def _async_session(cls: type[Checkpointable], store: Any = None, incarnation: int = 1) -> Any:
    host = AsyncHost("tally", class_name=cls.__name__, incarnation=incarnation)
    background: Any = InlineBackground
    session = await engine.open_async(cls(), host, store=store or memory(), background=background)
    return session, ExactlyOnceCalls(session)


class TestOutputCommit:
    def held(self) -> Lives:
        lives = started()
        lives.store.hold_durability = True
        return lives

    def in_thread(self, lives: Lives, method: str) -> tuple[threading.Thread, list[Any]]:
        replies: list[Any] = []
        call, calls = Caller().call(KEY, method), lives.host.calls_of(lives.session)

        def work() -> None:
            try:
                replies.append(call.sent_to(calls))
            except BaseException as error:
                replies.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        return thread, replies

    def until_held(self, lives: Lives, count: int = 1) -> None:
        deadline_s = time.monotonic() + 30
        while lives.once.releases.held < count:
            assert time.monotonic() < deadline_s, "nothing waits"
            threading.Event().wait(0.001)

    def test_a_reply_waits_until_its_record_is_durable(self) -> None:
        lives = self.held()
        thread, replies = self.in_thread(lives, "incr")
        self.until_held(lives)
        assert replies == []
        lives.once.journal.commit()
        thread.join(10)
        assert replies == [1]

    def test_a_reader_waits_for_what_it_has_read(self) -> None:
        lives = self.held()
        first, _ = self.in_thread(lives, "incr")
        self.until_held(lives)
        second, replies = self.in_thread(lives, "value")
        self.until_held(lives, 2)
        assert replies == []
        lives.once.journal.commit()
        first.join(10)
        second.join(10)
        assert replies == [1]

    def test_a_duplicate_waits_as_well(self) -> None:
        lives = self.held()
        call = lives.make("incr")
        for _ in range(2):
            with pytest.raises(CheckpointTimeoutError, match="not durable"):
                lives.send(call, 0.02)
        lives.once.journal.commit()
        assert lives.send(call) == 1 and lives.session.instance.n == 1

    def test_every_answer_of_a_reader_needs_the_key(self) -> None:
        lives = started()
        assert lives.call("value") == 0
        lives.store.claim(KEY, 99, b"somebody else")
        with pytest.raises(FencedError, match="newer incarnation"):
            lives.call("value")

    def test_a_method_that_waits_in_vain_before_it_sends_ends_the_process(self) -> None:
        lives = started()
        lives.call("incr")
        never = lives.once.last_position + 1
        with pytest.raises(CheckpointTimeoutError):
            lives.once.wait(never, 0.01)
        assert lives.host.crashed_by == [], "outside of a method it is an error like others"
        with pytest.raises(CheckpointTimeoutError, match="was not durable within"):
            lives.once.wait(never, 0.01, in_method=True)
        assert [type(e) for e in lives.host.crashed_by] == [CheckpointTimeoutError]
        with pytest.raises(NoSessionError, match="was not durable within"):
            lives.call("incr")

    def test_a_journal_that_fails_answers_nothing_more(self) -> None:
        lives = self.held()
        thread, replies = self.in_thread(lives, "incr")
        self.until_held(lives)
        lives.once.journal.fail(CheckpointSaveError("the disk is gone"))
        thread.join(10)
        assert isinstance(replies[0], CheckpointSaveError)
        assert [type(e) for e in lives.host.crashed_by] == [CheckpointSaveError]
        with pytest.raises(NoSessionError, match="disk is gone"):
            lives.call("incr")
        assert lives.start().send(Caller().call(KEY, "value")) == 1, "the record was appended, and counts"

    def test_a_fenced_incarnation_ends_and_is_not_restarted(self) -> None:
        old = started()
        new = Lives(old.store)
        new.number = 1
        new.start()
        call = Caller().call(KEY, "incr")
        with pytest.raises(FencedError):
            old.send(call)
        assert [type(e) for e in old.host.fenced_by] == [FencedError] and old.host.crashed_by == []
        assert new.send(call) == 1

    def test_what_leaves_a_method_waits_for_its_start(self) -> None:
        lives = self.held()
        positions: list[int] = []

        def calls_out(self: Tally) -> None:
            execution: Any = current.get()
            positions.append(execution.start())
            with pytest.raises(CheckpointTimeoutError):
                lives.once.wait(positions[0], 0.02)
            lives.once.journal.commit()
            lives.once.wait(positions[0], 10)
            assert execution.start() == positions[0], "it starts once"

        hooks.append(calls_out)
        with pytest.raises(CheckpointTimeoutError):
            lives.send(lives.make("run", None), 0.02)
        assert positions[0] > 0


class TestCrashes:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit, GeneratorExit])
    @pytest.mark.parametrize("method", ["run", "look"])
    def test_what_is_no_reply_ends_the_process(self, error: type[BaseException], method: str) -> None:
        class Looks(Tally):
            @readonly
            def look(self, action: Any) -> Any:
                return hooks.pop()(self)

        def die(self: Tally) -> None:
            self.n = 77
            raise error

        lives = started(cls=Looks)
        lives.call("incr")
        hooks.append(die)
        call = lives.make(method, None)
        with pytest.raises(error):
            lives.send(call)
        assert [type(e) for e in lives.host.crashed_by] == [error]
        with pytest.raises(NoSessionError, match="has ended"):
            lives.send(call)
        lives.start()
        assert lives.call("value") == 1, "nothing was recorded"

    def test_those_who_wait_for_a_turn_are_told(self) -> None:
        lives = started()
        inside, go = threading.Event(), threading.Event()

        def die(self: Tally) -> None:
            inside.set()
            assert go.wait(10)
            raise MemoryError

        hooks.append(die)
        calls = lives.host.calls_of(lives.session)
        raised: list[BaseException] = []

        def work(call: Any) -> None:
            try:
                call.sent_to(calls)
            except BaseException as error:
                raised.append(error)

        doomed, waiting = Caller().call(KEY, "run", None), Caller().call(KEY, "incr")
        threads = [threading.Thread(target=work, args=(c,)) for c in (doomed, doomed, waiting)]
        threads[0].start()
        assert inside.wait(10)
        for thread in threads[1:]:
            thread.start()
        while not (calls._waiting and calls._running[doomed.head[CALL_ID]].waiting):
            threading.Event().wait(0.001)
        go.set()
        for thread in threads:
            thread.join(10)
        assert sorted(type(e).__name__ for e in raised) == ["MemoryError", "NoSessionError", "NoSessionError"]
        lives.start()
        assert lives.send(waiting) == 1






