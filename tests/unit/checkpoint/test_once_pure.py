"""The decisions of exactly-once: what is refused, whose turn it is, what may leave, which records count."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.checkpoint import (
    Checkpointable,
    CheckpointCorruptedError,
    CheckpointFormatError,
    CheckpointOptionError,
    CheckpointTimeoutError,
    FencedError,
    UnsupportedStoreError,
    engine,
    nondeterministic,
    readonly,
)
from ftray.checkpoint import marks as m
from ftray.checkpoint.code import class_code_version
from ftray.checkpoint.codec import ERROR, OK, ToolkitCodec, reply_difference, split_args
from ftray.checkpoint.compare import difference
from ftray.checkpoint.journal import JournalRecord
from ftray.checkpoint.releases import NO_CEILING, Releases
from ftray.checkpoint.stores import local_files
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.testing import LocalHost, MemoryStore
from ftray.checkpoint.turns import Ticket, Turns


class TestRefusals:
    def test_a_generator_that_changes_the_state(self) -> None:
        def numbers(self: object) -> Any:
            yield 1

        async def later(self: object) -> Any:
            yield 1

        for method in (numbers, later):
            with pytest.raises(CheckpointOptionError, match=r"A\.it is a generator.*@readonly"):
                type("A", (Checkpointable,), {"it": method}, exactly_once=True)
            type("A", (Checkpointable,), {"it": readonly(method)}, exactly_once=True)

    def test_what_changes_nothing_needs_no_snapshot(self) -> None:
        with pytest.raises(CheckpointOptionError, match="look cannot be both"):

            class A(Checkpointable, exactly_once=True):
                @readonly
                @nondeterministic
                def look(self) -> None: ...

    def test_marks_are_for_methods(self) -> None:
        with pytest.raises(CheckpointOptionError, match="@nondeterministic marks methods, not 3"):
            nondeterministic(3)  # type: ignore[type-var]

    def test_after_names_methods_that_change_the_state(self) -> None:
        class A(Checkpointable, after="work"):
            def work(self) -> None: ...

            @readonly
            def look(self) -> None: ...

        with pytest.raises(CheckpointOptionError, match="'look' is marked readonly.*work"):
            engine.spec_of(A, {"after": ("work", "look")})
        with pytest.raises(CheckpointOptionError, match="'load_checkpoint' is not one"):
            engine.spec_of(A, {"after": "load_checkpoint"})

    def test_threads(self) -> None:
        class Threads(LocalHost):
            max_concurrency = 4

        class Loop(Threads):
            is_async = True

        class A(Checkpointable, exactly_once=True):
            def work(self) -> None: ...

        class Looks(Checkpointable, exactly_once=True):
            @readonly
            def look(self) -> None: ...

        store = MemoryStore(survives=("process",))
        with pytest.raises(CheckpointOptionError, match="max_concurrency=4: work of A"):
            engine.open(A(), Threads("a"), store=store)
        engine.open(Looks(), Threads("b"), store=store)
        engine.open(A(), Loop("c"), store=store)

    def test_stores_that_give_less(self) -> None:
        class A(Checkpointable, exactly_once=True):
            pass

        with pytest.raises(UnsupportedStoreError, match="durability='process'.*only: nothing"):
            engine.open(A(), LocalHost("a"), store=MemoryStore())
        with pytest.raises(UnsupportedStoreError, match="durability='power'"):
            engine.open(
                A(),
                LocalHost("a"),
                engine.spec_of(A, {"durability": "power"}),
                store=MemoryStore(survives=("process",)),
            )

    def test_network_file_systems(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class A(Checkpointable, exactly_once=True):
            pass

        monkeypatch.setattr(local_files, "file_system", lambda path: "nfs4")
        with pytest.raises(UnsupportedStoreError, match="nfs4 file system"):
            engine.open(A(), LocalHost("a"), store=LocalStore(str(tmp_path / "new")))
        assert list(tmp_path.iterdir()) == []


SOURCE = '''
class A(Checkpointable, exactly_once=True):
    """Doc."""
    step = 1
    def incr(self, k=1):
        "doc"
        return sorted(x for x in {"a", "b", "c"} if x in ("a", k))
    @staticmethod
    def helper(): return 3
    @property
    def twice(self): return self.n * 2
'''


def _class(source: str) -> type:
    names: dict[str, Any] = {"Checkpointable": Checkpointable, "readonly": readonly, "__name__": "somewhere"}
    exec(source, names)
    return names["A"]  # type: ignore[no-any-return]


class TestCodeVersion:
    def test_it_is_the_same_for_the_same_code(self) -> None:
        one = class_code_version(_class(SOURCE))
        assert one >= 1 << 63
        assert one == class_code_version(_class("\n\n\n" + SOURCE))
        assert one == class_code_version(_class(SOURCE.replace('"""Doc."""', '"""Other."""')))
        assert one == class_code_version(_class(SOURCE.replace('"doc"', '"other words"')))
        assert one == class_code_version(_class(SOURCE.replace("return", "return  # a comment\\\n ", 0)))

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("k=1", "k=2"),
            ("step = 1", "step = 2"),
            ('"b", ', ""),
            ("return 3", "return 4"),
            ("* 2", "* 3"),
            ("def helper", "def renamed"),
            ("sorted", "list"),
        ],
    )
    def test_what_counts(self, old: str, new: str) -> None:
        assert class_code_version(_class(SOURCE)) != class_code_version(_class(SOURCE.replace(old, new)))

    def test_bases_count(self) -> None:
        one, other = (type("B", (_class(s),), {}) for s in (SOURCE, SOURCE.replace("k=1", "k=2")))
        assert class_code_version(one) != class_code_version(other)

    def test_it_survives_cloudpickle_and_other_hash_seeds(self) -> None:
        import os
        import subprocess
        import sys

        cls = _class(SOURCE)
        cls.__module__ = "__main__"
        again = cloudpickle.loads(cloudpickle.dumps(cls))
        assert class_code_version(again) == class_code_version(cls)
        program = (
            "import sys, cloudpickle\nfrom ftray.checkpoint.code import class_code_version as v\n"
            "print(v(cloudpickle.loads(sys.stdin.buffer.read())))"
        )
        for seed in ("1", "2"):
            child = subprocess.run(
                [sys.executable, "-c", program],
                input=cloudpickle.dumps(cls),
                capture_output=True,
                check=True,
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            assert int(child.stdout) == class_code_version(cls)

    def test_closures_count(self) -> None:
        def decorated(k: int) -> type:
            def method(self: object) -> int:
                return k

            return type("A", (Checkpointable,), {"method": method})

        assert class_code_version(decorated(1)) == class_code_version(decorated(1))
        assert class_code_version(decorated(1)) != class_code_version(decorated(2))


class TestTurns:
    def test_one_that_changes_runs_alone_and_readers_beside_each_other(self) -> None:
        turns = Turns(lambda: False)
        r1, begun = turns.arrive(False)
        assert begun == [r1]
        r2, begun = turns.arrive(False)
        assert begun == [r2]
        w1, begun = turns.arrive(True)
        assert begun == []
        r3, begun = turns.arrive(False)
        assert begun == [], "a reader must not pass a writer that waits"
        assert turns.leave(r1) == []
        assert turns.leave(r2) == [w1]
        w2, begun = turns.arrive(True)
        assert begun == []
        assert turns.leave(w1) == [r3]
        assert turns.leave(r3) == [w2]
        assert turns.leave(w2) == [] and turns.idle

    def test_giving_up_lets_the_next_one_in(self) -> None:
        turns = Turns(lambda: False)
        turns.arrive(False)
        w1, _ = turns.arrive(True)
        r2, begun = turns.arrive(False)
        assert begun == []
        assert turns.leave(w1) == [r2]
        with pytest.raises(AssertionError, match="never came"):
            turns.leave(Ticket(99, True))

    def test_none_begins_while_the_journal_is_full_but_free_ones(self) -> None:
        full = [False]
        turns = Turns(lambda: full[0])
        w1, begun = turns.arrive(True)
        assert begun == [w1] and not turns.stopped
        full[0] = True
        r1, begun = turns.arrive(False)
        assert begun == [] and not turns.stopped, "it waits for the one that runs"
        assert turns.leave(w1) == [] and turns.stopped
        f1, begun = turns.arrive(True, free=True)
        assert begun == [f1]
        f2, begun = turns.arrive(False, free=True)
        assert begun == [] and turns.leave(f1) == [f2] and turns.stopped
        assert turns.go_on() == [] and turns.stopped
        w2, _ = turns.arrive(True)
        full[0] = False
        assert turns.go_on() == [r1] and not turns.stopped, "beside the free one that reads"
        assert turns.leave(r1) == [] and turns.leave(f2) == [w2]
        assert turns.leave(w2) == [] and turns.idle

    def test_one_that_gives_up_at_a_full_journal(self) -> None:
        turns = Turns(lambda: True)
        w1, begun = turns.arrive(True)
        f1, _ = turns.arrive(True, free=True)
        f2, _ = turns.arrive(True, free=True)
        assert begun == [] and turns.leave(w1) == [] and not turns.stopped
        assert turns.leave(f2) == [] and turns.leave(f1) == [] and turns.idle

    def test_a_free_one_keeps_its_place_while_there_is_room(self) -> None:
        turns = Turns(lambda: False)
        w1, _ = turns.arrive(True)
        w2, _ = turns.arrive(True)
        f1, _ = turns.arrive(True, free=True)
        w3, _ = turns.arrive(True)
        assert [turns.leave(w1), turns.leave(w2), turns.leave(f1)] == [[w2], [f1], [w3]]

    @given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.randoms())
    def test_all_get_their_turn(self, steps: list[tuple[bool, bool]], random: Any) -> None:
        full = [False]
        turns, inside, waiting = Turns(lambda: full[0]), set(), set()

        def begin(tickets: list[Ticket]) -> None:
            for ticket in tickets:
                waiting.discard(ticket)
                inside.add(ticket)
            assert len(inside) == 1 or not any(t.exclusive for t in inside)

        for arrives, exclusive in steps:
            if arrives or not (inside or waiting):
                full[0] = random.random() < 0.3
                ticket, begun = turns.arrive(exclusive, random.random() < 0.2)
                waiting.add(ticket)
                begin(begun)
            else:
                gone = random.choice(sorted(inside | waiting))
                inside.discard(gone)
                waiting.discard(gone)
                begin(turns.leave(gone))
            if waiting and not inside:
                assert turns.stopped and full[0], "else nobody would tell them"
        full[0] = False
        begin(turns.go_on())
        while inside:
            gone = inside.pop()
            begin(turns.leave(gone))
        assert turns.idle and not waiting


class TestReleases:
    def test_nothing_leaves_early_and_all_in_order(self) -> None:
        releases, left = Releases(), []
        for position in (3, 1, 2, 2, 5):
            releases.hold(position, lambda error, p=position: left.append((p, error)))
        releases.durable(2)
        assert left == [(1, None), (2, None), (2, None)]
        releases.durable(1)
        releases.durable(4)
        assert left[3:] == [(3, None)] and releases.held == 1
        releases.hold(4, lambda error: left.append((4, error)))
        assert left[-1] == (4, None), "what is durable leaves at once"

    def test_the_ceiling_holds_back_what_is_durable(self) -> None:
        releases, left = Releases(), []
        releases.set_ceiling(2)
        for position in (1, 2, 3):
            releases.hold(position, lambda error, p=position: left.append(p))
        releases.durable(10)
        assert left == [1, 2] and releases.position == 2
        releases.set_ceiling(NO_CEILING)
        assert left == [1, 2, 3]

    def test_after_a_failure_nothing_leaves(self) -> None:
        releases, left = Releases(), []
        releases.hold(2, left.append)
        first = FencedError("gone")
        releases.durable(1)
        releases.fail(first)
        releases.fail(ValueError("later"))
        releases.hold(3, left.append)
        releases.hold(1, left.append)
        assert left == [first, first, None], "what was durable before may still leave"
        with pytest.raises(FencedError):
            releases.wait(3, 1)

    def test_waiting(self) -> None:
        releases = Releases()
        with pytest.raises(CheckpointTimeoutError, match="position 1"):
            releases.wait(1, 0.01)
        thread = threading.Thread(target=releases.durable, args=(1,))
        thread.start()
        releases.wait(1, 10)
        thread.join()


def _records(*payloads: bytes, first: int = 1) -> list[JournalRecord]:
    return [JournalRecord(first + i, 1, p) for i, p in enumerate(payloads)]


CALL = b"\x01"
ND = m.encode(m.NONDETERMINISTIC, call_id="00")


class TestMarks:
    def test_what_follows_a_snapshot_counts(self) -> None:
        tail = m.survey(_records(CALL, CALL, first=8), 7, "h", True)
        assert (tail.last, tail.unwritten, tail.calls) == (9, None, 2)
        assert tail.counts(8) and tail.counts(9)

    def test_an_empty_tail(self) -> None:
        assert m.survey([], 7, "h", True) == m.Tail(7, [], None, 0)
        assert m.survey([], 0, "h", False) == m.Tail(0, [], None, 0)

    def test_without_a_snapshot_nothing_counts_because_nothing_was_answered(self) -> None:
        tail = m.survey(_records(CALL, CALL), 0, "h", False)
        assert (tail.void, tail.unwritten, tail.calls) == ([(1, 2)], (1, 2), 0)

    def test_nor_after_a_call_that_cannot_be_repeated(self) -> None:
        tail = m.survey(_records(CALL, ND, CALL), 0, "h", True)
        assert (tail.unwritten, tail.calls) == ((2, 3), 1)
        assert tail.counts(1) and not tail.counts(2) and not tail.counts(3)

    def test_what_was_declared_void_stays_so(self) -> None:
        void = m.encode(m.VOID, first=2, last=3)
        tail = m.survey(_records(CALL, ND, CALL, void, CALL), 0, "h", True)
        assert (tail.last, tail.unwritten, tail.calls) == (5, None, 2)
        assert [p for p in range(1, 6) if tail.counts(p)] == [1, 4, 5]

    def test_a_snapshot_that_was_durable_and_is_gone_is_told(self) -> None:
        saved = m.encode(m.SAVED, upto=2, history="h")
        with pytest.raises(CheckpointCorruptedError, match="position 2"):
            m.survey(_records(CALL, ND, saved, CALL), 0, "h", True)
        with pytest.raises(CheckpointCorruptedError, match="snapshot that was durable"):
            m.survey(_records(CALL, m.encode(m.SAVED, upto=0, history="h")), 0, "h", False)

    def test_also_if_only_the_seal_names_it(self) -> None:
        for records in ((), (CALL,)):
            with pytest.raises(CheckpointCorruptedError, match="snapshot that was durable"):
                m.survey(_records(*records, first=8), 7, "h", False, "1-2")
        assert m.survey(_records(CALL, first=8), 7, "h", True, "1-2").calls == 1

    def test_one_of_another_history_was_set_aside(self) -> None:
        other = m.encode(m.SAVED, upto=0, history="other")
        assert m.survey(_records(other, CALL), 0, "h", False).unwritten == (1, 2)

    def test_records_of_calls_are_no_marks(self) -> None:
        assert m.decode(CALL) is None
        assert m.decode(ND) == m.Mark(m.NONDETERMINISTIC, {"call_id": "00"})


class Point:
    def __init__(self, x: object) -> None:
        self.x = x


class Slotted:
    __slots__ = ("__hidden", "x")

    def __init__(self, x: object) -> None:
        self.x = self.__hidden = x


def _loop() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


SAME: list[Any] = [
    None,
    1,
    1.5,
    float("nan"),
    "x",
    b"x",
    [1, "x", (2, {3})],
    {"a": [1]},
    Point(Point(3)),
    Slotted([1]),
    ValueError("x", 1),
    np.arange(4),
    np.array([1.0, np.nan]),
    np.array([{"a": 1}], dtype=object),
    _loop(),
    range(3),
    Point,
]
OTHER: list[tuple[Any, Any, str]] = [
    (1, 2, "1 and 2"),
    (1, True, "an? int.*bool"),
    (1, 1.0, "int.*float"),
    ([1, 2], [1, 3], r"\[1\]"),
    ([1], [1, 2], "1 items and 2"),
    ({"a": 1}, {"b": 1}, "keys"),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "order"),
    ({"a": {"b": 1}}, {"a": {"b": 2}}, r"\['a'\]\['b'\]"),
    (Point(1), Point(2), r"\.x"),
    (Slotted(1), Slotted(2), "__hidden: 1 and 2"),
    (ValueError("a"), ValueError("b"), "args"),
    (ValueError("a"), KeyError("a"), "ValueError.*KeyError"),
    (np.arange(3), np.arange(4), "arrays"),
    (np.arange(3), np.arange(3.0), "arrays"),
    (np.array([1, 2]), np.array([1, 3]), "arrays"),
    ({1, 2}, {1, 3}, "and"),
    (0.0, 1.0, "0.0 and 1.0"),
]


class TestCompare:
    @pytest.mark.parametrize("index", range(len(SAME)))
    def test_copies_are_the_same(self, index: int) -> None:
        value = SAME[index]
        assert difference(value, cloudpickle.loads(cloudpickle.dumps(value))) is None

    @pytest.mark.parametrize("index", range(len(OTHER)))
    def test_the_first_difference_is_named(self, index: int) -> None:
        import re

        one, other, text = OTHER[index]
        found = difference(one, other, "reply")
        assert found is not None and re.search(text, found), found

    def test_addresses_in_errors_do_not_count(self) -> None:
        assert difference(ValueError("<a at 0x7f12>"), ValueError("<a at 0x9999>")) is None

    def test_a_comparison_that_fails_is_made_by_parts(self) -> None:
        class Odd:
            def __init__(self, x: int) -> None:
                self.x = x

            def __eq__(self, other: object) -> bool:
                raise RuntimeError("no")

            __hash__ = None  # type: ignore[assignment]

        assert difference(Odd(1), Odd(1)) is None
        assert difference(Odd(1), Odd(2)) == ".x: 1 and 2"


class TestCodec:
    def test_arguments(self) -> None:
        codec = ToolkitCodec()
        body = codec.encode_args((1, "x", [2]), {"k": 3})
        assert codec.decode_args(body) == ((1, "x", [2]), {"k": 3})
        assert codec.decode_args(codec.encode_args(())) == ((), {})
        for cut in (b"", b"\x01", b"\x01\x00\x05", b"\x01\x00" + bytes([9, 0, 0, 0, 0, 0, 0, 0]) + b"x"):
            with pytest.raises(CheckpointFormatError, match="cut short"):
                split_args(cut)

    def test_outcomes(self) -> None:
        codec = ToolkitCodec()
        status, reply = codec.encode_outcome("m", [1], None)
        assert (status, codec.decode_reply(status, reply)) == (OK, [1])
        status, reply = codec.encode_outcome("m", None, KeyError("k"))
        assert status == ERROR and repr(codec.decode_reply(status, reply)) == "KeyError('k')"
        status, reply = codec.encode_outcome("m", threading.Lock(), None)
        assert status == ERROR and "result of m" in str(codec.decode_reply(status, reply))

        class Stubborn(Exception):
            def __reduce__(self) -> Any:
                raise TypeError("not me")

        status, reply = codec.encode_outcome("m", None, Stubborn("why"))
        assert "Stubborn: why" in str(codec.decode_reply(status, reply))

    def test_replies_that_say_the_same_in_other_bytes(self) -> None:
        codec = ToolkitCodec()
        shared, apart = "".join(["long", "text"]), "".join(["long", "text"])
        one = codec.encode_outcome("m", [shared, shared], None)
        other = codec.encode_outcome("m", [shared, apart], None)
        assert one != other and reply_difference(codec, one, other) is None
        failed = codec.encode_outcome("m", None, ValueError("x"))
        assert "status 0" in (reply_difference(codec, one, failed) or "")
        found = reply_difference(codec, one, codec.encode_outcome("m", [shared, "b"], None))
        assert found is not None and "reply[1]" in found
