"""`copy_wide`: every byte, once, whatever the sizes; and no thread is left."""

from __future__ import annotations

import os
import random
import threading

import pytest

from ftray._core.widecopy import copy_wide

PIECE = 4 << 20


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 12345])
def test_every_byte_is_copied_and_none_beside(size: int) -> None:
    data = random.Random(size).randbytes(size)
    memory = bytearray(b"\xaa" * (size + 2))
    threads = copy_wide(memoryview(memory)[1:-1], data)
    assert memory[1:-1] == data and memory[0] == memory[-1] == 0xAA
    assert threads == max(1, min(-(-size // PIECE), len(os.sched_getaffinity(0)), 4))


def test_no_thread_is_left() -> None:
    before = set(os.listdir("/proc/self/task"))
    copy_wide(bytearray(8 * PIECE), bytes(8 * PIECE))
    assert set(os.listdir("/proc/self/task")) <= before | {str(t.native_id) for t in threading.enumerate()}


def test_on_one_processor_one_thread_does_it() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert copy_wide(bytearray(2 * PIECE), bytes(2 * PIECE)) == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_sizes_that_differ_and_memory_that_may_not_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match="3 bytes do not fit into exactly 2"):
        copy_wide(bytearray(2), b"abc")
    with pytest.raises((BufferError, TypeError)):
        copy_wide(b"abc", b"abc")  # type: ignore[arg-type]
