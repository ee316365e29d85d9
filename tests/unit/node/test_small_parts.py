"""Records, the board, strategies, and what the decision machines may import."""

from __future__ import annotations

import ast
import os
import re
import struct
from pathlib import Path

import pytest

from ftray._node import board, record
from ftray._node.frames import clip
from tests import ROOT

NODE = Path(record.__file__).parent


class Point(record.Record):
    x: int
    y: int = 0


class TestRecord:
    def test_is_a_value(self) -> None:
        assert Point(1) == Point(1, 0) == Point(x=1, y=0) != Point(2)
        assert len({Point(1), Point(1), Point(2)}) == 2
        assert repr(Point(1)) == "Point(x=1, y=0)"

    def test_does_not_change(self) -> None:
        with pytest.raises(AttributeError, match="immutable"):
            Point(1).x = 2  # type: ignore[misc]

    def test_wrong_fields_are_named(self) -> None:
        for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((), {"y": 1})):
            with pytest.raises(TypeError, match=r"Point takes the fields \('x', 'y'\)"):
                Point(*args, **kwargs)


class TestBoard:
    def test_header_and_slots(self) -> None:
        made = board.Board(slot_count=2)
        assert struct.unpack("<IIII", os.pread(made.fd, 16, 0)) == (0x46545259, 1, 2, 1024)
        slot = made.acquire(77)
        assert slot == 0 and struct.unpack("<QI", os.pread(made.fd, 12, 4096)) == (0, 77)
        os.pwrite(made.fd, struct.pack("<Q", 123), 4096)
        assert made.heartbeat_ms(slot) == 123
        assert made.acquire(78) == 1
        with pytest.raises(board.BoardFull, match="all 2 slots"):
            made.acquire(79)
        os.pwrite(made.fd, b"\xff" * 1024, 4096)
        made.release(0)
        assert made.acquire(80) == 0
        assert os.pread(made.fd, 1024, 4096) == struct.pack("<QI", 0, 80).ljust(1024, b"\0")
        made.close()

    def test_a_heartbeat_is_overdue_after_the_time_between_two(self) -> None:
        core = Path(ROOT, "_core/runtime.pyx").read_text()
        assert re.findall(r"HEARTBEAT_NS = (\d+)", core) == [str(round(board.HEARTBEAT_S * 1e9))]
        made = board.Board(slot_count=1)
        slot = made.acquire(77)
        os.pwrite(made.fd, struct.pack("<Q", 5000), 4096)
        assert made.overdue_s(slot, 5.0 + board.HEARTBEAT_S, since_s=0.0) == 0.0
        assert made.overdue_s(slot, 8.0 + board.HEARTBEAT_S, since_s=0.0) == 3.0
        assert made.overdue_s(slot, 8.0 + board.HEARTBEAT_S, since_s=7.0) == 1.0
        made.close()


def test_clip_keeps_both_ends() -> None:
    text = "start" + "x" * 100_000 + "end"
    assert clip(text).startswith("start") and clip(text).endswith("end") and len(clip(text)) <= 8000
    assert clip("short") == "short"


PURE = (
    "amounts",
    "placement",
    "scheduler",
    "strategies",
    "pool",
    "actors",
    "segments",
    "deaths",
    "logs",
    "record",
)
FORBIDDEN = {
    "os",
    "socket",
    "time",
    "random",
    "threading",
    "asyncio",
    "select",
    "signal",
    "mmap",
    "subprocess",
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", PURE)
def test_decisions_import_no_io_no_clock_no_chance(name: str) -> None:
    assert not FORBIDDEN & imports(NODE / f"{name}.py")


@pytest.mark.parametrize("path", sorted(NODE.glob("*.py")), ids=lambda path: path.name)
def test_no_file_outgrows_its_job(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 600
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, node.name
