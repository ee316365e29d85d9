"""Recorded calls that the engine's compiled part runs again: which they are, and what becomes of each."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ftray._core.identity import derive_callee_key
from ftray._core.ledger import Ledger
from ftray._core.records import encode_call
from ftray._core.reruns import Reruns
from ftray.checkpoint import CheckpointCorruptedError, CheckpointOptionError, ReplayDivergedError
from ftray.checkpoint.values import current

from .once_support import KEY, EngineCodec, Lives, Tally, compiled_reruns, repeat_last_record, started


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    return compiled_reruns(monkeypatch)


class Kinds(Tally):
    """Methods that return, raise and ask for what they should not."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def keep(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self.calls.append((args, kwargs))
        return args, kwargs

    def returns(self, what: str) -> Any:
        self.n += 1
        return RESULTS[what]()

    async def waits(self) -> int:
        self.n += 1
        return self.n

    def hands_over(self) -> Coroutine[Any, Any, int]:
        return self.waits()


class Odd:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd)

    __hash__ = None  # type: ignore[assignment]


RESULTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "number": lambda: 7,
    "text": lambda: "\u00e4" * 300,
    "large": lambda: b"x" * 300_000,
    "list": lambda: [1, {"a": (2.5, None)}],
    "set": lambda: {1, 2},
    "odd": Odd,
    "generator": lambda: (i for i in range(3)),
    "unwritable": lambda: lambda: open,  # a local function is pickled by value
    "lock": lambda: __import__("threading").Lock(),
}


def run_again(lives: Lives, outcomes: list[bool | None]) -> list[bool | None]:
    """What became of each record in the next incarnation."""
    outcomes.clear()
    lives.start()
    return outcomes


def test_plain_calls_need_nobody_else(outcomes: list[bool | None]) -> None:
    lives = started(cls=Kinds, every=None)
    lives.call("incr")
    lives.call("keep", 1, "two", [3], last=b"four")
    lives.call("keep")
    assert run_again(lives, outcomes) == [True] * 3
    assert lives.session.instance.calls == [((1, "two", [3]), {"last": b"four"}), ((), {})]
    assert lives.call("incr") == 2
    assert lives.session.status()["recoveries"][0]["calls_replayed"] == 3


@pytest.mark.parametrize("what", ["none", "number", "text", "list", "set", "odd"])
def test_what_they_return_is_compared_as_bytes(outcomes: list[bool | None], what: str) -> None:
    lives = started(cls=Kinds)
    call = lives.make("returns", what)
    reply = lives.send(call)
    assert run_again(lives, outcomes) == [True]
    assert lives.send(call) == reply and lives.session.instance.n == 1, "answered from the record"


def test_other_replies_are_compared_by_what_they_say(outcomes: list[bool | None]) -> None:
    lives = started(cls=Kinds)
    with pytest.raises(ValueError, match="as asked at 1"):
        lives.call("fail")
    for what in ("generator", "lock"):
        with pytest.raises(TypeError):
            lives.call("returns", what)
    assert run_again(lives, outcomes) == [False] * 3
    assert lives.call("value") == 3


def test_what_the_toolkit_has_a_part_in_is_left_to_it(outcomes: list[bool | None]) -> None:
    lives = started(cls=Kinds)
    lives.call("ask", 2)  # outside values; the start and each value are records of their own
    lives.call("returns", "large")  # a blob
    lives.call("waits")
    # Of the first the start is seen alone: what follows belongs to it.
    assert run_again(lives, outcomes) == [None] * 3
    assert lives.session.status()["recoveries"][0]["calls_replayed"] == 3
    assert lives.session.instance.n == 2 and len(lives.session.instance.seen) == 2


def test_a_method_may_hand_over_what_has_to_be_awaited(outcomes: list[bool | None]) -> None:
    lives = started(cls=Kinds)
    lives.call("hands_over")
    assert run_again(lives, outcomes) == [True]
    assert lives.call("value") == 1


def test_one_that_would_have_to_wait_is_refused_as_ever(outcomes: list[bool | None]) -> None:
    class Waits(Tally):
        def hands_over(self) -> Any:
            return waiting() if long else done()

    async def done() -> int:
        return 1

    async def waiting() -> int:
        import asyncio

        await asyncio.sleep(0)
        return 1

    long: list[int] = []
    lives = started(cls=Waits, code_version=1)
    lives.call("hands_over")
    long.append(1)
    with pytest.raises(CheckpointOptionError, match="without an event loop"):
        lives.start()


def test_a_call_of_other_code_is_migrated(outcomes: list[bool | None]) -> None:
    class Newer(Tally):
        def migrate_call(self, method: str, args: Any, kwargs: Any, code_version: int) -> Any:
            return method, (10,), {}

    lives = started(code_version=1)
    lives.call("incr")
    outcomes.clear()
    lives.start(cls=Newer, code_version=2, formerly="Tally")
    assert outcomes == [None] and lives.call("value") == 10


def test_a_divergence_says_which_call(outcomes: list[bool | None]) -> None:
    lives = started()
    lives.call("incr")
    lives.call("ask_badly")
    with pytest.raises(ReplayDivergedError, match=r"replay of 'ask_badly', call \w+ \(number 2 .*\d and \d"):
        lives.start()
    assert outcomes == [True, False]


def test_asking_for_a_value_that_was_not_recorded_stops_it(outcomes: list[bool | None]) -> None:
    class Fickle(Tally):
        def ask(self, times: int = 1) -> list[int]:
            try:
                for _ in range(next(more)):
                    self.record(lambda: 1)
            except ReplayDivergedError:
                pass
            return []

    more = iter([0, 1])
    lives = started(cls=Fickle, code_version=1)
    lives.call("ask")
    with pytest.raises(ReplayDivergedError, match="asks for more values than the 0 recorded"):
        lives.start()


def test_the_end_of_the_process_is_no_reply(outcomes: list[bool | None]) -> None:
    class Ends(Tally):
        def incr(self, k: int = 1) -> int:
            for error in errors:
                raise error
            return super().incr(k)

    errors: list[BaseException] = []
    lives = started(cls=Ends, code_version=1)
    lives.call("incr")
    for error in (KeyboardInterrupt(), MemoryError(), SystemExit()):
        errors[:] = [error]
        with pytest.raises(type(error)):
            lives.start()
        assert current.get() is None, "nothing of the call is left"
    errors.clear()
    assert run_again(lives, outcomes) == [True]


def test_a_record_twice_is_told(outcomes: list[bool | None]) -> None:
    lives = started()
    lives.call("incr")
    repeat_last_record(lives)
    with pytest.raises(CheckpointCorruptedError, match="contradicts itself at position"):
        lives.start()
    assert outcomes == [True, None]


class _Once:
    """As much of an exactly-once session as running a record again takes."""

    code_version = 5

    def __init__(self) -> None:
        self.ledger = Ledger(derive_callee_key(KEY), 1)
        self.log = type("Log", (), {"epoch": 3})()
        self.ended_calls: list[bytes] = []
        self.ran: list[tuple[Any, ...]] = []

    def find_method(self, name: str) -> Any:
        return self.note if name == "note" else functools.partial(self.note) if name == "partial" else None

    def note(self, *args: Any, **kwargs: Any) -> int:
        self.ran.append((args, kwargs))
        return len(self.ran)

    def is_crash(self, error: BaseException) -> bool:
        return False


def record(method: str = "note", n: int = 1, **changes: Any) -> bytes:
    codec = EngineCodec("Tally")
    call = Lives().caller.call(KEY, method)
    given = {"code_version": 5, "values": [], "status": 0, "reply": codec.encode_outcome("note", n, None)[1]}
    given.update(changes)
    return encode_call(call.head, method, codec.encode_args((n, "a")), **given)


def test_records_that_are_not_whole_are_left_alone() -> None:
    once, whole = _Once(), record()
    reruns = Reruns(once, "Tally")
    rng = random.Random(1)
    for size in range(len(whole)):
        assert reruns.run(whole[:size], 1) is None
    assert reruns.run(whole + b"\0", 1) is None
    flags = range(4)  # kind, flags
    for at in [*flags, *(rng.randrange(4, len(whole)) for _ in range(300))]:
        changed = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
        found = reruns.run(changed, 1)
        assert found is None or once.ran, f"byte {at}"
        if found is not None:  # the head or the reply: a valid record of another call
            once.ran.clear()
            once.ledger = Ledger(derive_callee_key(KEY), 1)
            reruns = Reruns(once, "Tally")
    assert reruns.run(whole, 1) is True and once.ran == [((1, "a"), {})]


def test_records_of_other_kinds_are_left_alone() -> None:
    once = _Once()
    reruns = Reruns(once, "Tally")
    for payload in (
        record(code_version=4),
        record(values=[b"v"]),
        record(reply=None, reply_blob="call-1"),
        record("gone"),
        record("partial"),
        b"",
        b"\x80{}",
    ):
        assert reruns.run(payload, 1) is None
    assert not once.ran and len(once.ledger) == 0


def test_a_status_that_is_no_success_is_compared() -> None:
    once = _Once()
    reruns = Reruns(once, "Tally")
    assert reruns.run(record(status=1), 1) is False
    assert (reruns.result, reruns.error) == (1, None)
