"""Rings of task events and what is kept of them, in memory files that the test writes itself."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from ftray._node.event_rings import HEADER_BYTES, MAGIC, BadRing, EventRing
from ftray._node.task_events import UNIT_BYTES, Piece, Running, TaskEvents

UNITS = 8
NOTHING = Running(0, 0, 0)


class Writer:
    """A process that writes units with a number in each."""

    def __init__(self, magic: int = MAGIC, units: int = UNITS) -> None:
        self.fd = os.memfd_create("ring")
        self.head = 0
        os.ftruncate(self.fd, HEADER_BYTES + UNITS * UNIT_BYTES)
        self.header = struct.pack("<IIII", magic, 1, units, UNIT_BYTES)
        self.publish()

    def publish(self, running: tuple[int, int, int] = (0, 0, 0)) -> None:
        task, since, attempt = running
        rest = struct.pack("<QQQQ16xQQI", self.head, 77, 5, 6, task, since, attempt)
        os.pwrite(self.fd, self.header + rest, 0)

    def write(self, count: int) -> None:
        for _ in range(count):
            unit = struct.pack("<Q", self.head).ljust(UNIT_BYTES, b"\0")
            os.pwrite(self.fd, unit, HEADER_BYTES + self.head % UNITS * UNIT_BYTES)
            self.head += 1
        self.publish()

    def ring(self) -> EventRing:
        return EventRing(os.dup(self.fd), 42)


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer()
    yield made
    os.close(made.fd)


def numbers(piece: Piece) -> list[int]:
    return [struct.unpack_from("<Q", piece.records, at)[0] for at in range(0, len(piece.records), UNIT_BYTES)]


def read(ring: EventRing) -> tuple[list[int], int]:
    piece, overwritten = ring.read(100, 200)
    return numbers(piece), overwritten


def test_an_empty_ring_has_nothing(writer: Writer) -> None:
    ring = writer.ring()
    assert read(ring) == ([], 0)
    assert ring.root == 77
    ring.close()


def test_records_come_in_the_order_of_writing(writer: Writer) -> None:
    ring = writer.ring()
    writer.write(3)
    assert read(ring) == ([0, 1, 2], 0)
    assert read(ring) == ([0, 1, 2], 0), "reading takes nothing away"
    ring.close()


def test_what_may_be_half_overwritten_is_not_returned_but_counted(writer: Writer) -> None:
    ring = writer.ring()
    writer.write(11)  # 3 to 10 are in the ring, and the writer may be at up to four units after 10
    assert read(ring) == ([7, 8, 9, 10], 7)
    ring.close()


def test_both_clocks_and_the_running_call_come_along(writer: Writer) -> None:
    ring = writer.ring()
    writer.publish((9, 8, 1))
    piece, _overwritten = ring.read(100, 200)
    assert piece.process == 42
    assert piece.clock == (5, 6, 100, 200)
    assert piece.running == Running(9, 1, 8)
    ring.close()


@pytest.mark.parametrize("options", [{"magic": 1}, {"units": 0}, {"units": 1 << 30}])
def test_something_else_is_refused(options: dict[str, int]) -> None:
    made = Writer(**options)
    with pytest.raises(BadRing):
        EventRing(made.fd, 1)
    os.close(made.fd)


def test_a_ring_that_is_cut_short_is_refused_and_hurts_nobody(writer: Writer) -> None:
    ring = writer.ring()
    writer.write(UNITS)
    os.ftruncate(writer.fd, HEADER_BYTES + UNIT_BYTES)
    with pytest.raises(BadRing, match="bytes where"):
        ring.read(1, 1)
    os.ftruncate(writer.fd, 0)
    with pytest.raises(BadRing, match="header of 0 bytes"):
        ring.read(1, 1)
    ring.close()


def piece(count: int, process: int = 1, running: Running = NOTHING) -> Piece:
    records = b"".join(struct.pack("<Q", n).ljust(UNIT_BYTES, b"\0") for n in range(count))
    return Piece(process, records, (0, 0, 0, 0), running)


def test_the_oldest_pieces_go_first_and_are_counted() -> None:
    events = TaskEvents(max_tasks=10)
    for process in (1, 2, 3):
        events.add(piece(4, process))
    assert [p.process for p in events.pieces()] == [2, 3]
    assert (events.kept, events.dropped) == (8, 4)


def test_of_a_long_piece_the_newest_records_stay() -> None:
    events = TaskEvents(max_tasks=3)
    events.add(piece(5), overwritten=2)
    assert numbers(events.pieces()[0]) == [2, 3, 4]
    assert (events.kept, events.dropped) == (3, 4)


def test_nothing_is_kept_when_nothing_may_be() -> None:
    events = TaskEvents(max_tasks=0)
    events.add(piece(5))
    assert events.pieces() == []
    assert events.dropped == 5


def test_what_a_process_was_in_when_it_died_is_kept_without_records() -> None:
    events = TaskEvents(max_tasks=5)
    events.add(piece(0))
    events.add(piece(0, running=Running(7, 0, 3)))
    assert [p.running.task for p in events.pieces()] == [7]
