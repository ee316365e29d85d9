"""What is made durable on a local disk, and in which order, as the kernel is asked for it.

No test can take the power away, and an fsync that is left out is missed by nobody before that. So here a
process runs with a library before libc that notes each call.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from .journal_suite import KEY

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
DIRECTORY = "test%2Fjournal"
FIRST, SECOND = "journal-0000000001-000001", "journal-0000000002-000001"
PRELUDE = f"""
import os, sys
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.stores.local import LocalStore
KEY = {KEY!r}
store = LocalStore(sys.argv[1])
def say(word):
    with open(os.environ["SYNC_LOG"], "a") as log:
        log.write(f"main say {{word}} 0\\n")
def begin(epoch, first, durability):
    assert store.claim(KEY, epoch, b"test")
    store.fence_journals(KEY, epoch)
    return store.open_journal(KEY, epoch, first, durability=durability)
"""


class Step(NamedTuple):
    """One call of the process, or one word that it said."""

    thread: str
    what: str
    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.what} {self.name}"


Run = Callable[[str], list[Step]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER is not None
    built = tmp_path_factory.mktemp("library") / "sync_log.so"
    source = Path(__file__).with_name("sync_log.c")
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    flags = ["-shared", "-fPIC", "-O1", "-Wall"]
    subprocess.run([COMPILER, *flags, source, "-o", built, "-ldl"], check=True, env=environment)
    return built


@pytest.fixture
def run(library: Path, tmp_path: Path) -> Run:
    """Run a program over a store; returns what it did from where it said "begin"."""

    def running(program: str) -> list[Step]:
        log = tmp_path / "log"
        preload = ":".join(filter(None, (os.environ.get("LD_PRELOAD"), str(library))))  # sanitizers first
        environment = {**os.environ, "LD_PRELOAD": preload, "SYNC_LOG": str(log)}
        command = [sys.executable, "-c", PRELUDE + program, tmp_path / "store"]
        subprocess.run(command, check=True, env=environment, timeout=60)
        lines = [line.split() for line in log.read_text().splitlines()]
        steps = [Step(thread, what, name, int(size)) for thread, what, name, size in lines]
        return steps[list(map(str, steps)).index("say begin") + 1 :]

    return running


def plain(steps: list[Step]) -> list[str]:
    """What was done, without the names of unfinished files; one line for several writes in a row."""
    named = (f"{s.what} unfinished" if s.name.startswith(".tmp-") else str(s) for s in steps)
    return [text.removesuffix(".power").removesuffix(".process") for text, _ in groupby(named)]


def in_order(steps: list[str], *wanted: str) -> None:
    """Each of these was done, for the first time, after the one before."""
    found = [steps.index(step) for step in wanted]
    assert found == sorted(found), steps


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_snapshot_is_durable_before_its_name_and_its_name_before_it_is_told(
    run: Run, durability: str
) -> None:
    """Also where no loss of power need be survived: what is older goes for it."""
    done = plain(
        run(
            f"""
journal = begin(1, 1, {durability!r})
journal.append(b"record")
journal.wait(1, 10)
journal.close(10)
say("begin")
store.put(KEY, SnapshotName(1, 1), [b"one", b"two" * 1000])
say("told")
"""
        )
    )
    snapshot = "snap-0000000001-000000000001.ckpt"
    assert done == [
        "write unfinished",
        "fsync unfinished",
        f"rename {snapshot}",
        f"fsync {DIRECTORY}",
        "say told",
    ]


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_blob_is_fsynced_where_a_loss_of_power_is_survived(run: Run, durability: str) -> None:
    done = plain(
        run(
            f"""
assert store.claim(KEY, 1, b"test")
say("begin")
store.put_blob(KEY, 1, "big", [bytes(100_000)], durability={durability!r})
say("told")
"""
        )
    )
    synced = durability == "power"
    assert done == [
        "write unfinished",
        *["fsync unfinished"][:synced],
        "rename blob-0000000001-big",
        *[f"fsync {DIRECTORY}"][:synced],
        "say told",
    ]


def test_what_was_read_is_durable_before_a_successor_says_so_of_its_own(run: Run) -> None:
    """The segment of before was written with less: the records in it count now, so they must stay."""
    done = plain(
        run(
            """
journal = begin(1, 1, "process")
journal.append(b"one")
say("begin")
second = begin(2, 2, "power")
second.append(b"two")
second.wait(2, 10)
say("told")
os._exit(0)
"""
        )
    )
    done = done[done.index(f"rename {SECOND}") :]
    told = done[: done.index("say told")]
    assert [step for step in told if step != f"write {SECOND}"] == [
        f"rename {SECOND}",
        f"fsync {SECOND}",
        f"fsync {FIRST}",
        f"fsync {DIRECTORY}",
        f"fsync {SECOND}",
    ]
    assert told[-2:] == [f"write {SECOND}", f"fsync {SECOND}"], "the record is last"


def test_a_record_is_told_after_it_was_made_durable_and_not_by_who_appends(run: Run) -> None:
    done = run(
        """
journal = begin(1, 1, "power")
journal.append(b"one")
journal.wait(1, 10)
say("begin")
for position in (2, 3):
    journal.append(b"record")
    journal.wait(position, 10)
    say("told")
os._exit(0)
"""
    )
    told = [str(step) for step in done if step.what != "write"]
    assert told == [f"fsync {FIRST}.power", "say told"] * 2
    assert {step.thread for step in done if step.what != "say"} == {"other"}


def test_the_next_segment_is_whole_and_durable_before_a_record_is_in_it(run: Run) -> None:
    done = run(
        """
store.journal_first_size = store.journal_max_size = 8192
say("begin")
journal = begin(1, 1, "power")
journal.append(bytes(3000))
journal.wait(1, 10)
say("second")
journal.append(bytes(3000))
journal.wait(2, 10)
say("told")
os._exit(0)
"""
    )
    before, name = FIRST + ".power", FIRST[:-1] + "2.power"
    steps = [str(step) if not step.name.startswith(".tmp-") else f"{step.what} unfinished" for step in done]
    made = steps[steps.index(f"rename {before}") + 1 :]
    in_order(made, "write unfinished", "fsync unfinished", f"rename {name}")
    in_order(made[made.index(f"rename {name}") :], f"fsync {DIRECTORY}", f"write {name}", f"fsync {name}")
    ending = steps[steps.index("say second") :]
    in_order(ending, f"write {before}", f"fsync {before}", f"write {name}", f"fsync {name}", "say told")


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_segment_is_allocated_and_written_whole_before_it_has_its_name(run: Run, durability: str) -> None:
    """So that no record finds the disk full, or has to wait for the file system's own books."""
    size = 1 << 20
    done = run(
        f"""
store.journal_first_size = store.journal_max_size = {size}
say("begin")
begin(1, 1, {durability!r})
os._exit(0)
"""
    )
    named = [step.what for step in done].index("rename")
    taken, *written = [step for step in done[:named] if step.name.startswith(".tmp-")]
    assert (taken.what, taken.size) == ("allocate", size)
    assert {step.what for step in written} == {"write"} and sum(step.size for step in written) == size


def test_process_fsyncs_now_and_then_and_never_on_the_thread_that_appends(run: Run) -> None:
    done = run(
        """
import threading
store.journal_first_size = store.journal_max_size = 8192
store.journal_sync_interval_s = 0.001
say("begin")
journal = begin(1, 1, "process")
for position in range(1, 100):
    journal.append(bytes(500))
    if position == 50:
        while journal.stats()["synced"] < 50:
            threading.Event().wait(0.001)
say("told")
os._exit(0)
"""
    )
    synced = [step for step in done if step.what == "fsync" and step.name.startswith("journal-")]
    assert synced and {step.thread for step in synced} == {"other"}
    made = [step.name for step in done if step.what == "rename" and step.name.startswith("journal-")]
    assert len(made) > 3


def test_process_says_of_the_present_segment_that_it_is_synced_after_it_was(run: Run) -> None:
    done = run(
        """
import threading
store.journal_sync_interval_s = 0.001
say("begin")
journal = begin(1, 1, "process")
journal.append(b"record")
while journal.stats()["synced"] < 1:
    threading.Event().wait(0.001)
say("told")
os._exit(0)
"""
    )
    in_order(list(map(str, done)), f"rename {FIRST}.process", f"fsync {FIRST}.process", "say told")
