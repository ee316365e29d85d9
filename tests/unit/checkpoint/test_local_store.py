"""What the local disk adds to the suite: modes, full disks, failing fsyncs, deaths at every step."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ftray._core.snapfile import fail_next_sync
from ftray.checkpoint import (
    CheckpointSaveError,
    CheckpointStoreError,
    FencedError,
    UnsupportedStoreError,
    UntrustedStoreError,
    faults,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.format import read_header
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.snapshots import boot_id
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.names import snapshot_name

from .support import KEY, Counter, call, in_child, start

N = SnapshotName
KEY_DIRECTORY = "test%2Fcounter"


def files(root: Path) -> list[str]:
    return sorted(p.name for p in (root / KEY_DIRECTORY).iterdir())


class TestFiles:
    def test_modes_under_any_umask(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            host, session = start(store=tmp_path / "a" / "b")
            call(host, session, "incr")
        finally:
            os.umask(before)
        for path in (tmp_path / "a").rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path

    def test_a_snapshot_says_whose_it_is_and_where_it_comes_from(self, tmp_path: Path) -> None:
        host, session = start(store=tmp_path, checkpoint_version=3)
        call(host, session, "incr")
        with LocalStore(str(tmp_path)).read(KEY, N(1, 1)) as file:
            said = read_header(file).fields
        names = ("class", "state_version", "key", "history", "epoch", "sequence", "boot_id")
        wanted = ["Counter", 3, KEY, session.status()["history"], 1, 1, boot_id()]
        assert [said[name] for name in names] == wanted and boot_id()

    def test_unfinished_files_are_swept(self, tmp_path: Path) -> None:
        host, session = start(store=tmp_path)
        call(host, session, "incr")
        (tmp_path / KEY_DIRECTORY / ".tmp-0000000001-000000000009-1-ab").write_bytes(b"x")
        (tmp_path / ".trash-1-ab").mkdir()
        (tmp_path / ".trash-1-ab" / "snap").write_bytes(b"x")
        (tmp_path / KEY_DIRECTORY / "notes.txt").write_text("the user's own")
        _, session = start(store=tmp_path)
        session.close(True, "exit")
        assert files(tmp_path) == [
            "epoch-0000000002.claim",
            "epoch-0000000002.seal",
            "notes.txt",
            "snap-0000000001-000000000001.ckpt",
        ]
        assert [p.name for p in tmp_path.iterdir()] == [KEY_DIRECTORY]

    def test_a_directory_of_others_is_not_trusted(self, tmp_path: Path) -> None:
        host, session = start(store=tmp_path)
        call(host, session, "incr")
        (tmp_path / KEY_DIRECTORY).chmod(0o770)
        with pytest.raises(UntrustedStoreError, match="mode 770"):
            start(store=tmp_path)
        with pytest.raises(UntrustedStoreError):
            open_store(tmp_path).load(KEY)
        store = LocalStore(str(tmp_path))
        for read in (lambda: store.read(KEY, N(1, 1)), lambda: store.read_journal(KEY, 0)):
            with pytest.raises(UntrustedStoreError):
                read()
        with pytest.raises(UntrustedStoreError):
            store.read_blob(KEY, "a")
        (tmp_path / KEY_DIRECTORY).chmod(0o700)
        if os.geteuid() == 0:
            status, told = in_child(lambda tell: self._as_nobody(tmp_path, tell))
            assert status == 0 and told == ["UntrustedStoreError"]

    @staticmethod
    def _as_nobody(root: Path, tell: Callable[[Any], None]) -> None:
        os.chmod(root, 0o777)
        os.chown(root / KEY_DIRECTORY, 12345, 12345)
        try:
            start(store=root)
        except Exception as error:
            tell(type(error).__name__)

    def test_a_link_in_place_of_a_snapshot_is_not_followed(self, tmp_path: Path) -> None:
        host, session = start(store=tmp_path)
        for _ in range(2):
            call(host, session, "incr")
        newest = tmp_path / KEY_DIRECTORY / snapshot_name(N(1, 2))
        newest.rename(tmp_path / "elsewhere")
        newest.symlink_to(tmp_path / "elsewhere")
        host, session = start(store=tmp_path)
        assert host.call(session, "value") == 1 and host.incidents[0].kind == "snapshot_skipped"

    def test_memory_file_systems_do_not_survive_power_loss(self, tmp_path: Path) -> None:
        if not os.path.ismount("/dev/shm"):
            pytest.skip("/dev/shm is not a file system of its own here")
        assert LocalStore("/dev/shm/ftray-test-none").survives == {"process"}
        with pytest.raises(UnsupportedStoreError, match="survives only: process"):
            start(store="/dev/shm/ftray-test-none", durability="power")
        assert not os.path.exists("/dev/shm/ftray-test-none")

    def test_a_file_in_place_of_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file" / "store", tmp_path / "file"):
            with pytest.raises(CheckpointStoreError, match="Not a directory"):
                start(store=path)

    def test_a_key_removed_under_a_living_actor(self, tmp_path: Path) -> None:
        host, session = start(store=tmp_path)
        call(host, session, "incr")
        LocalStore(str(tmp_path)).remove(KEY)
        with pytest.raises(FencedError, match="removed"):
            host.call(session, "checkpoint")
        assert host.fenced_by and open_store(tmp_path).keys() == []


class TestOrder:
    """What a loss of power may take is decided by what was made durable before what: so that is looked at."""

    @pytest.fixture
    def done(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """System calls in order, with the names that they are about."""
        noted: list[str] = []

        def note(name: str, about: Callable[..., str]) -> None:
            real = getattr(os, name)

            def noting(first: Any, *others: Any) -> Any:
                result = real(first, *others)
                noted.append(f"{name} {os.path.basename(about(first))}")
                return result

            monkeypatch.setattr(os, name, noting)

        note("fsync", lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
        for name in ("mkdir", "unlink", "rename"):
            note(name, os.fspath)
        return noted

    def test_a_new_directory_is_durable_before_the_next_is_made_in_it(
        self, tmp_path: Path, done: list[str]
    ) -> None:
        assert LocalStore(str(tmp_path / "a" / "b")).claim(KEY, 1, b"record")
        names = [tmp_path.name, "a", "b", KEY_DIRECTORY]
        assert done == [step for above, new in pairwise(names) for step in (f"mkdir {new}", f"fsync {above}")]

    def test_claim_and_seal_are_durable_before_older_ones_go(self, tmp_path: Path, done: list[str]) -> None:
        store = LocalStore(str(tmp_path / "store"))
        for epoch in (1, 2):
            assert store.claim(KEY, epoch, b"record")
            store.seal(KEY, epoch, b"record")
        done.clear()
        store.settle(KEY, 2)
        assert done == [
            "fsync epoch-0000000002.claim",
            "fsync epoch-0000000002.seal",
            f"fsync {KEY_DIRECTORY}",
            "fsync store",
            "unlink epoch-0000000001.seal",
            "unlink epoch-0000000001.claim",
        ]

    def test_that_a_key_is_gone_is_durable_before_its_files_go(self, tmp_path: Path, done: list[str]) -> None:
        store = LocalStore(str(tmp_path / "store"))
        assert store.claim(KEY, 1, b"record")
        done.clear()
        store.remove(KEY)
        assert done == [f"rename {KEY_DIRECTORY}", "fsync store", "unlink epoch-0000000001.claim"]


class TestMedium:
    @pytest.mark.parametrize("which", ["file", "directory"])
    def test_a_failing_fsync_is_fatal_for_that_file(self, tmp_path: Path, which: str) -> None:
        host, session = start(store=tmp_path)
        call(host, session, "incr")
        fail_next_sync(which)
        # If it were tried again, it would work.
        with pytest.raises(CheckpointSaveError, match="Input/output error"):
            host.call(session, "checkpoint")
        assert [f for f in files(tmp_path) if not f.startswith("epoch")] == [snapshot_name(N(1, 1))]
        assert host.call(session, "checkpoint") == "1-3"

    def test_a_medium_that_fails_in_restore(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        host, session = start(store=tmp_path)
        for _ in range(2):
            call(host, session, "incr")
        real = LocalStore.read

        def read(self: LocalStore, key: str, name: SnapshotName) -> Any:
            if name == N(1, 2):
                raise OSError(errno.EIO, "Input/output error")
            return real(self, key, name)

        monkeypatch.setattr(LocalStore, "read", read)
        host, session = start(store=tmp_path)
        assert host.call(session, "value") == 1 and "Input/output error" in host.incidents[0].message

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """A small file system of our own in a mount namespace of the child."""

        def body(tell: Callable[[Any], None]) -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            mount = libc.mount
            private, new_mounts = 1 << 18, 0x00020000
            if libc.unshare(new_mounts) or mount(b"none", b"/", None, (1 << 14) | private, None):
                tell(["skip", os.strerror(ctypes.get_errno())])
                return
            if mount(b"tmpfs", os.fsencode(tmp_path), b"tmpfs", 0, b"size=1m,mode=700"):
                tell(["skip", os.strerror(ctypes.get_errno())])
                return
            self._fill_up(tmp_path, tell)

        status, told = in_child(body)
        if told and told[0][0] == "skip":
            pytest.skip(f"no mount namespace of our own: {told[0][1]}")
        assert status == 0
        (kind, message, left), (restored,), (mended, state) = told
        assert kind == "save_failed" and "No space left on device" in message
        assert left == [snapshot_name(N(1, 1))]
        assert restored == 1
        assert (mended, state) == ("2-4", "ok")

    @staticmethod
    def _fill_up(root: Path, tell: Callable[[Any], None]) -> None:
        host, session = start(store=root, every=None)
        host.call(session, "incr")
        host.call(session, "checkpoint")
        session.instance.ballast = bytes(2 << 20)  # type: ignore[attr-defined]
        try:
            host.call(session, "checkpoint")
        except CheckpointSaveError:
            host.wait_for(lambda: host.incidents)
            left = [f for f in files(root) if not f.startswith("epoch")]
            tell([host.incidents[-1].kind, host.incidents[-1].message, left])
        session.close(False, "test")
        host, session = start(store=root, every=None)
        tell([host.call(session, "value")])
        host.call(session, "checkpoint")  # settled: nothing is going to be removed any more
        with (root / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass
        try:
            host.call(session, "incr")
            host.call(session, "checkpoint")
        except CheckpointSaveError:
            (root / "filler").unlink()
            tell([host.call(session, "checkpoint"), session.status()["state"]])


SNAPSHOT_STEPS = ("file.mkdir.", "file.claim.", "file.seal.", "file.settle.", "file.put.", "file.delete.")
DIE_AT = [
    p
    for p in faults.POINTS
    if p.startswith((*SNAPSHOT_STEPS, "save.", "restore.")) and p != "file.settle.swept"
]


def _history(root: Path, tell: Callable[[Any], None], arm: Callable[[], Any]) -> None:
    """Two incarnations of a counter that tell each number once the snapshot that has it is announced."""

    def work(host: Any, session: Any) -> None:
        for _ in range(3):
            n = host.call(session, "incr")
            host.call(session, "checkpoint")
            tell(n)

    with arm():
        host, session = start(store=root, every=None)
        work(host, session)
        session.close(False, "crash")
        host, session = start(store=root, every=None, incarnation=2)
        work(host, session)
        session.close(True, "exit")


@pytest.mark.parametrize("point", DIE_AT)
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_dying_at_any_step_loses_nothing_that_was_announced(tmp_path: Path, point: str, nth: int) -> None:
    root = tmp_path / "x" / "store"
    status, told = in_child(lambda tell: _history(root, tell, lambda: faults.armed(point, "exit", nth)))
    if status == 0:
        assert nth > 1 and told[-1] == 6, f"{point} was never reached"
        return
    assert status == faults.EXIT_STATUS
    announced = max(told, default=0)
    host, session = start(store=root, every=None)
    assert announced <= host.call(session, "value") <= announced + 1
    assert not [i for i in host.incidents if i.kind != "restored"]
    assert host.call(session, "incr") > announced
    saved = host.call(session, "checkpoint")
    assert all(not i.error for i in open_store(root).verify(KEY))
    assert open_store(root).list(KEY)[-1].id == saved
    assert not [f for f in files(root) if f.startswith(".tmp")]


@pytest.mark.parametrize("point", DIE_AT)
def test_an_error_at_any_step_is_told_and_loses_nothing(tmp_path: Path, point: str) -> None:
    def body(tell: Callable[[Any], None]) -> None:
        try:
            _history(tmp_path, tell, lambda: faults.armed(point, "raise"))
        except Exception as error:
            tell(type(error).__name__)

    _, told = in_child(body)
    announced = max((t for t in told if isinstance(t, int)), default=0)
    host, session = start(store=tmp_path, every=None)
    assert announced <= host.call(session, "value") <= announced + 1
    assert not [i for i in host.incidents if i.kind != "restored"]


def test_dying_while_sweeping(tmp_path: Path) -> None:
    host, session = start(store=tmp_path)
    call(host, session, "incr")
    for name in "ab":
        (tmp_path / KEY_DIRECTORY / f".tmp-0000000001-000000000009-1-{name}").write_bytes(b"x")

    def body(tell: Callable[[Any], None]) -> None:
        with faults.armed("file.settle.swept"):
            _, session = start(store=tmp_path)
            session.close(True, "exit")

    assert in_child(body)[0] == faults.EXIT_STATUS
    host, session = start(store=tmp_path)
    session.close(True, "exit")
    assert session.instance.n == 1  # type: ignore[attr-defined]
    assert not [f for f in files(tmp_path) if f.startswith(".tmp")]


def test_a_stale_writer_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor takes over at each step of the old one's save: the old one announces nothing."""
    steps = [p for p in faults.POINTS if p.startswith("file.put.") and p != "file.put.fence_rechecked"]
    for step in steps:
        root = tmp_path / step
        old_host, old = start(store=root, every=None)
        old_host.call(old, "incr")
        old_host.call(old, "checkpoint")
        old_host.call(old, "incr")
        taken: list[Any] = []

        def hit(point: str, step: str = step, root: Path = root, taken: list[Any] = taken) -> None:
            if point == step and not taken:
                taken.append(None)
                taken.append(start(store=root, every=None, incarnation=2))

        monkeypatch.setattr(faults, "active", object())
        monkeypatch.setattr(faults, "hit", hit)
        with pytest.raises(FencedError):
            old_host.call(old, "checkpoint")
        monkeypatch.undo()
        assert old_host.fenced_by, step
        host, session = taken[1]
        value = host.call(session, "value")
        assert value in (1, 2)
        host, session = start(store=root, every=None, incarnation=3)
        assert host.call(session, "value") == value, step


def test_a_kill_from_outside_at_any_time(tmp_path: Path) -> None:
    """SIGKILL between arbitrary instructions of a process that saves as fast as it can."""
    program = textwrap.dedent(
        """
        import sys
        from ftray.checkpoint import engine
        from ftray.checkpoint.testing import LocalHost
        from tests.unit.checkpoint.support import Counter
        host = LocalHost("counter")
        session = engine.open(Counter(), host, engine.spec_of(Counter, {"store": sys.argv[1], "every": None}))
        print(host.call(session, "value"), flush=True)
        while True:
            n = host.call(session, "incr")
            host.call(session, "checkpoint")
            print(n, flush=True)
        """
    )
    root = Path(__file__).parents[3]
    path = os.pathsep.join([*sys.path, str(root)])
    announced = 0
    for kill_after in (1, 2, 3, 5, 8, 13, 21, 34):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            cwd=tmp_path,
        )
        with process:
            assert process.stdout is not None
            restored = int(process.stdout.readline())
            assert announced <= restored <= announced + 1
            announced = restored
            for _ in range(kill_after):
                announced = int(process.stdout.readline())
            process.kill()
            rest = process.stdout.read().split()
            announced = int(rest[-1]) if rest else announced
    host, session = start(store=tmp_path, every=None)
    assert announced <= host.call(session, "value") <= announced + 1


def test_a_point_armed_by_the_environment(tmp_path: Path) -> None:
    program = (
        "import sys; from ftray.checkpoint.stores.local import LocalStore;"
        "LocalStore(sys.argv[1]).claim('k', 1, b'x')"
    )
    for value, expected in (("file.claim.written", 86), ("file.claim.written:exit:2", 0), ("nonsense", 1)):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / value.replace(":", "_"))],
            env={**os.environ, "FTRAY_CHECKPOINT_FAULT": value, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            cwd=tmp_path,
        )
        assert done.returncode == expected, done.stderr


class TestReading:
    def test_list_load_verify(self, tmp_path: Path) -> None:
        host, session = start(store=tmp_path)
        for _ in range(3):
            call(host, session, "incr")
        reader = open_store(tmp_path)
        assert reader.url == f"file://{tmp_path}" and reader.keys() == [KEY]
        first, second = reader.list(KEY)
        assert (first.id, second.id, second.calls, second.reason, second.class_name) == (
            "1-2",
            "1-3",
            3,
            "every",
            "Counter",
        )
        assert second.size_bytes == (tmp_path / KEY_DIRECTORY / snapshot_name(N(1, 3))).stat().st_size
        assert reader.load(KEY) == {"n": 3} and reader.load(KEY, "1-2") == {"n": 2}
        assert reader.verify(KEY) == reader.list(KEY)
        path = tmp_path / KEY_DIRECTORY / snapshot_name(N(1, 3))
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
        assert [i.error != "" for i in reader.verify(KEY)] == [False, True]
        with pytest.raises(Exception, match=r"1-3.*CRC-64|1-3.*does not match"):
            reader.load(KEY)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        reader = open_store(f"file://{tmp_path}/none")
        assert reader.keys() == [] and reader.list("k") == []
        with pytest.raises(LookupError, match="'k'"):
            reader.load("k")
        with pytest.raises(LookupError, match="4-4"):
            reader.load("k", "4-4")
        assert not (tmp_path / "none").exists()

    def test_reading_fences_nobody(self, tmp_path: Path) -> None:
        host, session = start(store=tmp_path)
        call(host, session, "incr")
        before = files(tmp_path)
        open_store(tmp_path).load(KEY)
        assert files(tmp_path) == before
        assert host.call(session, "checkpoint")

    def test_the_claim_says_who_holds_the_key(self, tmp_path: Path) -> None:
        start(store=tmp_path)
        raw = (tmp_path / KEY_DIRECTORY / "epoch-0000000001.claim").read_bytes()
        record = json.loads(raw.partition(b" ")[2])
        assert record["pid"] == os.getpid() and record["key"] == KEY and record["class"] == Counter.__name__


def test_importing_is_light(tmp_path: Path) -> None:
    program = (
        "import sys; import ftray; middle = set(sys.modules);"
        "import ftray.checkpoint; print(*sorted(set(sys.modules) - middle));"
        "ftray.checkpoint.Checkpointable; print(*sorted(set(sys.modules) - middle))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    package, base_class = (line.split() for line in done.stdout.splitlines())
    assert set(package) <= {"__future__", "ftray.checkpoint"}
    heavy = {
        "asyncio",
        "logging",
        "numpy",
        "pickle",
        "json",
        "hashlib",
        "dataclasses",
        "inspect",
        "cloudpickle",
    }
    assert not heavy & (set(package) | set(base_class))
