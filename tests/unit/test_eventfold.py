"""Records of task events become rows: in hand, over, executed, out of order, cut short."""

from __future__ import annotations

import struct

import pytest

from ftray._core.eventfold import EventTable

UNIT = struct.Struct("<BBBBIQQQQffIIII")
CLOCK = (1_000, 5_000, 2_001_000, 1_005_000)  # two ticks are a ns
FINISHED, FAILED, ARGS, QUEUED, PUSHED = 4, 5, 1, 2, 3
UNIQUE, ATTEMPT, OWNER, STATE, ERROR, RUNNER, WORKER, TEXT = 0, 1, 2, 7, 8, 9, 10, 11
SUBMITTED, PUSHED_AT, STARTED, OVER = 12, 13, 14, 15


def task(
    number: int, state: int, attempt: int = 0, started: int = 0, ran: float = -1, error: int = 0
) -> bytes:
    submitted = 3_000  # 1,000 ns after the first moment of the clock
    return UNIT.pack(1, state, error, 0, 4, number, 99, submitted, started, ran, 200, 0, 0xABCD, attempt, 7)


def running(number: int, since: int) -> bytes:
    return UNIT.pack(2, 0, 0, 0, 0, number, 0, 0, since, 0, 0, 0, 0, 0, 0)


def text(number: int, words: bytes) -> bytes:
    head = UNIT.pack(3, 0, 0, 0, len(words), number, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return head + b"".join(b"\0" + words[at : at + 63].ljust(63, b"\0") for at in range(0, len(words), 63))


def only_row(table: EventTable) -> tuple[object, ...]:
    (row,) = table.rows()
    return row


def test_a_finished_attempt_has_its_times() -> None:
    table = EventTable()
    assert table.add(task(5, FINISHED, started=5_000, ran=400), 11, CLOCK) == 0
    row = only_row(table)
    assert row[UNIQUE] == (5).to_bytes(8, "little")
    assert (row[OWNER], row[STATE], row[WORKER], row[RUNNER]) == (11, FINISHED, 0xABCD, 0)
    assert row[SUBMITTED:] == (6_000, 6_100, 7_000, 7_200)


def test_an_attempt_that_did_not_start_ends_after_its_submission() -> None:
    table = EventTable()
    table.add(task(5, FAILED, ran=800, error=2), 11, CLOCK)
    row = only_row(table)
    assert (row[STATE], row[ERROR], row[STARTED], row[OVER]) == (FAILED, 2, 0, 6_400)


def test_what_is_over_stays_so_whatever_is_told_of_it_later() -> None:
    table = EventTable()
    table.add(task(5, FINISHED, started=5_000, ran=400), 11, CLOCK)
    table.add(task(5, PUSHED), 11, CLOCK)
    assert only_row(table)[STATE] == FINISHED


def test_what_was_in_hand_may_be_over_by_now() -> None:
    table = EventTable()
    table.add(task(5, QUEUED), 11, CLOCK)
    table.add(task(5, FAILED, started=5_000, ran=400, error=20), 11, CLOCK)
    assert only_row(table)[STATE] == FAILED


def test_the_executing_process_says_that_it_runs() -> None:
    table = EventTable()
    table.add(running(5, 7_000), 22, CLOCK)
    assert table.rows() == [], "nobody describes it yet"
    table.add(task(5, PUSHED), 11, CLOCK)
    row = only_row(table)
    assert (row[STATE], row[RUNNER], row[STARTED]) == (PUSHED, 22, 8_000)


def test_a_process_that_died_in_a_call_tells_when_it_began_and_not_that_it_runs() -> None:
    table = EventTable()
    table.add(task(5, FAILED, ran=10_000, error=1), 11, CLOCK)
    table.add_running(5, 0, 7_000, 22, False, CLOCK)
    row = only_row(table)
    assert (row[RUNNER], row[STARTED], row[OVER]) == (0, 8_000, 11_000)


def test_attempts_of_a_task_are_rows_of_their_own() -> None:
    table = EventTable()
    table.add(task(5, FAILED, attempt=0, ran=1, error=1) + task(5, FINISHED, attempt=1, ran=1), 11, CLOCK)
    assert [(row[ATTEMPT], row[STATE]) for row in table.rows()] == [(0, FAILED), (1, FINISHED)]


def test_the_text_of_an_error_belongs_to_the_attempt() -> None:
    words = b"ValueError: " + b"x" * 100
    table = EventTable()
    assert table.add(text(5, words), 22, CLOCK) == 0
    table.add(task(5, FAILED, ran=1, error=20), 11, CLOCK)
    assert only_row(table)[TEXT] == words.decode()


@pytest.mark.parametrize(
    "piece",
    [
        b"\0" * 64,  # the rest of a record whose beginning was overwritten
        b"\x09" * 64,
        text(5, b"x" * 100)[:64],  # the rest is missing
        text(5, b"x" * 10_000)[:640],  # longer than any text
    ],
)
def test_units_without_sense_are_counted_and_harm_nothing(piece: bytes) -> None:
    table = EventTable()
    assert table.add(piece + task(6, FINISHED, ran=1), 11, CLOCK) > 0
    assert [row[UNIQUE] for row in table.rows()] == [(6).to_bytes(8, "little")]


def test_nonsense_times_are_not_known() -> None:
    table = EventTable()
    table.add(task(5, FINISHED, started=5_000, ran=float("nan")), 11, CLOCK)
    assert only_row(table)[OVER] == 0
