"""What journals of objects add to the suite: late requests, lost answers, deaths at every step, trimming."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ftray.checkpoint import (
    Checkpointable,
    CheckpointCorruptedError,
    CheckpointFormatError,
    CheckpointSaveError,
    FencedError,
    UnsupportedStoreError,
    faults,
    readonly,
    testing,
)
from ftray.checkpoint.stores import object_journal
from ftray.checkpoint.stores import s3 as s3_module
from ftray.checkpoint.stores.fsspec_objects import FsspecObjects
from ftray.checkpoint.stores.object_journal import object_name, pack_records
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.checkpoint.stores.objects import Retry, TransientStoreError
from ftray.checkpoint.stores.s3 import S3Objects
from tests.helpers import faulty_proxy
from tests.helpers.faulty_proxy import FaultyProxy, Late, status
from tests.helpers.s3_server import S3Server

from .journal_suite import KEY, begin, fill, payload, read, upto
from .object_support import FAST, Crash
from .support import start

DIRECTORY = "test%2Fjournal"
WAIT_S = 20.0
STEPS = [p for p in faults.POINTS if p.startswith(("object.fence.", "object.journal.", "object.trim."))]
_numbers = itertools.count()


def proven(medium: Any, retry: Retry = FAST) -> ObjectStore:
    store = ObjectStore(medium, retry)
    store._conditional = True
    return store


@pytest.fixture
def memory() -> Iterator[ObjectStore]:
    import fsspec

    path = f"journal-{next(_numbers)}"
    yield proven(FsspecObjects(f"memory://{path}", "memory", path, frozenset()))
    fsspec.filesystem("memory").store.clear()


class Network:
    """A bucket through a proxy and past it."""

    def __init__(self, server: S3Server, proxy: FaultyProxy) -> None:
        self.proxy, self._bucket, self._server = proxy, server.new_bucket(), server

    def store(self, endpoint: str, retry: Retry = FAST) -> ObjectStore:
        return proven(S3Objects(f"s3://{self._bucket}", self._bucket, "", {"endpoint_url": endpoint}), retry)

    def through(self, retry: Retry = FAST) -> ObjectStore:
        return self.store(self.proxy.endpoint, retry)

    def past(self) -> ObjectStore:
        return self.store(self._server.endpoint)


@pytest.fixture
def network(s3: S3Server, s3_proxy: FaultyProxy) -> Network:
    return Network(s3, s3_proxy)


# -- deaths


def _write(store: ObjectStore, told: list[int], records: int = 6) -> None:
    """One incarnation: take over, append one by one, tell what is durable, trim now and then."""
    last = told[-1] if told else 0
    failed: list[BaseException] = []
    epoch, journal = begin(store, "process", after=max(0, last - 4), on_failure=failed.append)
    for position in range(journal.last_position + 1, journal.last_position + 1 + records):
        try:
            journal.append(payload(position))
            journal.wait(position, WAIT_S)
        except CheckpointSaveError:
            raise Crash from None
        told.append(position)
        if position % 4 == 0:
            store.trim_journal(KEY, position - 4, epoch)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # those deaths
@pytest.mark.parametrize("point", STEPS)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_dying_at_any_step_loses_nothing_that_was_told(memory: ObjectStore, point: str, nth: int) -> None:
    told: list[int] = []
    try:
        with faults.armed(point, Crash(), nth):
            _write(memory, told)
            _write(proven(memory._medium), told)
            _write(proven(memory._medium), told)
    except Crash:
        pass
    else:
        assert nth > 1, f"{point} was never reached"
    last = told[-1] if told else 0
    after = max(0, last - 4)
    _, journal = begin(proven(memory._medium), "process", after=after)
    assert last <= journal.last_position <= last + 1
    fill(journal, journal.last_position + 1, journal.last_position + 2)
    journal.close(WAIT_S)
    assert read(memory, after) == upto(journal.last_position, after + 1)


# -- the network


def test_a_late_put_of_a_stale_incarnation_finds_its_number_taken(network: Network) -> None:
    late = Late()
    old_store = network.through(Retry(2, 0.001, 0.001))
    failed: list[BaseException] = []
    _, old = begin(old_store, "power", on_failure=failed.append)
    fill(old, 1, 3)
    network.proxy.fail("PUT", "journal/0", late)
    network.proxy.fail("PUT", "journal/0", faulty_proxy.lose_request, times=10**9)
    old.append(payload(4))
    assert late.arrived.wait(WAIT_S)
    _, new = begin(network.past(), "power")
    fill(new, 4, 5)
    late.release.set()
    assert late.done.wait(WAIT_S) and late.status == 412
    with pytest.raises(CheckpointSaveError):
        old.wait(4, WAIT_S)
    assert old.durable_position == 3 and len(failed) == 1
    assert read(network.past()) == upto(5)
    new.close(WAIT_S)


def test_a_put_that_arrives_before_the_fence_is_part_of_the_past(network: Network) -> None:
    """Applied, and its answer lost: the successor reads it, so the writer may say so; and then no more."""
    store = network.through()
    _, old = begin(store, "power")
    fill(old, 1, 2)
    taken: list[Any] = []

    def overtaken(handler: Any) -> None:
        handler.forward()
        taken.append(begin(network.past(), "power")[1])
        handler.hang_up()

    network.proxy.fail("PUT", "journal/0", overtaken)
    old.append(payload(3))
    old.wait(3, WAIT_S)
    assert taken[0].last_position == 3
    with pytest.raises(FencedError):
        old.wait(old.append(b"stale"), WAIT_S)
    assert old.durable_position == 3
    fill(taken[0], 4, 4)
    assert read(network.past()) == upto(4)
    taken[0].close(WAIT_S)


def test_a_lost_answer_is_recognised(network: Network) -> None:
    _, journal = begin(network.through(), "power")
    met = network.proxy.fail("PUT", "journal/0", faulty_proxy.lose_answer, times=3, every=2)
    for position in upto(6):
        fill(journal, position, position)
    journal.close(WAIT_S)
    assert met() == 3 and read(network.past()) == upto(6)


def test_replies_wait_while_the_service_throttles(network: Network) -> None:
    _, journal = begin(network.through(Retry(400, 0.001, 0.01)), "power")
    network.proxy.fail("PUT", "journal/0", status(503, "ServiceUnavailable"), times=10**9)
    assert journal.append(payload(1)) == 1
    with pytest.raises(TimeoutError):
        journal.wait(1, 0.2)
    assert journal.durable_position == 0
    network.proxy.heal()
    journal.wait(1, WAIT_S)
    journal.close(WAIT_S)


def test_what_does_not_pass_ends_the_journal(network: Network) -> None:
    failed: list[BaseException] = []
    told = threading.Event()

    def on_failure(error: BaseException) -> None:
        failed.append(error)
        told.set()

    _, journal = begin(network.through(Retry(2, 0.001, 0.001)), "power", on_failure=on_failure)
    network.proxy.fail("PUT", "journal/0", status(500, "InternalError"), times=10**9)
    journal.append(payload(1))
    with pytest.raises(
        CheckpointSaveError, match=r"'test/journal' in s3://.*InternalError.*given up after 2"
    ):
        journal.wait(1, WAIT_S)
    assert told.wait(WAIT_S) and len(failed) == 1
    with pytest.raises(CheckpointSaveError, match="InternalError"):
        journal.append(payload(2))
    with pytest.raises(CheckpointSaveError, match="InternalError"):
        journal.close(WAIT_S)


def test_records_are_gathered_while_a_request_is_under_way(network: Network) -> None:
    hold = faulty_proxy.Hold()
    _, journal = begin(network.through(), "power")
    network.proxy.fail("PUT", "journal/0", hold)
    network.proxy.log.clear()
    journal.append(payload(1))
    assert hold.arrived.wait(WAIT_S)
    for position in range(2, 501):
        journal.append(payload(position))
    hold.release.set()
    journal.wait(500, WAIT_S)
    journal.close(WAIT_S)
    assert network.proxy.seen("PUT", r"journal/0") == 2
    assert read(network.past()) == upto(500)


# -- reading and trimming


def test_a_commit_interval_bounds_the_requests(memory: ObjectStore) -> None:
    memory.commit_interval_s = 3600.0
    _, journal = begin(memory, "process")
    fill(journal, 1, 1)
    journal.append(payload(2))
    with pytest.raises(TimeoutError):
        journal.wait(2, 0.05)
    journal.close(WAIT_S)  # a planned end does not wait for the interval
    assert journal.durable_position == 2 and read(memory) == [1, 2]


def _numbers_of(store: ObjectStore) -> list[int]:
    return store._numbers(KEY)[0]


def test_the_newest_object_stays_so_that_no_number_comes_again(memory: ObjectStore) -> None:
    epoch, journal = begin(memory, "process")
    for position in upto(5):
        fill(journal, position, position)
    newest = _numbers_of(memory)[-1]
    memory.trim_journal(KEY, 5, epoch)
    assert _numbers_of(memory) == [newest]
    fill(journal, 6, 6)
    journal.close(WAIT_S)
    assert read(memory, 5) == [6]


def test_what_arrives_below_the_trimmed_part_is_passed_over(memory: ObjectStore) -> None:
    _, old = begin(memory, "process")
    fill(old, 1, 1)
    stale = memory.objects.read(f"{DIRECTORY}/{object_name(_numbers_of(memory)[-1])}")
    epoch, journal = begin(proven(memory._medium), "process")
    for position in range(2, 8):
        fill(journal, position, position)
    memory.trim_journal(KEY, 5, epoch)
    left = _numbers_of(memory)
    for number in (left[0] - 1, left[0] - 3):
        memory.objects.write(f"{DIRECTORY}/{object_name(number)}", stale)
        assert read(memory, 5) == [6, 7]
        memory.objects.delete([f"{DIRECTORY}/{object_name(number)}"])
    journal.close(WAIT_S)


@pytest.mark.parametrize("change", ["flipped", "cut", "gone", "swapped", "foreign"])
def test_damage_stops_the_restore(memory: ObjectStore, change: str) -> None:
    _, journal = begin(memory, "process")
    for position in upto(5):
        fill(journal, position, position)
    journal.close(WAIT_S)
    names = [f"{DIRECTORY}/{object_name(n)}" for n in _numbers_of(memory)[-3:]]
    data = memory.objects.read(names[0])
    if change == "flipped":
        memory.objects.write(names[0], data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "cut":
        memory.objects.write(names[0], data[:-1])
    elif change == "gone":
        memory.objects.delete([names[0]])
    elif change == "swapped":
        memory.objects.write(names[0], memory.objects.read(names[1]))
    else:
        memory.objects.write(names[0], b"not ours")
    with pytest.raises(CheckpointCorruptedError, match="'test/journal' in memory://"):
        list(memory.read_journal(KEY, 0))


@pytest.mark.parametrize(
    ("epoch", "off", "ahead", "said"),
    [
        (1, 0, 1, "begins with position 4 of epoch 1, expected were position 3"),
        (2, 0, 0, "begins with position 3 of epoch 2, expected were position 3 and epoch 1"),
        (1, 9, 0, "copied here"),
    ],
)
def test_an_object_that_is_whole_and_not_the_one_that_belongs_there(
    memory: ObjectStore, epoch: int, off: int, ahead: int, said: str
) -> None:
    _, journal = begin(memory, "process")
    for position in upto(5):
        fill(journal, position, position)
    journal.close(WAIT_S)
    number = _numbers_of(memory)[-3]
    other = pack_records(epoch, number + off, 3 + ahead, [payload(3)])
    memory.objects.write(f"{DIRECTORY}/{object_name(number)}", other)
    with pytest.raises(CheckpointCorruptedError, match=said):
        list(memory.read_journal(KEY, 0))


def test_records_of_many_objects_are_found_from_any_position(
    memory: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_journal, "OBJECT_BYTES", 200)
    _, journal = begin(memory, "process")
    fill(journal, 1, 60)
    journal.close(WAIT_S)
    assert len(_numbers_of(memory)) > 10
    for after in range(61):
        assert read(memory, after) == upto(60, after + 1)
    for upto_position in (0, 7, 30, 60):
        memory.trim_journal(KEY, upto_position, 1)
        assert read(memory, upto_position) == upto(60, upto_position + 1)


# -- what is refused


def test_a_store_without_exclusive_creation_has_no_journal(memory: ObjectStore) -> None:
    assert memory.claim(KEY, 1, b"")
    memory._conditional = False
    with pytest.raises(UnsupportedStoreError, match="exactly_once needs"):
        memory.open_journal(KEY, 1, 1)


def test_a_medium_that_survives_less_is_refused(memory: ObjectStore) -> None:
    assert memory.claim(KEY, 1, b"")
    memory._medium.url = "gs://x"  # type: ignore[misc]
    with pytest.raises(UnsupportedStoreError, match="durability='power' .*survives only: nothing"):
        memory.open_journal(KEY, 1, 1, durability="power")


# -- which call ran


def test_only_the_first_calls_and_suspects_are_noted(memory: ObjectStore) -> None:
    def call(number: int) -> bytes:
        return number.to_bytes(16, "big")

    _, journal = begin(memory, "process")
    for number in range(object_journal.NOTED_CALLS):
        journal.running(call(number))
        assert memory.last_running(KEY) == (call(number), 1)
        journal.running(None)
    written: list[str] = []
    real = memory._medium.write
    memory._medium.write = lambda name, data: (written.append(name), real(name, data))[1]  # type: ignore
    for number in range(100, 110):
        journal.running(call(number))
        journal.running(None)
    assert written == [] and memory.last_running(KEY) is None
    journal.running(call(7))  # dies here, unnoted; its successor is sent the same call first
    _, second = begin(memory, "process")
    second.running(call(7))
    _, third = begin(memory, "process")
    for number in range(20):
        third.running(call(number + 50))
        third.running(None)
    third.running(call(7))
    assert memory.last_running(KEY) == (call(7), 2), "a suspect is noted however late it comes"
    for each in (journal, second, third):
        each.close(WAIT_S)


# -- blobs


class TestBlobs:
    @pytest.fixture
    def store(self, memory: ObjectStore) -> ObjectStore:
        memory._medium.inline_bytes = 1000  # type: ignore[misc]
        assert memory.claim(KEY, 1, b"")
        return memory

    def test_large_ones(self, store: ObjectStore) -> None:
        data = bytes(range(256)) * 100
        store.put_blob(KEY, 1, "large", [data])
        assert store.read_blob(KEY, "large") == data and store.list_blobs(KEY) == ["large"]
        with pytest.raises(CheckpointSaveError, match="exists already"):
            store.put_blob(KEY, 1, "large", [data])
        (content, *_) = (e.name for e in store.objects.walk(f"{DIRECTORY}/blob"))
        whole = store.objects.read(content)
        store.delete_blobs(KEY, ["large"], 1)
        assert store.objects.walk(f"{DIRECTORY}/blob") == [], "that of the refused one neither"
        store.put_blob(KEY, 1, "large", [data])
        (content,) = (e.name for e in store.objects.walk(f"{DIRECTORY}/blob"))
        for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
            store.objects.write(content, damaged)
            with pytest.raises(CheckpointFormatError):
                store.read_blob(KEY, "large")
        store.objects.delete([content])
        with pytest.raises(FileNotFoundError):
            store.read_blob(KEY, "large")

    def test_contents_that_nobody_named_are_swept(self, store: ObjectStore) -> None:
        store.put_blob(KEY, 1, "kept", [bytes(5000)])
        with (
            faults.armed("object.blob.content_written", Crash()),
            pytest.raises(Crash),
        ):
            store.put_blob(KEY, 1, "lost", [bytes(5000)])
        assert len(store.objects.walk(f"{DIRECTORY}/blob")) == 2
        assert store.claim(KEY, 2, b"")
        store.settle(KEY, 2)
        assert len(store.objects.walk(f"{DIRECTORY}/blob")) == 1
        assert store.read_blob(KEY, "kept") == bytes(5000)


def test_a_blob_in_parts(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    bucket = s3.new_bucket()
    store = proven(S3Objects(f"s3://{bucket}", bucket, "", {"endpoint_url": s3.endpoint}))
    assert store.claim(KEY, 1, b"")
    data = bytes(range(256)) * (6 << 12)
    store.put_blob(KEY, 1, "large", [data, b"end"])
    assert store.read_blob(KEY, "large") == data + b"end"


def test_a_claim_alone_stops_the_journal_before(memory: ObjectStore) -> None:
    """Also when the medium fails just then: the claim is told to have failed, and a later one fences."""
    _, journal = begin(memory, "process")
    fill(journal, 1, 1)

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(memory._medium, name)

        def create(self, name: str, data: bytes) -> bool:
            if "/journal/" in name:
                raise TransientStoreError("as told")
            return memory._medium.create(name, data)

    with pytest.raises(CheckpointSaveError, match="as told"):
        proven(Failing()).claim(KEY, 2, b"")
    assert not journal.holds()
    _, third = begin(memory, "process")
    with pytest.raises(FencedError):
        journal.wait(journal.append(b"stale"), WAIT_S)
    assert third.last_position == 1
    third.close(WAIT_S)


# -- the whole toolkit


class Account(Checkpointable, exactly_once=True):
    def __init__(self) -> None:
        self.balance = 0

    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def receipt(self) -> tuple[int, float]:
        return self.balance, self.record(time.time)

    @readonly
    def total(self) -> int:
        return self.balance


def test_exactly_once_whatever_step_the_process_dies_at() -> None:
    def store() -> ObjectStore:
        path = f"crashes-{next(_numbers)}"
        return proven(FsspecObjects(f"memory://{path}", "memory", path, frozenset({"process", "power"})))

    calls = [("deposit", 10), "receipt", "total", ("deposit", 5)]
    points = [
        p for p in faults.POINTS if not p.startswith(("file.", "object.journal."))
    ]  # in a thread: above
    report = testing.crash_everywhere(Account, calls, store=store, twice=False, points=points)
    assert report.state == {"balance": 15} and report.runs > 20


def test_exactly_once_over_a_bad_network(network: Network) -> None:
    network.proxy.fail(".*", "", faulty_proxy.lose_answer, times=10**9, every=4)

    host, session = start(Account, store=network.through(Retry(30, 0.001, 0.01)), every=3, keep=2)
    assert [host.call(session, "deposit", 1) for _ in range(5)] == [1, 2, 3, 4, 5]
    host, session = start(Account, store=network.through(Retry(30, 0.001, 0.01)), incarnation=2)
    assert host.call(session, "total") == 5
