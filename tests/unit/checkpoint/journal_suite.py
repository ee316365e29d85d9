"""The conformance suite of journals and blobs. A store derives a class from `JournalSuite`:

class TestMyJournal(JournalSuite):
    durabilities = ("process", "power")   # what open_journal is asked for

    @pytest.fixture
    def store(self): return MyStore(...)

    def reopened(self, store): return MyStore(...)   # another process's view of the same data
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointCorruptedError,
    CheckpointOptionError,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
)

KEY = "test/journal"
WAIT_S = 30.0


def begin(store: Any, durability: str, after: int = 0, key: str = KEY, **callbacks: Any) -> tuple[int, Any]:
    """Claim, fence, and open the journal of the next epoch after everything that is there."""
    epoch = store.scan(key).newest_epoch + 1
    assert store.claim(key, epoch, b"test")
    store.fence_journals(key, epoch)
    last = store.read_journal(key, after).last_position
    return epoch, store.open_journal(key, epoch, last + 1, durability=durability, **callbacks)


def fill(journal: Any, first: int, last: int) -> None:
    """Append the records of these positions, and wait until they are durable."""
    for position in range(first, last + 1):
        assert journal.append(payload(position)) == position
    journal.wait(last, WAIT_S)


def payload(position: int) -> bytes:
    """The test's record of a position; of all lengths, and never only zeros."""
    return b"%d:" % position + bytes([position % 251]) * (position % 97)


def read(store: Any, after: int = 0, key: str = KEY) -> list[int]:
    """The positions that count, each with the payload that it should have."""
    found = []
    for record in store.read_journal(key, after):
        assert record.payload == payload(record.position)
        found.append(record.position)
    return found


def upto(last: int, first: int = 1) -> list[int]:
    return list(range(first, last + 1))


class JournalSuite:
    """What every store's journal does."""

    durabilities: tuple[str, ...] = ("process", "power")

    def reopened(self, store: Any) -> Any:
        raise NotImplementedError

    @pytest.fixture(params=["process", "power"])
    def durability(self, request: pytest.FixtureRequest) -> str:
        if request.param not in self.durabilities:
            pytest.skip(f"this store has no {request.param} durability")
        return str(request.param)

    @pytest.fixture
    def opened(self, store: Any, durability: str) -> Iterator[Callable[..., tuple[int, Any]]]:
        """`begin` on the store or another; all that it opens is closed at the end."""
        journals: list[Any] = []

        def opener(where: Any = None, after: int = 0, **callbacks: Any) -> tuple[int, Any]:
            epoch, journal = begin(where or store, durability, after, **callbacks)
            journals.append(journal)
            return epoch, journal

        yield opener
        for journal in journals:
            try:
                journal.close(WAIT_S)
            except CheckpointSaveError:  # fenced, or failed as the test wanted it
                pass

    # -- writing and reading -------------------------------------

    def test_a_key_without_a_journal(self, store: Any) -> None:
        reading = store.read_journal(KEY, 7)
        assert list(reading) == [] and (reading.last_position, reading.notes, reading.lost) == (7, [], [])
        assert store.last_running(KEY) is None and store.list_blobs(KEY) == []
        assert set(store.usage(KEY).values()) == {0}

    def test_what_was_appended_is_read_by_others(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        assert journal.last_position == 0
        fill(journal, 1, 300)
        assert (journal.last_position, journal.durable_position) == (300, 300)
        other = self.reopened(store)
        assert read(other) == upto(300) and read(other, 290) == upto(300, 291) and read(other, 300) == []
        assert {r.epoch for r in other.read_journal(KEY, 0)} == {1}
        assert other.usage(KEY)["journal"] > 0

    def test_parts_are_joined(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        journal.append([b"a", bytearray(b"bc"), memoryview(b"def"), b""])
        journal.append(memoryview(b"xyz"))
        journal.append(bytearray(b"q"))
        journal.wait(3, WAIT_S)
        assert [r.payload for r in self.reopened(store).read_journal(KEY, 0)] == [b"abcdef", b"xyz", b"q"]

    @pytest.mark.parametrize("size", [1, 7, 8, 9, 4096, 65_536, 300_000, 5_000_000])
    def test_records_of_all_sizes(self, store: Any, opened: Any, size: int) -> None:
        _, journal = opened()
        data = bytes(range(1, 251)) * (size // 250 + 1)
        for _ in range(3):
            journal.append(data[:size])
        journal.wait(3, WAIT_S)
        assert [r.payload for r in self.reopened(store).read_journal(KEY, 0)] == [data[:size]] * 3

    def test_records_of_zeros(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        for size in (1, 8, 5000):
            journal.append(bytes(size))
        journal.wait(3, WAIT_S)
        assert [len(r.payload) for r in self.reopened(store).read_journal(KEY, 0)] == [1, 8, 5000]

    def test_bad_records_are_refused_and_change_nothing(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        for bad in (b"", [b"", b""], bytes((64 << 20) + 1)):
            with pytest.raises(ValueError, match="64|67108864"):
                journal.append(bad)
        with pytest.raises(ValueError, match="16 bytes"):
            journal.running(b"short")
        fill(journal, 1, 1)
        assert read(self.reopened(store)) == [1]

    def test_bad_openings_are_refused(self, store: Any, opened: Any, durability: str) -> None:
        epoch, _ = opened()
        with pytest.raises(CheckpointSaveError, match="already"):
            store.open_journal(KEY, epoch, 1, durability=durability)
        with pytest.raises(ValueError, match="from 1"):
            store.open_journal(KEY, epoch, 0, durability=durability)
        with pytest.raises(FencedError):
            store.open_journal(KEY, epoch + 1, 1, durability=durability)

    def test_all_threads_may_append(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        taken: list[list[int]] = [[] for _ in range(6)]

        def worker(mine: list[int]) -> None:
            for _ in range(200):
                mine.append(journal.append(b"from a thread"))
            journal.wait(mine[-1], WAIT_S)

        threads = [threading.Thread(target=worker, args=(mine,)) for mine in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert sorted(p for mine in taken for p in mine) == upto(1200)
        assert all(mine == sorted(mine) for mine in taken)
        assert [r.position for r in self.reopened(store).read_journal(KEY, 0)] == upto(1200)

    def test_a_reader_beside_the_writer_sees_a_prefix(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        fill(journal, 1, 10)
        journal.wait(10, WAIT_S)
        done = threading.Event()
        seen: list[int] = []
        failed: list[BaseException] = []

        def reader() -> None:
            try:
                other = self.reopened(store)
                while not done.is_set():
                    seen.append(read(other)[-1])
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=reader)
        thread.start()
        fill(journal, 11, 6000)
        done.set()
        thread.join(WAIT_S)
        assert failed == [], failed
        assert seen == sorted(seen) and (not seen or seen[0] >= 10), seen

    def test_durable_is_told(self, opened: Any) -> None:
        told: list[int] = []
        _, journal = opened(on_durable=told.append)
        fill(journal, 1, 50)
        assert journal.durable_position == 50
        assert told == sorted(told) and all(p <= 50 for p in told)

    def test_waiting_for_what_was_never_appended(self, opened: Any) -> None:
        _, journal = opened()
        fill(journal, 1, 1)
        with pytest.raises(TimeoutError):
            journal.wait(2, 0.01)

    def test_a_flush_of_nothing_does_not_keep_the_next_record_waiting(self, opened: Any) -> None:
        _, journal = opened()
        fill(journal, 1, 1)
        for position in (2, 3):
            with pytest.raises(TimeoutError):
                journal.wait(position, 0.3)  # its thread sleeps for good now
            journal.flush()
            with pytest.raises(TimeoutError):
                journal.wait(position, 0.1)
            fill(journal, position, position)

    def test_closing(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        for position in upto(40):
            journal.append(payload(position))
        journal.flush()
        journal.close(WAIT_S)
        journal.close(WAIT_S)
        assert journal.durable_position == 40 and read(self.reopened(store)) == upto(40)
        with pytest.raises(CheckpointSaveError, match="closed"):
            journal.append(b"late")
        with pytest.raises(CheckpointSaveError, match="closed"):
            journal.wait(41, 1)

    # -- epochs -------------------------------------

    def test_positions_go_on_over_epochs(self, store: Any, opened: Any) -> None:
        for number in range(4):
            _, journal = opened(self.reopened(store))
            assert journal.last_position == number * 5
            fill(journal, number * 5 + 1, number * 5 + 5)
            if number % 2:
                journal.close(WAIT_S)
        records = list(store.read_journal(KEY, 3))
        assert [(r.position, r.epoch) for r in records] == [(p, (p - 1) // 5 + 1) for p in upto(20, 4)]

    def test_a_stale_writer_is_refused_and_does_not_count(self, store: Any, opened: Any) -> None:
        failures: list[BaseException] = []
        failed = threading.Event()

        def on_failure(error: BaseException) -> None:
            failures.append(error)
            failed.set()

        _, old = opened(on_failure=on_failure)
        fill(old, 1, 5)
        assert old.holds()
        other = self.reopened(store)
        _, new = opened(other)
        assert not old.holds()
        with pytest.raises(FencedError):
            old.wait(old.append(b"stale"), WAIT_S)
        for _ in range(3):
            with pytest.raises(FencedError):
                old.append(b"staler")
        with pytest.raises(FencedError):
            old.wait(6, WAIT_S)
        assert failed.wait(WAIT_S) and len(failures) == 1 and isinstance(failures[0], FencedError)
        assert old.durable_position == 5
        fill(new, 6, 9)
        assert read(self.reopened(store)) == upto(9)
        with pytest.raises(FencedError):
            store.trim_journal(KEY, 3, 1)
        with pytest.raises(FencedError):
            store.fence_journals(KEY, 1)

    def test_a_journal_without_a_record_is_fenced_as_well(self, store: Any, durability: str) -> None:
        assert store.claim(KEY, 1, b"")
        journal = store.open_journal(KEY, 1, 1, durability=durability)
        other = self.reopened(store)
        assert other.claim(KEY, 2, b"")
        other.fence_journals(KEY, 2)
        assert read(other) == []
        with pytest.raises(FencedError):
            journal.append(payload(1))
            journal.wait(1, WAIT_S)
        assert journal.durable_position == 0
        with pytest.raises(FencedError):
            journal.close(WAIT_S)

    def test_many_successors(self, store: Any, opened: Any) -> None:
        """Each one appends, is overtaken, and appends again: what it was refused is never read."""
        old: list[Any] = []
        for number in range(1, 8):
            _, journal = opened(self.reopened(store))
            for stale in old:
                with pytest.raises(FencedError):
                    stale.wait(stale.append(b"stale"), WAIT_S)
            fill(journal, number, number)
            old = [journal]
        assert read(store) == upto(7)

    def test_an_incarnation_that_ends_before_it_has_a_journal(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        fill(journal, 1, 3)
        assert store.claim(KEY, 2, b"dies at once")
        with pytest.raises(FencedError):
            journal.wait(journal.append(payload(4)), WAIT_S)
        _, journal = opened(self.reopened(store))
        fill(journal, journal.last_position + 1, 6)
        assert read(store) == upto(6)

    def test_a_fresh_history_cuts_the_old_one(self, store: Any, opened: Any, durability: str) -> None:
        """Going back to position 2: the records after it belong to nobody any more."""
        _, journal = opened()
        fill(journal, 1, 9)
        journal.close(WAIT_S)
        assert store.claim(KEY, 2, b"")
        store.fence_journals(KEY, 2)
        journal = store.open_journal(KEY, 2, 3, durability=durability)
        fill(journal, 3, 4)
        journal.close(WAIT_S)
        records = list(store.read_journal(KEY, 0))
        assert [(r.position, r.epoch) for r in records] == [(1, 1), (2, 1), (3, 2), (4, 2)]

    def test_a_gap_raises(self, store: Any, opened: Any, durability: str) -> None:
        _, journal = opened()
        fill(journal, 1, 5)
        journal.close(WAIT_S)
        assert store.claim(KEY, 2, b"")
        store.fence_journals(KEY, 2)
        journal = store.open_journal(KEY, 2, 9, durability=durability)  # a snapshot had 8
        fill(journal, 9, 12)
        assert read(store, 8) == upto(12, 9)
        with pytest.raises(CheckpointCorruptedError, match="6"):
            store.read_journal(KEY, 3)
        journal.close(WAIT_S)

    def test_trim(self, store: Any, opened: Any) -> None:
        _, first = opened()
        fill(first, 1, 20)
        epoch, second = opened(self.reopened(store))
        fill(second, 21, 30)
        store.trim_journal(KEY, 20, epoch)
        assert read(store, 20) == upto(30, 21) and read(store, 25) == upto(30, 26)
        with pytest.raises(CheckpointCorruptedError, match="gap"):
            store.read_journal(KEY, 5)
        store.trim_journal(KEY, 30, epoch)
        fill(second, 31, 33)
        assert read(store, 30) == upto(33, 31)
        _, third = opened(self.reopened(store), after=30)
        fill(third, 34, 35)
        assert read(store, 30) == upto(35, 31)

    def test_removing_a_key_ends_its_journal(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        fill(journal, 1, 3)
        store.remove(KEY)
        with pytest.raises(FencedError):
            journal.wait(journal.append(b"x"), WAIT_S)
        assert list(store.read_journal(KEY, 0)) == []

    # -- which call ran -------------------------------------

    def test_deaths_in_a_row(self, store: Any, opened: Any) -> None:
        poison, other = b"p" * 16, b"o" * 16

        def life(*calls: bytes | None) -> Any:
            _, journal = opened(self.reopened(store))
            for call in calls:
                journal.running(call)
            return store.last_running(KEY)

        assert life() is None
        assert life(other, None) is None
        assert life(poison) == (poison, 1)
        assert life(other, None, poison) == (poison, 2)
        assert life() == (poison, 2), "a death between calls is not one of this call"
        assert life(poison) == (poison, 3)
        assert life(poison, None) is None, "it has ended"
        assert life(other) == (other, 1)
        assert life(poison) == (poison, 1)

    def test_how_far_a_recovery_is(self, store: Any, opened: Any) -> None:
        assert store.read_watch(KEY) is None
        epoch, _ = opened()
        file = store.open_watch(KEY, epoch)
        for data in (b"one", b"two"):
            file.write(data)
            assert self.reopened(store).read_watch(KEY) == data
        if store.notes_each_call:
            file.write(b"o", 1)
            assert self.reopened(store).read_watch(KEY) == b"too"
            file.write(b"two")
        file.close()
        epoch, _ = opened(self.reopened(store))
        assert store.read_watch(KEY) == b"two", "of the newest that has written one"
        file = self.reopened(store).open_watch(KEY, epoch)
        file.write(b"new")
        file.close()
        assert store.read_watch(KEY) == b"new"
        store.seal(KEY, epoch, b"a seal")
        store.settle(KEY, epoch)
        assert self.reopened(store).read_watch(KEY) == b"new"

    def test_records_that_are_held_back(self, store: Any, opened: Any) -> None:
        _, journal = opened()
        fill(journal, 1, 2)
        if not journal.hold_back(4):
            fill(journal, 3, 5)  # each is written when it is appended
            assert journal.waiting_bytes == 0
            assert journal.hold_back(None) is False
            return
        fill(journal, 3, 3)
        for position in (4, 5, 6):
            assert journal.append(payload(position)) == position
        with pytest.raises(CheckpointTimeoutError):
            journal.wait(4, 0.05)
        assert read(self.reopened(store)) == upto(3) and journal.durable_position == 3
        assert journal.waiting_bytes == sum(len(payload(position)) for position in (4, 5, 6))
        journal.hold_back(6)
        journal.wait(5, WAIT_S)
        assert journal.waiting_bytes == len(payload(6))
        assert read(self.reopened(store)) == upto(5)
        journal.hold_back(None)
        journal.wait(6, WAIT_S)
        fill(journal, 7, 9)
        assert read(self.reopened(store)) == upto(9) and journal.waiting_bytes == 0

    def test_a_journal_that_is_made_to_fail(self, store: Any, opened: Any) -> None:
        failed = threading.Event()
        _, journal = opened(on_failure=lambda _: failed.set())
        fill(journal, 1, 2)
        error = CheckpointSaveError("as asked")
        journal.fail(error)
        assert failed.wait(WAIT_S)
        for action in (lambda: journal.append(payload(3)), lambda: journal.wait(3, WAIT_S)):
            with pytest.raises(CheckpointSaveError, match="as asked"):
                action()
        assert read(self.reopened(store)) == upto(2)

    # -- blobs -------------------------------------

    def test_blobs(self, store: Any) -> None:
        assert store.claim(KEY, 1, b"")
        store.put_blob(KEY, 1, "one", [b"abc", bytearray(b"def"), memoryview(b"")])
        store.put_blob(KEY, 1, "two-2_x", [bytes(100_000)], durability="process")
        store.put_blob(KEY, 1, "empty", [])
        other = self.reopened(store)
        assert other.read_blob(KEY, "one") == b"abcdef" and other.read_blob(KEY, "empty") == b""
        assert other.read_blob(KEY, "two-2_x") == bytes(100_000)
        assert other.list_blobs(KEY) == ["empty", "one", "two-2_x"]
        assert other.usage(KEY)["blobs"] > 100_000
        with pytest.raises(CheckpointSaveError, match="exists already"):
            store.put_blob(KEY, 1, "one", [b"other"])
        assert store.read_blob(KEY, "one") == b"abcdef"
        for bad in ("", "a/b", "..", "x" * 101, "ü", "a\n"):
            with pytest.raises(CheckpointOptionError, match="100"):
                store.put_blob(KEY, 1, bad, [b"x"])
        with pytest.raises(FileNotFoundError):
            store.read_blob(KEY, "none")
        assert other.claim(KEY, 2, b"")
        for stale in (
            lambda: store.put_blob(KEY, 1, "late", [b"x"]),
            lambda: store.delete_blobs(KEY, ["one"], 1),
        ):
            with pytest.raises(FencedError):
                stale()
        other.delete_blobs(KEY, ["one", "none"], 2)
        assert other.list_blobs(KEY) == ["empty", "two-2_x"]
