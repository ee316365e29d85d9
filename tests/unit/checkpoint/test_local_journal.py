"""What the local journal adds to the suite: deaths at every step, stale writers, failing or full media."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray._core import journal as core
from ftray.checkpoint import (
    CheckpointCorruptedError,
    CheckpointSaveError,
    FencedError,
    UnsupportedStoreError,
    faults,
)
from ftray.checkpoint.stores import local_files, local_journal
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.local_journal import check_exactly_once
from tests.helpers.sync import eventually

from .journal_suite import KEY, WAIT_S, begin, fill, payload, read, upto
from .local_journal_support import BOTH, DIRECTORY, segments, small
from .support import in_child

STEPS = [p for p in faults.POINTS if p.startswith(("file.journal.", "file.fence.", "file.blob."))]
ONLY = {
    "process": {"file.journal.marked"},
    "power": {
        "file.journal.segment_synced",
        "file.journal.segment_dir_synced",
        "file.journal.past_synced",
        "file.journal.rechecked",
    },
}


def test_every_step_of_the_core_is_a_fault_point() -> None:
    assert set(core.POINTS) <= set(faults.POINTS)
    with pytest.raises(ValueError, match="unknown"), faults.armed("file.journal.none"):
        pass


def _history(root: Path, durability: str, tell: Callable[[Any], None], arm: Callable[[], Any]) -> None:
    """Three incarnations that tell each position once it may be answered; then a blob, and a trim."""
    with arm():
        for number in range(3):
            store = small(root)
            after = number and 200 * number - 50
            epoch, journal = begin(store, durability, after)
            first = journal.last_position + 1
            for position in range(first, first + 200):
                journal.append(payload(position))
                if not position % 10:
                    journal.wait(position, WAIT_S)
                    tell(position)
            store.put_blob(KEY, epoch, f"b{number}", [b"blob", bytes(5000)])
            if number:
                store.trim_journal(KEY, after, epoch)
                store.delete_blobs(KEY, [f"b{number - 1}"], epoch)
            if number != 1:  # the middle one dies without a word
                journal.close(WAIT_S)


def _check_history(root: Path, durability: str, answered: int) -> None:
    store = LocalStore(str(root))
    after = next(a for a in (350, 150, 0) if _readable(store, a))
    positions = read(store, after)
    last = positions[-1] if positions else after
    assert positions == upto(last, after + 1) and last >= answered
    epoch, journal = begin(store, durability, after)
    assert journal.last_position >= answered
    first = journal.last_position + 1
    fill(journal, first, first + 5)
    journal.close(WAIT_S)
    assert read(LocalStore(str(root)), after) == upto(first + 5, after + 1)
    for name in store.list_blobs(KEY):
        assert store.read_blob(KEY, name) == b"blob" + bytes(5000)
    store.seal(KEY, epoch, b"")
    store.settle(KEY, epoch)
    assert not [p for p in (root / DIRECTORY).iterdir() if p.name.startswith(".tmp")]


def _readable(store: LocalStore, after: int) -> bool:
    try:
        store.read_journal(KEY, after)
    except CheckpointCorruptedError as error:
        assert "gap" in str(error), "a crash leaves no damage"
        return False
    return True


@BOTH
@pytest.mark.parametrize(
    ("point", "nth"), [(p, 1) for p in STEPS] + [(p, 3) for p in STEPS if p in core.POINTS]
)
def test_dying_at_any_step_loses_nothing_that_was_answered(
    tmp_path: Path, point: str, nth: int, durability: str
) -> None:
    status, told = in_child(
        lambda tell: _history(tmp_path, durability, tell, lambda: faults.armed(point, "exit", nth))
    )
    reached = not any(point in names for mode, names in ONLY.items() if mode != durability)
    assert status == faults.EXIT_STATUS or (status == 0 and (nth > 1 or not reached)), point
    if (tmp_path / DIRECTORY).exists():
        _check_history(tmp_path, durability, max(told, default=0))


def test_process_syncs_what_is_full_and_leaves_the_present_segment_to_the_interval(tmp_path: Path) -> None:
    store = small(tmp_path)
    store.journal_sync_interval_s = 3600.0
    _, journal = begin(store, "process")
    journal.inject("file.journal.synced", "stall")
    while len(segments(tmp_path)) < 2 or not journal.wait_stalled(0.0):
        journal.append(payload(journal.last_position + 1))
    synced = journal.stats()["synced"]
    journal.release()
    eventually(lambda: journal.stats()["synced"] > synced)
    assert 0 < journal.stats()["synced"] < journal.last_position
    journal.flush()
    eventually(lambda: journal.stats()["synced"] == journal.last_position)
    journal.close(WAIT_S)


@BOTH
@pytest.mark.parametrize("point", [p for p in STEPS if p in core.POINTS])
def test_a_failing_call_at_any_step_ends_the_journal(tmp_path: Path, point: str, durability: str) -> None:
    def body(tell: Callable[[Any], None]) -> None:
        try:
            _history(tmp_path, durability, tell, lambda: faults.armed(point, "raise"))
        except CheckpointSaveError as error:
            tell(str(error))

    status, told = in_child(body)
    assert status == 0
    failures = [t for t in told if isinstance(t, str)]
    assert all("errno 5" in text and "Input/output error" in text for text in failures)
    positions = [t for t in told if isinstance(t, int)]
    _check_history(tmp_path, durability, max(positions, default=0))


@BOTH
def test_nothing_is_durable_after_a_failed_fsync(tmp_path: Path, durability: str) -> None:
    failures: list[BaseException] = []
    failed = threading.Event()
    _, journal = begin(
        small(tmp_path), durability, on_failure=lambda error: (failures.append(error), failed.set())[0]
    )
    fill(journal, 1, 5)
    journal.inject("file.journal.synced", "raise")
    answered = journal.append(payload(6)) if durability == "process" else 5
    if durability == "power":
        journal.append(payload(6))
    journal.flush()
    assert failed.wait(WAIT_S)
    with pytest.raises(CheckpointSaveError, match="fdatasync.*errno 5"):
        journal.append(payload(7))
    with pytest.raises(CheckpointSaveError, match="fdatasync"):
        journal.wait(7, WAIT_S)
    assert journal.durable_position == answered and len(failures) == 1
    with pytest.raises(CheckpointSaveError):
        journal.close(WAIT_S)
    # What was in the page cache when the fsync failed is not taken for durable by the next one either.
    assert read(LocalStore(str(tmp_path))) == upto(answered)
    _, journal = begin(LocalStore(str(tmp_path)), durability)
    fill(journal, answered + 1, answered + 3)
    journal.close(WAIT_S)
    assert read(LocalStore(str(tmp_path))) == upto(answered + 3)


@BOTH
def test_a_slow_fsync_holds_up_nobody_but_the_answers(tmp_path: Path, durability: str) -> None:
    store = small(tmp_path)
    _, journal = begin(store, durability)
    fill(journal, 1, 3)
    journal.inject("file.journal.synced", "stall")
    position = journal.append(payload(4))
    journal.flush()
    assert journal.wait_stalled(WAIT_S)
    for position in range(5, 600):
        assert journal.append(payload(position)) == position
    if durability == "power":
        with pytest.raises(TimeoutError):
            journal.wait(4, 0.01)
        assert journal.durable_position == 3
    with pytest.raises(TimeoutError):
        journal.close(0.01)
    journal.release()
    journal.wait(599, WAIT_S)
    journal.close(WAIT_S)
    assert read(LocalStore(str(tmp_path))) == upto(599)


@pytest.mark.parametrize("step", ["half_written", "written", "synced", "rechecked"])
def test_a_takeover_inside_a_commit(tmp_path: Path, step: str) -> None:
    """The successor comes while the old writer is in the middle of making a record durable."""
    store = small(tmp_path)
    _, old = begin(store, "power")
    fill(old, 1, 3)
    old.inject(f"file.journal.{step}", "stall")
    old.append(payload(4))
    assert old.wait_stalled(WAIT_S)
    other = LocalStore(str(tmp_path))
    _, new = begin(other, "power")
    taken = new.last_position
    assert taken in (3, 4)
    fill(new, taken + 1, 6)
    old.release()
    if (
        step == "rechecked"
    ):  # it had looked before the successor came: the record is read, the answer goes out
        assert taken == 4
        old.wait(4, WAIT_S)
        old.append(payload(5))
    with pytest.raises(FencedError):
        old.wait(old.last_position, WAIT_S)
    assert old.durable_position <= taken
    with pytest.raises(FencedError):
        old.close(WAIT_S)
    assert read(LocalStore(str(tmp_path))) == upto(6)
    new.close(WAIT_S)


def _stopped_writer(root: Path, durability: str, step: str = "") -> None:
    """A writer in a child that is stopped anywhere, or at a step, overtaken, and continued."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read_end)
            _, journal = begin(small(root), durability)
            try:
                while True:
                    if step and journal.last_position == 29:
                        journal.inject(f"file.journal.{step}", "stop")
                    position = journal.append(payload(journal.last_position + 1))
                    journal.wait(position, WAIT_S)
                    os.write(write_end, b"%d\n" % position)
            except FencedError:
                os.write(write_end, b"fenced\n")
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end) as lines:
        told = [lines.readline().strip() for _ in range(29)]
        if not step:
            os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        store = LocalStore(str(root))
        _, journal = begin(store, durability)
        taken = journal.last_position
        fill(journal, taken + 1, taken + 4)
        os.kill(pid, signal.SIGCONT)
        told += [line.strip() for line in lines]
    os.waitpid(pid, 0)
    assert told[-1] == "fenced"
    answered = [int(t) for t in told[:-1]]
    assert answered[-1] <= taken, "answered, and not read by the successor"
    positions = read(LocalStore(str(root)))
    assert positions == upto(taken + 4)
    journal.close(WAIT_S)


@BOTH
def test_a_writer_that_was_stopped_and_goes_on(tmp_path: Path, durability: str) -> None:
    for number in range(5):
        _stopped_writer(tmp_path / str(number), durability)


@BOTH
@pytest.mark.parametrize("step", ["half_written", "written", "synced", "rechecked"])
def test_a_writer_that_was_stopped_inside_a_record(tmp_path: Path, durability: str, step: str) -> None:
    """Stopped while storing it, behind the store, behind the fsync, behind the look at the fence."""
    if durability == "process" and step in ("synced", "rechecked"):
        step = "written"
    _stopped_writer(tmp_path, durability, step)


@BOTH
def test_a_kill_at_any_time(tmp_path: Path, durability: str) -> None:
    """SIGKILL of a writer that appends as fast as it can, and answers what may be answered."""
    answered = 0
    for number in range(6):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.close(read_end)
                _, journal = begin(small(tmp_path), durability)
                while True:
                    for _ in range(7):
                        position = journal.append(payload(journal.last_position + 1))
                    journal.wait(position, WAIT_S)
                    os.write(write_end, b"%d\n" % position)
            finally:
                os._exit(1)
        os.close(write_end)
        with open(read_end) as lines:
            for _ in range(10 + number * 7):
                answered = int(lines.readline())
            os.kill(pid, signal.SIGKILL)
            answered = max([answered, *(int(x) for x in lines if x.endswith("\n"))])
        os.waitpid(pid, 0)
        reading = LocalStore(str(tmp_path)).read_journal(KEY, 0)
        assert reading.last_position >= answered and not reading.lost
        assert read(LocalStore(str(tmp_path))) == upto(reading.last_position)


def test_a_forked_child_appends_nothing(tmp_path: Path) -> None:
    _, journal = begin(LocalStore(str(tmp_path)), "process")
    fill(journal, 1, 2)

    def body(tell: Callable[[Any], None]) -> None:
        for action in (
            lambda: journal.append(b"x"),
            lambda: journal.wait(9, 1),
            journal.flush,
            lambda: journal.close(1),
        ):
            try:
                action()
            except CheckpointSaveError as error:
                tell("fork" in str(error))
        journal.running(b"c" * 16)
        tell(journal.holds())

    assert in_child(body) == (0, [True, True, True, True, False])
    fill(journal, 3, 3)
    journal.close(WAIT_S)
    assert read(LocalStore(str(tmp_path))) == upto(3)
    assert LocalStore(str(tmp_path)).last_running(KEY) is None


def test_a_journal_that_is_dropped_leaves_no_thread_or_descriptor(tmp_path: Path) -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before, descriptors = threads(), len(os.listdir("/proc/self/fd"))
    for number in range(3):
        _, journal = begin(LocalStore(str(tmp_path / str(number))), "power")
        fill(journal, 1, 2)
        journal.close(WAIT_S)
        del journal
    gc.collect()
    deadline = threading.Event()
    for _ in range(1000):  # the thread has said that it is done; its last instructions are still to run
        if threads() <= before and len(os.listdir("/proc/self/fd")) <= descriptors:
            break
        deadline.wait(0.01)
    assert threads() <= before and len(os.listdir("/proc/self/fd")) <= descriptors






class TestExactlyOnce:
    def test_a_local_disk_will_do(self, tmp_path: Path) -> None:
        check_exactly_once(str(tmp_path / "not" / "yet" / "there"))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "ceph"])
    def test_network_file_systems_are_refused(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local_files, "file_system", lambda path: kind)
        with pytest.raises(UnsupportedStoreError, match=kind):
            check_exactly_once(str(tmp_path))

    def test_a_probe_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.open

        def lenient(path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
            return real(path, flags & ~os.O_EXCL, mode, **rest)

        monkeypatch.setattr(os, "open", lenient)
        with pytest.raises(UnsupportedStoreError, match="twice"):
            check_exactly_once(str(tmp_path))
        assert not list(tmp_path.iterdir())

    def test_what_a_probe_has_left_that_died_is_swept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = LocalStore(str(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(local_journal, "remove_file", lambda path: None)
            store.check_exactly_once()
            store.check_exactly_once()
        old, new = tmp_path.glob(".probe-*")
        hours_ago = time.time() - 2 * 3600
        os.utime(old, (hours_ago, hours_ago))
        store.claim(KEY, 1, b"")
        store.seal(KEY, 1, b"")
        assert old.exists(), "who takes a key does not look"
        store.settle(KEY, 1)
        assert new.exists() and not old.exists()

    def test_more_than_the_medium_survives(self) -> None:
        if not os.path.ismount("/dev/shm"):
            pytest.skip("/dev/shm is not a file system of its own here")
        store = LocalStore("/dev/shm/ftray-test-journal")
        try:
            store.claim(KEY, 1, b"")
            with pytest.raises(UnsupportedStoreError, match="power"):
                store.open_journal(KEY, 1, 1, durability="power")
        finally:
            store.remove(KEY)
            os.rmdir("/dev/shm/ftray-test-journal")


@BOTH
def test_a_full_disk(tmp_path: Path, durability: str) -> None:
    """A small file system of our own in a mount namespace of the child. Never a SIGBUS."""

    def body(tell: Callable[[Any], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, (1 << 14) | (1 << 18), None):
            tell(["skip", os.strerror(ctypes.get_errno())])
            return
        if libc.mount(b"tmpfs", os.fsencode(tmp_path), b"tmpfs", 0, b"size=1m,mode=700"):
            tell(["skip", os.strerror(ctypes.get_errno())])
            return
        LocalStore.survives = frozenset({"process", "power"})  # type: ignore[assignment,misc]
        answered = 0
        _, journal = begin(LocalStore(str(tmp_path)), durability)
        try:
            while answered < 100_000:
                answered = journal.append(payload(answered + 1))
                journal.wait(answered, WAIT_S)
        except CheckpointSaveError as error:
            tell(str(error))
        tell([journal.durable_position, read(LocalStore(str(tmp_path)))[-1]])
        try:
            begin(LocalStore(str(tmp_path)), durability)[1].close(WAIT_S)
            (tmp_path / "filler").write_bytes(bytes(1 << 20))
        except (CheckpointSaveError, OSError) as error:
            tell(str(error))
        (tmp_path / "filler").unlink(missing_ok=True)
        tell(sorted(p.name for p in (tmp_path / DIRECTORY).glob(".tmp*")))

    status, told = in_child(body)
    if told and told[0][0] == "skip":
        pytest.skip(f"no mount namespace of our own: {told[0][1]}")
    assert status == 0 and len(told) == 4
    assert "No space left on device" in told[0] and "preallocate" in told[0]
    assert told[1][0] <= told[1][1] <= told[1][0] + 1
    assert "No space left" in told[2] and told[3] == []


def test_nobody_is_woken_for_positions_that_nobody_waits_for(tmp_path: Path) -> None:
    _, journal = begin(small(tmp_path), "power")
    told: list[int] = []
    reached = threading.Event()

    def tell(position: int) -> None:
        told.append(position)
        if position >= 3:
            reached.set()

    journal.wait(0, WAIT_S)
    journal.tell_from(3)
    journal.on_durable = tell
    for position in (1, 2):
        journal.append(payload(position))
        journal.wait(position, WAIT_S)
    journal.append(payload(3))
    assert reached.wait(WAIT_S)
    assert told == [3]
    journal.close(WAIT_S)


def test_what_was_durable_before_somebody_waited_for_it_is_told(tmp_path: Path) -> None:
    _, journal = begin(small(tmp_path), "power")
    told: list[int] = []
    reached = threading.Event()
    journal.tell_from(None)
    journal.on_durable = lambda position: (told.append(position), reached.set())
    journal.append(payload(1))
    journal.wait(1, WAIT_S)
    assert told == []
    journal.tell_from(1)
    assert reached.wait(WAIT_S)
    assert told == [1]
    journal.close(WAIT_S)


def test_who_wants_no_position_is_told_of_the_failure(tmp_path: Path) -> None:
    _, journal = begin(small(tmp_path), "power")
    failed = threading.Event()
    journal.tell_from(None)
    journal.on_failure = lambda _error: failed.set()
    journal.inject("file.journal.synced", "raise")
    journal.append(payload(1))
    assert failed.wait(WAIT_S)
    with pytest.raises(CheckpointSaveError):
        journal.close(WAIT_S)
