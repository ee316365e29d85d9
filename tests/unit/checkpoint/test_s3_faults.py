"""S3 over real HTTP with a proxy between that does what networks and services do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointSaveError,
    CheckpointStoreError,
    FencedError,
    UnsupportedStoreError,
    transfers,
)
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.stores import s3 as s3_module
from ftray.checkpoint.stores.object_store import BEST_EFFORT, ObjectStore
from ftray.checkpoint.stores.objects import Retry, TransientStoreError
from ftray.checkpoint.stores.s3 import S3Objects
from tests.helpers import faulty_proxy
from tests.helpers.faulty_proxy import FaultyProxy, Hang, Late, status
from tests.helpers.s3_server import S3Server

from .object_support import FAST, KEY, check_whole, live, open_log, save, small_objects

N = SnapshotName


class Faulty:
    """A bucket, seen through a proxy and past it."""

    def __init__(self, server: S3Server, proxy: FaultyProxy) -> None:
        self.bucket, self._server, self.proxy = server.new_bucket(), server, proxy

    def medium(self, endpoint: str) -> S3Objects:
        return S3Objects(f"s3://{self.bucket}/p", self.bucket, "p", {"endpoint_url": endpoint})

    def through(self, retry: Retry = FAST) -> ObjectStore:
        store = ObjectStore(small_objects(self.medium(self.proxy.endpoint)).objects.medium, retry)
        store._conditional = True
        return store

    def past(self) -> ObjectStore:
        return small_objects(self.medium(self._server.endpoint))


@pytest.fixture
def faulty(s3: S3Server, s3_proxy: FaultyProxy) -> Faulty:
    return Faulty(s3, s3_proxy)


ACTIONS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "503": ("GET|PUT|POST|DELETE|HEAD", status(503, "ServiceUnavailable")),
    "500": ("GET|PUT|POST|DELETE|HEAD", status(500, "InternalError")),
    "429": ("GET|PUT|POST|DELETE|HEAD", status(429, "TooManyRequests")),
    "409": ("PUT", status(409, "ConditionalRequestConflict")),
    "lost requests": ("GET|PUT|POST|DELETE|HEAD", faulty_proxy.lose_request),
    "lost answers": ("GET|PUT|POST|DELETE|HEAD", faulty_proxy.lose_answer),
    "cut answers": ("GET", faulty_proxy.cut_answer),
}


@pytest.mark.parametrize(("what", "offset"), [*((what, 0) for what in ACTIONS), ("lost answers", 1)])
def test_every_second_request_fails(faulty: Faulty, what: str, offset: int) -> None:
    methods, action = ACTIONS[what]
    met = faulty.proxy.fail(methods, "", action, times=10**9, after=offset, every=2)
    told: list[int] = []
    store = faulty.through()
    store._conditional = None  # so that the probe meets it too
    live(store, told, saves=1)
    live(faulty.through(), told, saves=2)
    assert told == [1, 2, 3] and met() > 5
    faulty.proxy.heal()
    assert check_whole(faulty.past(), told) == 3


# -- our own retried PUT


@pytest.mark.parametrize("name", ["claim", "seal", "ckpt"])
def test_412_to_a_retry_of_what_has_succeeded_is_success(faulty: Faulty, name: str) -> None:
    met = faulty.proxy.fail("PUT", rf"\.{name}", faulty_proxy.lose_answer)
    told: list[int] = []
    live(faulty.through(), told, saves=1)
    assert told == [1] and met() == 1
    assert faulty.proxy.seen("PUT", rf"\.{name}") == 2
    assert check_whole(faulty.past(), told) == 1


def test_412_to_a_retry_that_lost_the_race_is_not(faulty: Faulty) -> None:
    """The first attempt never arrives; before the second somebody else takes the number."""

    def overtaken(handler: Any) -> None:
        assert faulty.past().claim(KEY, 1, b"the other")
        faulty_proxy.lose_request(handler)

    faulty.proxy.fail("PUT", r"\.claim", overtaken)
    assert not faulty.through().claim(KEY, 1, b"this one")
    assert faulty.past().read_claim(KEY, 1) == b"the other"


# -- stale incarnations


def test_a_late_put_of_a_stale_incarnation_counts_for_nobody(faulty: Faulty) -> None:
    """Its manifest hangs in the network while a successor restores and seals, then it arrives."""
    late = Late()
    restored: list[int] = []

    def overtaken(handler: Any) -> None:
        assert late.arrived.wait(10)
        restored.append(open_log(faulty.past())[1])
        late.release.set()
        assert late.done.wait(10)
        handler.answer(*handler.forward())

    old, _, _ = open_log(faulty.through())
    save(old, 1)
    faulty.proxy.fail("PUT", r"000002\.ckpt", late)
    faulty.proxy.fail("PUT", r"000002\.ckpt", overtaken)
    with pytest.raises(FencedError, match="superseded by epoch 2"):
        save(old, 2)
    assert late.status == 200 and restored == [1]
    assert faulty.past().scan(KEY).snapshots == [N(1, 1), N(1, 2)], "it did arrive"
    _, n, skipped = open_log(faulty.past())
    assert (n, skipped) == (1, [])


def test_two_writers_of_one_key(faulty: Faulty) -> None:
    first, _, _ = open_log(faulty.through())
    save(first, 1)
    second, n, _ = open_log(faulty.through())
    assert n == 1
    with pytest.raises(FencedError):
        save(first, 2)
    save(second, 2)
    with pytest.raises(FencedError):
        first.store.delete(KEY, [N(1, 1)], 1)
    assert check_whole(faulty.past(), [2]) == 2


# -- failures that do not pass


def test_throttled_for_good(faulty: Faulty) -> None:
    log, _, _ = open_log(faulty.through())
    save(log, 1)
    faulty.proxy.fail("PUT", "", status(503, "SlowDown"), times=10**9)
    with pytest.raises(
        CheckpointSaveError,
        match=rf"snapshot 1-2 .*'test/counter' in s3://{faulty.bucket}.*SlowDown.*after 8",
    ):
        save(log, 2)
    faulty.proxy.heal()
    save(log, 2)
    assert check_whole(faulty.past(), [2]) == 2


def test_a_store_that_cannot_be_read_restores_nothing_older(faulty: Faulty) -> None:
    live(faulty.past(), [])
    faulty.proxy.fail("GET", r"000003", status(500, "InternalError"), times=10**9)
    with pytest.raises(CheckpointStoreError, match=r"'test/counter' in s3://.*InternalError"):
        open_log(faulty.through())
    faulty.proxy.heal()
    assert open_log(faulty.through())[1] == 3


def test_a_server_that_hangs(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "READ_TIMEOUT_S", 0.2)
    began_s = time.monotonic()
    hang = Hang()
    with FaultyProxy(s3.host, s3.port) as proxy:
        faulty = Faulty(s3, proxy)
        proxy.fail("PUT", r"\.claim", hang, times=2)
        assert faulty.through().claim(KEY, 1, b"x")
        proxy.fail("PUT", r"\.seal", hang, times=10**9)
        with pytest.raises(CheckpointSaveError, match=r"cannot seal .*Timeout"):
            faulty.through(Retry(2, 0.001, 0.001)).seal(KEY, 1, b"x")
        hang.release.set()
    assert time.monotonic() - began_s < 30, "four times the timeout given here, and never that of others"


def test_some_of_many_deletions_are_throttled(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request as a whole has succeeded then, and says so of those that have not."""
    medium = S3Objects("s3://b", "b", "", {"endpoint_url": s3.endpoint})
    for code, kind in (("SlowDown", TransientStoreError), ("AccessDenied", CheckpointStoreError)):
        answer = {"Errors": [{"Key": "two", "Code": code, "Message": "not now"}]}
        monkeypatch.setattr(medium, "_ask", lambda *_, answer=answer, **__: answer)
        with pytest.raises(CheckpointStoreError, match=f"delete of two: {code}") as told:
            medium.delete(["one", "two"])
        assert type(told.value) is kind


def test_denied(faulty: Faulty) -> None:
    faulty.proxy.fail("PUT", "", status(403, "AccessDenied"), times=10**9)
    with pytest.raises(CheckpointSaveError, match=r"AccessDenied.*s3:AbortMultipartUpload"):
        faulty.through().claim(KEY, 1, b"")
    assert faulty.proxy.seen("PUT", "") <= 5, "what will not pass is not tried again"


def test_no_such_bucket(s3: S3Server) -> None:
    store = ObjectStore(S3Objects("s3://none-such", "none-such", "", {"endpoint_url": s3.endpoint}), FAST)
    with pytest.raises(CheckpointStoreError, match=r"none-such.*NoSuchBucket.*Create the bucket first"):
        store.scan("k")
    with pytest.raises(CheckpointStoreError, match="Create the bucket first"):
        store.keys()
    with pytest.raises(CheckpointSaveError, match="NoSuchBucket"):
        store.claim("k", 1, b"")


def test_nobody_listens() -> None:
    medium = S3Objects("s3://b", "b-b", "", {"endpoint_url": "http://127.0.0.1:9", "region": "us-east-1"})
    with pytest.raises(CheckpointStoreError, match=r"b-b.*given up after 2 attempts"):
        ObjectStore(medium, Retry(2, 0.001, 0.001)).scan("k")


def test_no_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    medium = S3Objects("s3://b", "b-b", "", {"endpoint_url": s3.endpoint, "region": "eu-west-3"})
    with pytest.raises(CheckpointStoreError, match="environment, ~/.aws, an instance role"):
        ObjectStore(medium, FAST).scan("k")


def test_a_server_without_conditional_requests(faulty: Faulty) -> None:
    faulty.proxy.fail("PUT", "", faulty_proxy.drop_condition, times=10**9)
    store = faulty.through()
    store._conditional = None
    with pytest.raises(UnsupportedStoreError, match=rf"s3://{faulty.bucket}/p replaced one"):
        store.require_fencing(KEY)
    assert store.fencing(KEY) == BEST_EFFORT
    told: list[int] = []
    live(store, told)
    faulty.proxy.heal()
    assert check_whole(faulty.past(), told) == 3


# -- uploads in parts


class TestParts:
    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)  # S3 takes no smaller ones but the last

    PARTS = (b"ab" * (3 << 20), bytearray(b"c" * (5 << 20)), memoryview(b"d" * (1 << 20)))

    def _put(self, store: ObjectStore) -> None:
        assert store.claim("k", 1, b"")
        store.put("k", N(1, 1), self.PARTS)

    def _check(self, store: ObjectStore) -> None:
        with store.read("k", N(1, 1)) as file:
            size = file.seek(0, 2)
            file.seek(0)
            data = bytearray(size)
            done = 0
            while done < size:
                done += file.readinto(memoryview(data)[done:])  # type: ignore[attr-defined]
        assert data == b"".join(self.PARTS)

    def test_how_far_it_is_is_told(self, faulty: Faulty) -> None:
        length = sum(len(part) for part in self.PARTS)
        told: list[tuple[int, int]] = []
        with transfers.watch(lambda done, total: told.append((done, total)), length):
            self._put(faulty.past())
            assert told == [(5 << 20, length), (10 << 20, length), (length, length)]

    def test_through_a_bad_network(self, faulty: Faulty) -> None:
        met = [
            faulty.proxy.fail("PUT", "partNumber=2", status(503, "SlowDown"), times=2),
            faulty.proxy.fail("PUT", "partNumber=1", faulty_proxy.lose_answer),
            faulty.proxy.fail("POST", "uploadId", faulty_proxy.lose_answer),
            faulty.proxy.fail("GET", "blob/snap", faulty_proxy.cut_answer),
        ]
        store = faulty.through()
        self._put(store)
        self._check(store)
        assert [m() for m in met] == [2, 1, 1, 1]
        assert store.objects.medium.uploads("k") == []

    def test_what_fails_for_good_leaves_nothing(self, faulty: Faulty) -> None:
        faulty.proxy.fail("PUT", "partNumber=3", status(500, "InternalError"), times=8)
        store = faulty.through()
        with pytest.raises(CheckpointSaveError, match="snapshot 1-1 .*InternalError"):
            self._put(store)
        assert store.objects.medium.uploads("k") == []
        assert store.scan("k").snapshots == [] and store.objects.list("k/blob") == []
        store.put("k", N(1, 2), [b"x" * 200])

    def test_an_upload_that_somebody_aborted(self, faulty: Faulty) -> None:
        faulty.proxy.fail("POST", "uploadId", status(404, "NoSuchUpload"), times=10**9)
        with pytest.raises(CheckpointSaveError, match="aborted by somebody"):
            self._put(faulty.through())
