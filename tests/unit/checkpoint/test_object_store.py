"""What object stores add to the suite: deaths at every step, damage, probing, sweeping."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointCorruptedError,
    CheckpointFormatError,
    CheckpointSaveError,
    CheckpointStoreError,
    FencedError,
    UnsupportedStoreError,
    export,
    faults,
    testing,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.stores import names
from ftray.checkpoint.stores.fsspec_objects import FsspecObjects
from ftray.checkpoint.stores.object_file import ObjectFile
from ftray.checkpoint.stores.object_store import BEST_EFFORT, CONDITIONAL, ObjectStore
from ftray.checkpoint.stores.objects import Objects, Retry, TransientStoreError, pack, unpack
from ftray.checkpoint.stores.s3 import S3Objects
from tests.helpers.s3_server import S3Server

from .object_support import FAST, KEY, Crash, check_whole, live, open_log, save, small_objects

N = SnapshotName
DIRECTORY = "test%2Fcounter"
SNAPSHOT_STEPS = ("object.claim.", "object.seal.", "object.settle.", "object.put.", "object.delete.")
STEPS = [p for p in faults.POINTS if p.startswith(SNAPSHOT_STEPS)] + ["restore.claimed", "restore.verified"]
_numbers = itertools.count()


def memory_medium(place: str = "") -> FsspecObjects:
    path = place or f"place-{next(_numbers)}"
    return FsspecObjects(f"memory://{path}", "memory", path, frozenset())


def s3_medium(server: S3Server) -> S3Objects:
    bucket = server.new_bucket()
    return S3Objects(f"s3://{bucket}/p", bucket, "p", {"endpoint_url": server.endpoint})


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    import fsspec

    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["memory", "s3"])
def medium(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        return memory_medium()
    return s3_medium(request.getfixturevalue("s3"))


# -- deaths and errors at every step


@pytest.mark.parametrize("point", STEPS)
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_dying_at_any_step_loses_nothing_that_was_announced(point: str, nth: int) -> None:
    _die(memory_medium(), point, nth)


@pytest.mark.parametrize(
    "point", ["claim.created", "seal.created", "put.blob_written", "delete.manifest_gone"]
)
def test_dying_with_s3(s3: S3Server, point: str) -> None:
    _die(s3_medium(s3), f"object.{point}", 2)


def _die(medium: Any, point: str, nth: int) -> None:
    told: list[int] = []
    try:
        with faults.armed(point, Crash(), nth):
            live(small_objects(medium), told)
            live(small_objects(medium), told)
    except Crash:
        pass
    else:
        assert nth > 1 and told[-1] == 6, f"{point} was never reached"
    check_whole(small_objects(medium), told)


@pytest.mark.parametrize("point", [p for p in STEPS if p.startswith("object.")])
def test_an_error_at_any_step_is_told_and_loses_nothing(point: str) -> None:
    told: list[int] = []
    medium = memory_medium()
    with (
        faults.armed(point, CheckpointStoreError("as armed")),
        pytest.raises((CheckpointSaveError, CheckpointStoreError), match="as armed"),
    ):
        live(small_objects(medium), told)
        live(small_objects(medium), told)
    check_whole(small_objects(medium), told)


@pytest.mark.parametrize(
    "step", [p for p in STEPS if p.startswith("object.put.") and p != "object.put.fence_rechecked"]
)
def test_a_stale_writer_at_every_step_announces_nothing(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    medium = memory_medium()
    old, _, _ = open_log(small_objects(medium))
    save(old, 1)
    taken: list[int] = []

    def hit(point: str) -> None:
        if point == step and not taken:
            taken.append(-1)
            _, taken[0], _ = open_log(small_objects(medium))

    with monkeypatch.context() as patch:
        patch.setattr(faults, "active", object())
        patch.setattr(faults, "hit", hit)
        with pytest.raises(FencedError):
            save(old, 2)
    assert taken[0] in (1, 2)
    _, n, skipped = open_log(small_objects(medium))
    assert n == taken[0] and not skipped


# -- damage


def test_every_damaged_byte_of_an_object_is_found() -> None:
    raw = pack("seal", b"payload", "token", more=1)
    assert unpack(raw, "seal")[1] == b"payload"
    for index in range(len(raw)):
        changed = bytearray(raw)
        changed[index] ^= 0x10
        with pytest.raises(CheckpointFormatError):
            unpack(bytes(changed), "seal")
    for length in range(len(raw)):
        with pytest.raises(CheckpointFormatError):
            unpack(raw[:length], "seal")
    with pytest.raises(CheckpointFormatError, match="'seal', not a 'claim'"):
        unpack(raw, "claim")


class TestDamage:
    @pytest.fixture
    def store(self) -> ObjectStore:
        store = small_objects(memory_medium())
        live(store, [])
        return store

    def _blob(self, store: ObjectStore) -> str:
        return f"{DIRECTORY}/blob/" + store.objects.list(f"{DIRECTORY}/blob")[-1].name

    @pytest.mark.parametrize("what", ["truncated", "flipped", "missing", "manifest"])
    def test_the_one_before_is_restored_and_that_is_told(self, store: ObjectStore, what: str) -> None:
        blob, manifest = self._blob(store), f"{DIRECTORY}/{names.snapshot_name(N(1, 3))}"
        data = store.objects.read(blob)
        if what == "truncated":
            store.objects.write(blob, data[:-7])
        elif what == "flipped":
            store.objects.write(blob, data[:900] + bytes([data[900] ^ 1]) + data[901:])
        elif what == "missing":
            store.objects.delete([blob])
        else:
            store.objects.write(manifest, store.objects.read(manifest)[:-9])
        expected = {"truncated": "truncated", "flipped": "CRC-64", "missing": "what it names is not"}
        _, n, skipped = open_log(store)
        assert n == 2 and len(skipped) == 1 and skipped[0].startswith("1-3: ")
        assert expected.get(what, "bytes where") in skipped[0] or "truncated" in skipped[0]

    def test_a_manifest_that_is_gone_is_no_snapshot(self, store: ObjectStore) -> None:
        store.objects.delete([f"{DIRECTORY}/{names.snapshot_name(N(1, 3))}"])
        _, n, skipped = open_log(store)
        assert (n, skipped) == (2, [])

    def test_none_verifies(self, store: ObjectStore) -> None:
        store.objects.delete([e.name for e in store.objects.walk(f"{DIRECTORY}/blob")])
        with pytest.raises(CheckpointCorruptedError, match=r"1-3.*1-2"):
            open_log(store)

    def test_a_medium_that_fails_is_no_damage(self, store: ObjectStore) -> None:
        """To restore an older snapshot because the newest cannot be read just now would lose effects."""
        broken = ObjectStore(_Broken(store.objects.medium, "snap-0000000001-000000000003.ckpt"), FAST)
        with pytest.raises(CheckpointStoreError, match=r"'test/counter' in memory://.*as told"):
            open_log(broken)
        assert open_log(store)[1] == 3


class _Wrapped:
    def __init__(self, medium: Any) -> None:
        self._medium = medium

    def __getattr__(self, name: str) -> Any:
        return getattr(self._medium, name)


class _Broken(_Wrapped):
    """Reads of one object time out for ever."""

    def __init__(self, medium: Any, ending: str) -> None:
        super().__init__(medium)
        self._ending = ending

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        if name.endswith(self._ending):
            raise TransientStoreError("as told")
        data: bytes = self._medium.read(name, start, end)
        return data


# -- exclusive creation


class _Unconditional(_Wrapped):
    """Creates whatever is there, as a server does that ignores conditions."""

    def create(self, name: str, data: bytes) -> bool:
        self._medium.write(name, data)
        return True


class _NoCreation(_Wrapped):
    def create(self, name: str, data: bytes) -> bool:
        raise NotImplementedError("no exclusive creation")


class TestFencing:
    def test_it_is_proven_where_it_works(self, medium: Any) -> None:
        store = ObjectStore(medium)
        assert store.fencing("k") == CONDITIONAL
        store.require_fencing("k")
        assert medium.walk("k") == []
        other = ObjectStore(medium)
        other.check_exactly_once()
        assert other._conditional and medium.directories() == []

    @pytest.mark.parametrize("kind", [_Unconditional, _NoCreation])
    def test_without_it_snapshots_only(self, kind: Any) -> None:
        medium = kind(memory_medium())
        store = ObjectStore(medium, FAST)
        assert store.fencing(KEY) == BEST_EFFORT
        with pytest.raises(UnsupportedStoreError, match=r'memory://.*or allow fencing="lease"'):
            store.require_fencing(KEY)
        with pytest.raises(UnsupportedStoreError, match="exactly_once needs"):
            ObjectStore(medium, FAST).check_exactly_once()
        told: list[int] = []
        live(store, told)
        live(ObjectStore(medium, FAST), told)
        assert check_whole(ObjectStore(medium, FAST), told) == 6

    def test_of_two_that_claim_at_once_without_it_the_last_holds_the_key(self) -> None:
        medium = _Unconditional(memory_medium())
        first = ObjectStore(medium, FAST)
        assert first.claim(KEY, 1, b"first")
        medium._medium.write(f"{DIRECTORY}/{names.claim_name(1)}", pack("claim", b"second", "other"))
        with pytest.raises(FencedError, match="superseded"):
            first.put(KEY, N(1, 1), [b"x"])

    def test_a_probe_that_cannot_be_made_is_no_proof(self) -> None:
        class Failing(_Wrapped):
            def create(self, name: str, data: bytes) -> bool:
                raise CheckpointStoreError("not allowed to")

        store = ObjectStore(Failing(memory_medium()), FAST)
        for action in (lambda: store.require_fencing("k"), lambda: store.claim("k", 1, b"")):
            with pytest.raises(CheckpointSaveError, match=r"'k' in memory://.*not allowed to"):
                action()

    def test_one_reads_without_a_probe(self) -> None:
        medium = memory_medium()
        live(small_objects(medium), [])
        store = ObjectStore(_NoCreation(medium))
        assert open_store(store).load(KEY)["n"] == 3
        assert store._conditional is None


# -- sweeping


def test_what_the_dead_left_unfinished_is_swept(medium: Any) -> None:
    store = small_objects(medium)
    live(store, [])
    old_blob = f"{DIRECTORY}/{names.snapshot_blob_name(N(1, 9), 'ab')}"
    own_blob = f"{DIRECTORY}/{names.snapshot_blob_name(N(2, 9), 'ab')}"
    probes = [f"{DIRECTORY}/probe-{int(time.time()) - age:010}-ab" for age in (10, 7200)]
    for name in (old_blob, own_blob, *probes, f"{DIRECTORY}/notes.txt"):
        store.objects.write(name, b"x")
    log, _, _ = open_log(small_objects(medium))
    log.settle()
    left = {entry.name for entry in medium.walk(DIRECTORY)}
    assert not left & {old_blob, probes[1]}
    assert left >= {own_blob, probes[0], f"{DIRECTORY}/notes.txt"}


def test_unfinished_uploads_of_earlier_epochs_are_given_up(s3: S3Server) -> None:
    bucket = s3.new_bucket()
    medium = S3Objects(f"s3://{bucket}", bucket, "", {"endpoint_url": s3.endpoint})
    store = small_objects(medium)
    live(store, [])
    for name in (N(1, 9), N(2, 9)):
        key = f"{DIRECTORY}/{names.snapshot_blob_name(name, 'ab')}"
        medium._ask("create_multipart_upload", key, Key=key)
    log, _, _ = open_log(store)
    log.settle()
    assert [u.name for u in medium.uploads(DIRECTORY)] == [f"{DIRECTORY}/blob/snap-{2:010}-{9:012}-ab"]
    store.remove(KEY)
    assert medium.uploads(DIRECTORY) == [] and medium.walk(DIRECTORY) == []


# -- large objects


def test_large_reads_come_in_several_requests_and_in_order(
    medium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftray.checkpoint.stores.object_file._CHUNK", 1000)
    data = bytes(range(256)) * 30
    objects = Objects(medium)
    objects.write("d/x", data)
    file = ObjectFile(objects, "d/x", len(data))
    assert file.seek(0, 2) == len(data) and file.seek(5) == 5
    assert file.read(7) == data[5:12]
    assert file.seek(-3, 1) == 9
    whole = bytearray(len(data) - 9)
    view, done = memoryview(whole), 0
    while done < len(whole):
        done += file.readinto(view[done:])
    assert whole == data[9:] and file.read(1) == b""
    longer = ObjectFile(objects, "d/x", len(data) + 5000)
    longer.seek(len(data) - 100)
    assert longer.read(5000) == data[-100:], "an object shorter than it should be reads short"


def test_snapshots_larger_than_one_request_are_verified_and_exported(
    medium: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ftray.checkpoint.stores.object_file._CHUNK", 1000)
    monkeypatch.setattr("ftray.checkpoint.format._CHUNK", 300)
    store = small_objects(medium)
    live(store, [], saves=1)
    (found,) = open_store(store).verify(KEY)
    assert found.error == "" and found.size_bytes > 3000
    assert export(store, KEY, tmp_path / "s").size_bytes > found.size_bytes


def test_a_state_beyond_the_limit_of_its_store() -> None:
    medium = memory_medium()
    medium.limit_bytes = 1000
    log, _, _ = open_log(ObjectStore(medium, FAST))
    with pytest.raises(CheckpointSaveError, match=r"at most 1000 bytes each. Use a file://"):
        save(log, 1)
    assert medium.uploads("x") == []


def test_a_seal_or_a_settling_that_comes_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor may have listed the seals before this one was there."""
    medium = memory_medium()
    store, other = small_objects(medium), small_objects(medium)
    assert store.claim(KEY, 1, b"")
    create = store.objects.create

    def late(name: str, data: bytes) -> bool:
        created = create(name, data)
        assert other.claim(KEY, 2, b"")
        return created

    monkeypatch.setattr(store.objects, "create", late)
    with pytest.raises(FencedError):
        store.seal(KEY, 1, b"{}")
    with pytest.raises(FencedError):
        store.settle(KEY, 1)


def test_what_no_manifest_will_name_does_not_stay() -> None:
    class Half(_Wrapped):
        def upload(self, name: str, parts: Sequence[Any], retry: Any) -> None:
            self._medium.write(name, b"half of it")
            raise CheckpointStoreError("refused")

    medium = memory_medium()
    log, _, _ = open_log(small_objects(Half(medium)))
    with pytest.raises(CheckpointSaveError, match="refused"):
        save(log, 1)
    assert medium.list(f"{DIRECTORY}/blob") == []


def test_a_stream_is_written_when_it_was_closed_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    medium = memory_medium()
    log, _, _ = open_log(small_objects(medium))

    class NeverWhole(io.BytesIO):
        def close(self) -> None:
            super().close()
            raise PermissionError("what was written last was refused")

    with monkeypatch.context() as patch:
        patch.setattr(medium._fs, "open", lambda *_: NeverWhole())
        with pytest.raises(CheckpointSaveError, match="what was written last was refused"):
            save(log, 1)
    assert open_store(small_objects(medium)).list(KEY) == []


# -- retries


class _Times(_Wrapped):
    """Fails so many times, then works."""

    def __init__(self, medium: Any, times: int) -> None:
        super().__init__(medium)
        self.times = times

    def delete(self, names: Sequence[str]) -> None:
        self.times -= 1
        if self.times >= 0:
            raise TransientStoreError("SlowDown")


def test_two_that_fail_together_do_not_come_back_together() -> None:
    slept: list[list[float]] = [[], []]
    for pauses in slept:
        Objects(_Times(memory_medium(), 7), Retry(8, 0.1, 1.0), pauses.append).delete(["x"])
    assert all(one != other for one, other in zip(*slept, strict=True))


def test_pauses_grow_are_spread_and_bounded() -> None:
    slept: list[float] = []
    objects = Objects(_Times(memory_medium(), 7), Retry(8, 0.1, 1.0), slept.append)
    objects.delete(["x"])
    assert len(slept) == 7 == objects.retries
    for pause_s, longest_s in zip(slept, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0), strict=True):
        assert longest_s / 2 <= pause_s < longest_s
    with pytest.raises(CheckpointStoreError, match=r"SlowDown \(given up after 8 attempts\)"):
        Objects(_Times(memory_medium(), 8), Retry(8, 0.1, 1.0), slept.append).delete(["x"])
    assert len(slept) == 14


def test_an_actor_over_a_failing_store_goes_on_and_says_so() -> None:
    """The whole toolkit: the save fails, is told, is tried again, and then the state is `ok`."""
    from .support import Counter, start

    medium = memory_medium()
    times = _Times(medium, 0)
    host, session = start(Counter, store=ObjectStore(times, Retry(2, 0.001, 0.001)), every=None)
    host.call(session, "incr")
    times.times = 10**9
    with pytest.raises(CheckpointSaveError, match="SlowDown"):
        for _ in range(4):  # once there is something to delete
            host.call(session, "checkpoint")
            if session.status()["failures"]:
                raise CheckpointSaveError(session.status()["last_error"])
    assert [i.kind for i in host.incidents][-1:] == ["save_failed"]
    times.times = 0
    host.call(session, "checkpoint")
    assert session.status()["last_error"] is None
    assert isinstance(host, testing.LocalHost)
