"""The numbers of a stream, against a model: an owner, a producer that dies, a consumer that leaves."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ftray._core.streams import StreamRules, paused


def stream(items: int = 0, window: int = 0) -> StreamRules:
    """A stream of which so many items have come."""
    made = StreamRules(window)
    made.begin(0)
    for index in range(items):
        assert made.item(index, 0) == "take"
    return made


# --- items


def test_items_are_taken_in_order_and_once() -> None:
    s = stream()
    assert not s.ready() and not s.take()
    assert [s.item(index, 0) for index in (0, 0, 1)] == ["take", "repeat", "take"]
    assert [s.item(index, 0) for index in (3, 1, 2)] == ["gap", "repeat", "take"]
    assert [s.take() for _ in range(4)] == [True, True, True, False]


def test_a_later_attempt_repeats_and_goes_on() -> None:
    s = stream(3)
    s.begin(1)
    assert s.item(3, 0) == "stale", "of the attempt that is over"
    assert [s.item(index, 1) for index in range(5)] == ["repeat"] * 3 + ["take"] * 2


def test_nothing_is_taken_after_the_end() -> None:
    s = stream(1)
    assert s.end(False) == "clean"
    assert s.item(1, 0) == "stale"
    assert s.end(True) == "again"


def test_an_error_is_one_more_item() -> None:
    s = stream(2)
    assert s.end(True) == "error"
    assert [s.take() for _ in range(4)] == [True, True, True, False]
    assert s.over() and s.ready()


@given(before=st.integers(0, 5), now=st.integers(0, 5))
def test_an_attempt_that_yields_less_than_before_ends_with_an_error(before: int, now: int) -> None:
    s = stream(before)
    s.begin(1)
    for index in range(now):
        s.item(index, 1)
    assert s.end(False) == ("short" if now < before else "clean")
    assert s.received == max(before, now) + (now < before)


def test_a_renewed_stream_has_seen_nothing() -> None:
    s = stream(3)
    s.renew()
    s.begin(1)
    assert [s.item(index, 1) for index in range(2)] == ["take"] * 2
    assert s.end(False) == "clean" and s.received == 2


# --- consumers that leave


@pytest.mark.parametrize("watched", [False, True])
def test_after_the_consumer_has_left_nothing_is_wanted(watched: bool) -> None:
    s = stream(3)
    s.drop(watched)
    assert s.stopped is not watched
    assert s.item(3, 0) == "unwanted"
    assert s.end(True) == "clean", "nobody gets the error"
    assert s.over()


def test_the_producer_of_a_stream_without_consumer_is_told_that_all_is_consumed() -> None:
    s = stream(2, window=2)
    s.drop(True)
    assert s.word() == 2
    s.item(2, 0)
    assert s.word() == 3, "half a window"


# --- words to the producer


def test_a_producer_that_pauses_is_told_at_once() -> None:
    s = stream(4, window=4)
    assert s.word() is None
    s.take()
    assert s.word() == 1
    assert s.word() is None, "said once"


def test_a_consumer_that_keeps_up_says_so_for_half_a_window() -> None:
    s = stream(window=10)
    words = []
    for index in range(20):
        s.item(index, 0)
        s.take()
        words.append(s.word())
    assert [word for word in words if word] == [5, 10, 15, 20]


def test_there_are_no_words_without_a_window_or_after_the_end() -> None:
    s = stream(5)
    s.take()
    assert s.word() is None
    s = stream(5, window=5)
    s.end(False)
    s.take()
    assert s.word() is None


@given(window=st.integers(0, 5), produced=st.integers(0, 20), consumed=st.integers(0, 20))
def test_when_a_producer_pauses(window: int, produced: int, consumed: int) -> None:
    assert paused(window, produced, consumed) == (window > 0 and produced - consumed >= window)


# --- all of it


class StreamWorld(RuleBasedStateMachine):
    """An owner (the machine), a producer and two pipes: the consumer gets 0, 1, 2, ... once each."""

    @initialize(window=st.integers(0, 4))
    def start(self, window: int) -> None:
        self.window = window
        self.owner = StreamRules(window)
        self.attempt = 10
        self.owner.begin(self.attempt)
        self.items: deque[int] = deque()  # on the way to the owner
        self.words: deque[int] = deque()  # and to the producer
        self.produced = 0
        self.known = 0  # consumption, at the producer
        self.got = 0  # handed out
        self.received: list[int] = []  # taken in, in order
        self.dropped = self.stopped = self.ended = False
        self.errors = 0

    def tell(self) -> None:
        word = self.owner.word()
        if word is not None:
            assert word == self.owner.next
            self.words.append(word)

    @precondition(lambda self: not self.ended and not self.stopped)
    @rule(times=st.integers(1, 3))
    def produce(self, times: int) -> None:
        for _ in range(times):
            if not paused(self.window, self.produced, self.known):
                self.items.append(self.produced)
                self.produced += 1

    @precondition(lambda self: self.items and not self.ended)
    @rule()
    def arrive(self) -> None:
        index = self.items.popleft()
        verdict = self.owner.item(index, self.attempt)
        if index < len(self.received):
            assert verdict == "repeat"
        else:
            assert verdict == ("unwanted" if self.dropped else "take")
            self.received.append(index)
        self.tell()

    @precondition(lambda self: self.words)
    @rule()
    def word_arrives(self) -> None:
        self.known = max(self.known, self.words.popleft())

    @rule(index=st.integers(0, 30), back=st.integers(1, 10))
    def something_old_arrives(self, index: int, back: int) -> None:
        """A frame of an earlier attempt (late), or of this one a second time."""
        assert self.owner.item(index, self.attempt - back) == "stale"
        seen = self.produced - len(self.items)
        if index < seen:
            assert self.owner.item(index, self.attempt) == ("stale" if self.ended else "repeat")

    @precondition(lambda self: not self.dropped)
    @rule()
    def take(self) -> None:
        if self.owner.take():
            assert self.got < len(self.received) + self.errors
            self.got += 1
            self.tell()
        else:
            assert self.got == len(self.received) + self.errors

    @precondition(lambda self: not self.ended)
    @rule()
    def die(self) -> None:
        """The producer dies with what was on the way, and another one begins from the start."""
        self.items.clear()
        self.words.clear()
        self.attempt += 1
        self.produced = 0
        self.owner.begin(self.attempt)
        self.known = self.owner.next

    @precondition(lambda self: not self.ended and not self.items)
    @rule(failed=st.booleans())
    def end(self, failed: bool) -> None:
        short = self.produced < len(self.received)
        verdict = self.owner.end(failed)
        if self.dropped or not (failed or short):
            assert verdict == "clean"
        else:
            assert verdict == ("error" if failed else "short")
            self.errors = 1
        self.ended = True

    @precondition(lambda self: not self.dropped)
    @rule(watched=st.booleans())
    def leave(self, watched: bool) -> None:
        self.owner.drop(watched)
        self.dropped = True
        self.stopped = not watched
        self.tell()

    @invariant()
    def the_consumer_waits_only_for_what_is_not_there(self) -> None:
        if not self.dropped:
            assert self.owner.ready() == (self.got < len(self.received) or self.ended)
            assert self.owner.over() == (self.ended and self.got == len(self.received) + self.errors)

    @invariant()
    def no_more_than_a_window_is_unconsumed(self) -> None:
        if self.window and not self.dropped:
            assert len(self.received) - self.got <= self.window

    @invariant()
    def nobody_waits_for_the_other(self) -> None:
        """A producer that pauses while nothing is on the way has a consumer who is really that far behind."""
        still = not (self.items or self.words or self.ended or self.stopped)
        if still and paused(self.window, self.produced, self.known):
            assert not self.dropped
            assert self.produced - self.got >= self.window


TestStreamWorld = StreamWorld.TestCase
TestStreamWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
