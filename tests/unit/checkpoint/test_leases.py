"""Keys held by a lease: never two holders that answer, on media which create whatever is there."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import (
    CheckpointKeyInUseError,
    CheckpointOptionError,
    CheckpointSaveError,
    FencedError,
    UnsupportedStoreError,
    engine,
    holders,
)
from ftray.checkpoint.errors import CheckpointStoreError
from ftray.checkpoint.options import validate
from ftray.checkpoint.stores import connect, leases
from ftray.checkpoint.stores.leases import HOLD, SETTLE, WAIT, Lease
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.checkpoint.stores.objects import Objects, TransientStoreError
from ftray.checkpoint.stores.s3 import S3Objects
from ftray.checkpoint.testing import Caller, InlineBackground, LocalHost, crash
from tests.helpers import faulty_proxy
from tests.helpers.faulty_proxy import FaultyProxy
from tests.helpers.s3_server import S3Server

from .object_support import FAST
from .once_support import KEY, Tally

TERM_S = 10.0
DIRECTORY = "test%2Ftally"
places = itertools.count()


class Loose:
    """A medium without conditional writes: creating replaces. It can be told to fail."""

    def __init__(self, exclusive: bool = False) -> None:
        self._medium: Any = connect(f"memory://lease-{next(places)}")._medium  # type: ignore[attr-defined]
        self.failing = False
        self.survives = frozenset({"process", "power"})
        self.exclusive = exclusive

    def __getattr__(self, name: str) -> Any:
        if self.failing and name in ("read", "write", "create", "list", "size"):
            return self._fail
        return getattr(self._medium, name)

    def create(self, name: str, data: bytes) -> bool:
        if self.exclusive:
            return bool(self._medium.create(name, data))
        self.write(name, data)
        return True

    def _fail(self, *_: Any) -> Any:
        raise TransientStoreError("the network is away")


class World:
    """Time that passes when somebody sleeps; meanwhile the living renew their leases."""

    def __init__(self, medium: Any = None) -> None:
        self.medium = medium or Loose()
        self.now_s = 1000.0
        self.stores: list[ObjectStore] = []
        self._renewing = False

    def store(self) -> ObjectStore:
        """Another process's store object."""
        return self.over(self.medium)

    def over(self, medium: Any) -> ObjectStore:
        """The same over another medium."""
        store = ObjectStore(medium, FAST, self.sleep, clock=lambda: self.now_s)
        store.keeps_leases = False
        self.stores.append(store)
        return store

    def sleep(self, pause_s: float) -> None:
        end_s = self.now_s + pause_s
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + 0.25)
            self._renew()

    def _renew(self) -> None:
        if not self._renewing:
            self._renewing = True
            for store in self.stores:
                for lease in store._leases.values():
                    if not lease._over.is_set():
                        lease.renew()
            self._renewing = False

    def freeze(self, store: ObjectStore) -> None:
        """Its process is stopped: it renews nothing, and knows of nothing."""
        self.stores.remove(store)


class Actor:
    """An exactly-once actor of some machine."""

    def __init__(self, world: World, host: str = "here", leased: bool = True, **options: Any) -> None:
        self.world, self.store = world, world.store()
        self.host = LocalHost("tally", class_name="Tally", unique_id=host, caller=Caller())
        given = {"fencing": "lease", "lease_s": TERM_S} if leased else {}
        spec = engine.spec_of(Tally, {**given, **options})
        background: Any = InlineBackground
        self.session = engine.open(Tally(), self.host, spec, store=self.store, background=background)

    def call(self, method: str = "incr", timeout_s: float = 10.0) -> Any:
        assert self.host.caller is not None
        return self.host.send(self.session, self.host.caller.call(KEY, method), timeout_s)

    @property
    def lease(self) -> Lease:
        lease = self.store.lease_of(KEY, self.session.log.epoch)
        assert lease is not None
        return lease


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell from here whether a process lives."""
    monkeypatch.setattr(holders, "_lives", lambda _record: None)


class TestActors:
    def test_refused_unless_allowed(self) -> None:
        world = World()
        with pytest.raises(UnsupportedStoreError, match='or allow fencing="lease"'):
            Actor(world, leased=False)
        actor = Actor(world)
        assert [actor.call() for _ in range(3)] == [1, 2, 3]
        actor.session.close(True, "end")

    def test_where_creation_is_exclusive_there_is_none(self) -> None:
        world = World(Loose(exclusive=True))
        actor = Actor(world)
        assert actor.call() == 1
        assert actor.store.lease_of(KEY, 1) is None and not actor.store.is_leased(KEY)
        status = actor.session.status()
        assert (status["fencing"], status["lease_left_s"]) == ("exclusive", None)
        actor.session.close(True, "end")

    def test_it_is_seen(self) -> None:
        world = World()
        actor = Actor(world)
        status = actor.session.status()
        assert status["fencing"] == "lease" and 0 < status["lease_left_s"] <= HOLD * TERM_S
        info = checkpoint.CheckpointReader(actor.store).describe(KEY)
        assert info.fencing == "lease" and info.state == "held"
        actor.session.close(True, "end")

    @pytest.mark.parametrize("driver", ["of a driver that lives", "of a dead driver"])
    def test_a_successor_of_a_process_that_ended_waits_for_others_only(
        self, driver: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if driver == "of a dead driver":
            monkeypatch.setattr(LocalHost, "driver_pid", 1 << 23, raising=False)  # which no process has
        world = World()
        actor = Actor(world)
        actor.call()
        crash(actor.session)
        actor.lease.stop()
        before_s = world.now_s
        second = Actor(world)
        assert second.call() == 2
        assert world.now_s - before_s <= 3 * SETTLE * TERM_S
        second.session.close(True, "end")

    def test_a_key_that_is_held_is_in_use(self, elsewhere: None) -> None:
        world = World()
        actor = Actor(world, "there")
        with pytest.raises(CheckpointKeyInUseError, match="is held by a Tally"):
            Actor(world, "here")
        assert actor.call() == 1, "nothing has happened to it"
        actor.session.close(True, "end")

    def test_a_holder_that_is_gone_is_waited_for(self, elsewhere: None) -> None:
        world = World()
        actor = Actor(world, "there")
        actor.call()
        world.freeze(actor.store)
        before_s = world.now_s
        second = Actor(world, "here")
        assert second.call() == 2
        assert WAIT * TERM_S <= world.now_s - before_s <= (WAIT + 4 * SETTLE) * TERM_S
        second.session.close(True, "end")

    def test_takeover_of_one_that_lives(self, elsewhere: None) -> None:
        world = World()
        actor = Actor(world, "there")
        actor.call()
        second = Actor(world, "here", takeover=True)
        with pytest.raises(FencedError):
            actor.call()
        assert actor.host.fenced_by and second.call() == 2
        second.session.close(True, "end")

    def test_a_holder_that_cannot_renew_stops_answering(self) -> None:
        world = World()
        actor = Actor(world)
        assert actor.call() == 1
        world.medium.failing = True
        world.sleep(HOLD * TERM_S + 1)
        world.medium.failing = False
        assert actor.lease.left_s == 0
        for method in ("value", "incr"):
            with pytest.raises((CheckpointSaveError, checkpoint.NoSessionError), match=r"ran out|has ended"):
                actor.call(method)
        assert actor.host.crashed_by and not actor.host.fenced_by, "it may be started anew"
        crash(actor.session)
        assert Actor(world).call("value") == 1

    def test_a_lease_that_runs_out_while_a_record_is_written_answers_nothing(self) -> None:
        """The record may be there; whether another one holds the key by now, nobody here knows."""
        world = World()
        actor = Actor(world)
        assert actor.call() == 1
        journal: Any = actor.session.exactly_once and actor.session.exactly_once.journal
        durable, look, write = journal.durable_position, journal._look, world.medium.write

        def looked() -> Future[None]:  # the look beside the request is over when that begins
            look()
            done: Future[None] = Future()
            done.set_result(None)
            return done

        def slow(name: str, data: bytes) -> None:
            write(name, data)
            world.now_s += TERM_S * ("/journal/" in name)

        journal._look_meanwhile, world.medium.write = looked, slow
        with pytest.raises((CheckpointSaveError, checkpoint.NoSessionError), match="ran out"):
            actor.call()
        assert journal.durable_position == durable

    def test_a_short_disturbance_is_survived(self) -> None:
        world = World()
        actor = Actor(world)
        for _ in range(4):
            world.medium.failing = True
            world.sleep(0.5 * HOLD * TERM_S)
            world.medium.failing = False
            world.sleep(1.0)
        assert actor.call() == 1
        actor.session.close(True, "end")

    def test_a_stopped_holder_that_goes_on_can_neither_answer_nor_change_anything(
        self, elsewhere: None
    ) -> None:
        """Also when its last request arrives after its successor has begun to write."""
        world = World()
        actor = Actor(world, "there")
        assert actor.call() == 1
        journal = actor.session.exactly_once.journal  # type: ignore[union-attr]
        stale_number = journal._number  # type: ignore[union-attr]
        world.freeze(actor.store)
        second = Actor(world, "here")
        assert [second.call() for _ in range(3)] == [2, 3, 4]
        with pytest.raises((CheckpointSaveError, checkpoint.NoSessionError)):
            actor.call()
        from ftray.checkpoint.stores.object_journal import object_name, pack_records

        late = pack_records(1, stale_number, journal.last_position, [b"\x01late"])  # type: ignore[union-attr]
        world.medium.write(f"{DIRECTORY}/{object_name(stale_number)}", late)
        crash(second.session)
        world.freeze(second.store)
        third = Actor(world, "here")
        assert third.call("value") == 4 and third.call() == 5
        third.session.close(True, "end")

    def test_tools_respect_it(self, elsewhere: None) -> None:
        world = World()
        actor = Actor(world, "there")
        actor.call()
        with pytest.raises(CheckpointKeyInUseError):
            checkpoint.delete(KEY, store=world.store())
        assert checkpoint.delete(KEY, store=world.store(), takeover=True) == KEY
        with pytest.raises(FencedError):
            actor.call()

    def test_over_s3_whose_server_ignores_conditions(self, s3: S3Server, s3_proxy: FaultyProxy) -> None:
        s3_proxy.fail("PUT", "", faulty_proxy.drop_condition, times=10**9)
        bucket = s3.new_bucket()
        world = World()  # whose time passes only when somebody waits for a lease

        def start(**options: Any) -> tuple[LocalHost, Any]:
            medium = S3Objects(f"s3://{bucket}/p", bucket, "p", {"endpoint_url": s3_proxy.endpoint})
            host = LocalHost("tally", class_name="Tally")
            spec = engine.spec_of(Tally, options)
            return host, engine.open(Tally(), host, spec, store=world.over(medium))

        with pytest.raises(UnsupportedStoreError, match="replaced one"):
            start()
        for first in (1, 3):
            host, session = start(fencing="lease", lease_s=1.0)
            assert [host.call(session, "incr") for _ in range(2)] == [first, first + 1]
            assert session.status()["fencing"] == "lease"
            session.close(True, "end")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fencing": "hope"}, "one of 'exclusive', 'lease'"),
        ({"fencing": "lease", "lease_s": 0.1}, "from 1 to 3600"),
        ({"fencing": "lease", "lease_s": True}, "from 1 to 3600"),
        ({"lease_s": 5.0}, "give both"),
        ({"fencing": "lease", "lease_s": 5.0, "exactly_once": False}, "is for actors with exactly_once=True"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointOptionError, match=text):
        validate({"exactly_once": True, **options})


def test_a_renewal_that_looks_for_too_long_writes_nothing() -> None:
    """Somebody else may have the key by then."""
    now_s = [0.0]
    medium = Loose()

    def sleep(pause_s: float) -> None:
        now_s[0] += pause_s

    lease = Lease(Objects(medium), "key", 1, TERM_S, lambda: None, lambda: now_s[0], sleep)
    assert lease.acquire()
    lease.renew()
    before, left_s = leases.look(Objects(medium), "key"), lease.left_s
    assert left_s == HOLD * TERM_S
    slow = Lease.__dict__["_is_mine"]

    def is_mine(objects: Objects) -> bool:
        found: bool = slow(lease, objects)
        sleep(HOLD * TERM_S)
        return found

    lease._is_mine = is_mine  # type: ignore[method-assign]
    lease.renew()
    assert leases.look(Objects(medium), "key") == before and lease.left_s == 0
    with pytest.raises(CheckpointSaveError, match=r"could not be renewed within 7 s \(too slow\)"):
        lease.check()


def test_a_renewal_of_which_nobody_knows_whether_it_has_arrived() -> None:
    medium = Loose()
    lease = Lease(
        Objects(medium, FAST, lambda _: None), "key", 1, TERM_S, lambda: None, lambda: 0.0, lambda _: None
    )
    assert lease.acquire()
    write = medium._medium.write
    for arrives in (True, False):

        def lost(name: str, data: bytes, arrives: bool = arrives) -> None:
            if arrives:
                write(name, data)
            raise TransientStoreError("no answer")

        medium.write = lost  # type: ignore[attr-defined]
        lease.renew()
        del medium.write  # type: ignore[attr-defined]
        lease.renew()
        lease.check()


# -- never two


class Events:
    """Threads that run one at a time, in the order of a virtual time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self._changed = threading.Condition()
        self._due: list[tuple[float, int]] = []
        self._numbers = itertools.count()
        self._expected = 0

    def pause(self, pause_s: float) -> None:
        """Go on when all that is due before has happened."""
        with self._changed:
            me = (self.now_s + pause_s, next(self._numbers))
            heapq.heappush(self._due, me)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._due) == self._expected and self._due[0] == me, 60)
            assert self._due[0] == me
            heapq.heappop(self._due)
            self.now_s = max(self.now_s, me[0])

    def run(self, bodies: list[Callable[[], None]]) -> None:
        self._expected = len(bodies)
        errors: list[BaseException] = []

        def body_of(body: Callable[[], None]) -> None:
            try:
                self.pause(self.random.uniform(0, 0.2))
                body()
            except BaseException as error:
                errors.append(error)
            finally:
                with self._changed:
                    self._expected -= 1
                    self._changed.notify_all()

        threads = [threading.Thread(target=body_of, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


class Slow:
    """A medium whose requests take their time, sometimes too long, and sometimes fail after all."""

    url = "slow://"

    def __init__(self, events: Events) -> None:
        self._events = events
        self._data: dict[str, bytes] = {}
        self._slow = events.random.choice([0.0, 0.02, 0.1, 0.3])

    def _pass(self) -> None:
        pick = self._events.random
        self._events.pause(pick.uniform(0, 0.1) if pick.random() >= self._slow else pick.uniform(0, 12))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        self._pass()
        found: bytes | None = self._data.get(name)
        self._pass()
        if found is None:
            raise FileNotFoundError(name)
        return found

    def write(self, name: str, data: bytes) -> None:
        self._pass()
        self._data[name] = data
        self._pass()
        if self._events.random.random() < 0.05:
            raise CheckpointStoreError("no answer")


@pytest.mark.parametrize("seed", range(150))
def test_never_two_hold_one_key(seed: int) -> None:
    """Whoever acquires does so after everybody before has stopped."""
    events = Events(seed)
    medium: Any = Slow(events)
    spans: list[tuple[float, float]] = []
    tried = [0]

    def claim() -> None:
        for epoch in range(1, 4):
            tried[0] += 1
            lease = Lease(
                Objects(medium), "key", epoch, TERM_S, lambda: None, lambda: events.now_s, events.pause
            )
            try:
                if not lease.acquire():
                    continue
            except CheckpointStoreError:
                continue
            began_s = events.now_s
            for _ in range(events.random.randrange(12)):
                events.pause(2.0)
                lease.renew()
            try:
                lease.check()
            except CheckpointSaveError:
                continue  # it has run out, or was lost: it answers nothing from here on
            spans.append((began_s, events.now_s + lease.left_s))

    events.run([claim] * 3)
    assert tried[0] == 9
    events.pause = lambda _: None  # type: ignore[method-assign]
    for (_, end), (begin, _) in itertools.pairwise(sorted(spans)):
        assert begin >= end
    assert leases.look(Objects(medium), "key") is not None
