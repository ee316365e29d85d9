"""The object store's accounts: examples, then a random walk against a ledger."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._node.segments import AskShrink, Command, Drop, Reserved, SegmentError, Segments

A, B = 1, 2
PA, PB = b"a" * 28, b"b" * 28


def with_segment(seg_id: int = 5, size_bytes: int = 60, capacity_bytes: int = 100) -> Segments:
    segments = Segments(capacity_bytes)
    segments.reserved(A, 1, size_bytes, 0.0)
    segments.registered(A, PA, seg_id, size_bytes)
    segments.check()
    return segments


def test_reserve_register_release() -> None:
    segments = with_segment()
    assert segments.used_bytes == 60
    assert segments.released(PA, 5) == [Drop(5, ())]
    assert segments.used_bytes == 0


def test_more_than_there_will_ever_be_is_refused_at_once() -> None:
    assert Segments(100).reserved(A, 7, 101, 0.0) == [Reserved(A, 7, False)]


def test_one_that_does_not_fit_waits_for_room_and_gets_it() -> None:
    segments = with_segment()
    assert segments.reserved(B, 7, 50, 0.0) == [AskShrink()]
    assert segments.released(PA, 5) == [Drop(5, ()), Reserved(B, 7, True)]


def test_it_is_refused_when_nobody_gives_back_in_time() -> None:
    segments = with_segment()
    segments.reserved(B, 7, 50, 0.0)
    due_s = segments.next_tick_s()
    assert due_s is not None
    assert segments.ticked(due_s - 0.01) == []
    assert segments.ticked(due_s) == [Reserved(B, 7, False)]
    assert segments.next_tick_s() is None


def test_a_small_one_does_not_overtake_a_large_one_that_waits() -> None:
    segments = with_segment()
    segments.reserved(B, 7, 50, 0.0)
    assert segments.reserved(B, 8, 10, 0.1) == [AskShrink()]
    assert segments.ticked(0.2) == [Reserved(B, 7, False), Reserved(B, 8, True)]


def test_bytes_can_be_given_back_but_not_more_than_were_reserved() -> None:
    segments = Segments(100)
    segments.reserved(A, 1, 60, 0.0)
    segments.given_back(A, 60)
    assert segments.used_bytes == 0
    with pytest.raises(SegmentError, match="only 0 are reserved"):
        segments.given_back(A, 1)


def test_contradictions_are_refused() -> None:
    segments = with_segment()
    segments.reserved(A, 2, 10, 0.0)
    with pytest.raises(SegmentError, match="exists already"):
        segments.registered(A, PA, 5, 10)
    with pytest.raises(SegmentError, match="only 10 are reserved"):
        segments.registered(A, PA, 6, 11)
    with pytest.raises(SegmentError, match="not its own"):
        segments.released(PB, 5)
    segments.check()


class TestDeadProducer:
    def test_its_segments_go_when_the_death_is_settled_and_nobody_holds_them(self) -> None:
        segments = with_segment()
        segments.opened(B, 5)
        assert segments.producer_died(A, PA) == []
        assert segments.settled(PA) == [Drop(5, (B,))]
        assert segments.used_bytes == 0

    def test_a_holder_keeps_one_alive_until_it_lets_go(self) -> None:
        segments = with_segment()
        segments.producer_died(A, PA)
        segments.held(B, PA, [5, 99])
        assert segments.settled(PA) == []
        assert segments.opened(B, 5) == 60
        assert segments.unheld(B, 5) == [Drop(5, (B,))]
        assert segments.unheld(B, 5) == []

    def test_a_holder_that_dies_lets_go(self) -> None:
        segments = with_segment()
        segments.producer_died(A, PA)
        segments.held(B, PA, [5])
        segments.settled(PA)
        assert segments.producer_died(B, PB) == [Drop(5, ())]

    def test_letting_go_before_the_death_is_settled_waits_for_the_others(self) -> None:
        segments = with_segment()
        segments.producer_died(A, PA)
        segments.held(B, PA, [5])
        assert segments.unheld(B, 5) == []
        assert segments.settled(PA) == [Drop(5, ())]

    def test_its_reservations_and_its_waiting_go_at_once(self) -> None:
        segments = Segments(100)
        segments.reserved(A, 1, 60, 0.0)
        segments.reserved(B, 2, 60, 0.0)
        segments.reserved(A, 3, 60, 0.0)
        assert segments.producer_died(A, PA) == [Reserved(B, 2, True)]
        assert segments.next_tick_s() is None

    def test_a_claim_on_a_living_producers_segment_means_nothing(self) -> None:
        segments = with_segment()
        segments.held(B, PA, [5])
        assert segments.released(PA, 5) == [Drop(5, ())]


class Walk(RuleBasedStateMachine):
    """Four processes, each its own producer; deaths are acknowledged in random order."""

    CAPACITY = 100

    def __init__(self) -> None:
        super().__init__()
        self.segments = Segments(self.CAPACITY)
        self.now_s = 0.0
        self.alive = {1, 2, 3, 4}
        self.granted: dict[int, int] = {}
        self.waiting: dict[int, tuple[int, int]] = {}
        self.mine: dict[int, int] = {}  # segment -> client
        self.unsettled: set[int] = set()
        self.held: dict[int, set[int]] = {}
        self.next = 0

    def apply(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Reserved):
                client, size_bytes = self.waiting.pop(command.req)
                assert client == command.client and client in self.alive
                if command.ok:
                    self.granted[client] = self.granted.get(client, 0) + size_bytes
            elif isinstance(command, Drop):
                assert not self.held.pop(command.seg_id, set()), "dropped while held"
                del self.mine[command.seg_id]

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), size_bytes=st.integers(1, 70))
    def reserve(self, data: st.DataObject, size_bytes: int) -> None:
        client = data.draw(st.sampled_from(sorted(self.alive)))
        self.next += 1
        self.waiting[self.next] = (client, size_bytes)
        self.apply(self.segments.reserved(client, self.next, size_bytes, self.now_s))

    @precondition(lambda self: any(self.granted.values()))
    @rule(data=st.data(), back=st.booleans())
    def use(self, data: st.DataObject, back: bool) -> None:
        client = data.draw(st.sampled_from(sorted(c for c, size in self.granted.items() if size)))
        size_bytes = data.draw(st.integers(1, self.granted[client]))
        self.granted[client] -= size_bytes
        if back:
            self.apply(self.segments.given_back(client, size_bytes))
            return
        self.next += 1
        self.segments.registered(client, bytes([client]) * 28, self.next, size_bytes)
        self.mine[self.next] = client

    @precondition(lambda self: any(c in self.alive for c in self.mine.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        seg_id = data.draw(st.sampled_from(sorted(s for s, c in self.mine.items() if c in self.alive)))
        self.apply(self.segments.released(bytes([self.mine[seg_id]]) * 28, seg_id))
        assert seg_id not in self.mine

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.remove(client)
        self.granted.pop(client, None)
        self.waiting = {req: w for req, w in self.waiting.items() if w[0] != client}
        for holders in self.held.values():
            holders.discard(client)
        self.unsettled.add(client)
        self.apply(self.segments.producer_died(client, bytes([client]) * 28))

    @precondition(lambda self: self.unsettled and self.mine)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        dead = data.draw(st.sampled_from(sorted(self.unsettled)))
        seg_id = data.draw(st.sampled_from(sorted(self.mine)))
        client = data.draw(st.sampled_from(sorted(self.alive)))
        self.segments.held(client, bytes([dead]) * 28, [seg_id])
        if self.mine[seg_id] == dead:
            self.held.setdefault(seg_id, set()).add(client)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        seg_id = data.draw(st.sampled_from(sorted(s for s, holders in self.held.items() if holders)))
        client = data.draw(st.sampled_from(sorted(self.held[seg_id])))
        self.held[seg_id].discard(client)
        self.apply(self.segments.unheld(client, seg_id))

    @precondition(lambda self: self.unsettled)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        dead = data.draw(st.sampled_from(sorted(self.unsettled)))
        self.unsettled.remove(dead)
        self.apply(self.segments.settled(bytes([dead]) * 28))

    @rule(seconds=st.sampled_from([0.05, 0.3]))
    def tick(self, seconds: float) -> None:
        self.now_s += seconds
        self.apply(self.segments.ticked(self.now_s))

    @invariant()
    def consistent(self) -> None:
        self.segments.check()
        assert self.segments.count() == len(self.mine)

    def teardown(self) -> None:
        """Time passes and everybody dies: nothing waits, nothing is used."""
        self.apply(self.segments.ticked(self.now_s + 10))
        assert not self.waiting
        for client in sorted(self.alive):
            for holders in self.held.values():
                holders.discard(client)
            self.apply(self.segments.producer_died(client, bytes([client]) * 28))
        for client in sorted(self.alive | self.unsettled):
            self.apply(self.segments.settled(bytes([client]) * 28))
        assert self.segments.used_bytes == 0 and self.segments.count() == 0


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=40)
