"""What actors of this engine left in a store once is read for ever: their program, run again, goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ftray import checkpoint
from ftray._core.records import decode_record
from ftray.checkpoint.stores.local import LocalStore
from tests.unit.checkpoint import golden_support

CALL = 1
ARCHIVE = "engine-v1.zip"
PROGRAM = Path(__file__).with_name("golden_program.py")
PRINTED = {
    "add": [10, 15],
    "by key": 22,
    "error": "ValueError: overdrawn by 2",
    "both": [70_020, 70_000],
    "drawn": 915_419_257,
    "move": [2, 70_054, 591_805_445],
    "gathered": [283_605_435, 269_364_330],
    "last": [[2, 70_054, 591_805_445], [161_334_555, 71_063]],
    "value": 71_063,
    "moves": [[2, 70_054, 591_805_445], [161_334_555, 71_063]],
    "outcome": 22,
}
"""Of the numbers that were drawn by chance only the store knows."""


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(golden_support.local_store(ARCHIVE, tmp_path / "store")._root)


@pytest.mark.usefixtures("no_runtime")
def test_its_program_goes_on(store: str) -> None:
    for _ in range(2):  # and again from what the second run has left
        command = [sys.executable, str(PROGRAM), store, "again"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == PRINTED


def test_it_is_read_from_outside(store: str) -> None:
    reader = checkpoint.open(store)
    assert reader.keys() == ["golden/account", "golden/bank", "golden/clerk"]
    found = reader.outcome("golden/account", call_key="order-1")
    # Whether its process still lives cannot be told here, and need not: it has run.
    assert (found.state, found.kept, found.value) == ("committed", True, 22)
    for key, records, calls in (("account", 23, 11), ("bank", 9, 1), ("clerk", 6, 1)):
        key = f"golden/{key}"
        journal = reader.journal(key)
        assert (journal.records, journal.calls, journal.behind) == (records, calls, records)
        assert not journal.error and journal.epochs == [1]
        assert [(s.id, s.reason) for s in reader.verify(key)] == [("1-1", "base")]
        holder = reader.describe(key).holder
        assert holder is not None and (holder["host"], holder["lives"]) == (golden_support.HOST, None)


def test_the_kinds_of_what_a_method_got(store: str) -> None:
    """A handle from `get_actor`; what was ready in `wait`; values of `get`, and of `await`."""

    def kinds(key: str) -> dict[int, list[int]]:
        records = {
            r.position: r.payload for r in LocalStore(store).read_journal(key, 0) if r.payload[0] == CALL
        }
        return {at: [value[0] for value in decode_record(data).values] for at, data in records.items()}

    assert kinds("golden/bank") == {6: [19, 17, 16]}
    assert kinds("golden/clerk") == {6: [19, 18, 18]}
    assert [values for values in kinds("golden/account").values() if values] == [[0]] * 5
