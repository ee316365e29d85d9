"""What becomes of a call, and which lease gets the next one, against models in a few lines of Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._core.rules import LeaseRules, TaskRules

WINDOW = 256
MAX_ASKED = 64
OK, ERROR, CANCELLED, GIVEN_BACK, RETRY = range(5)

# --- calls


class CallModel:
    """A call that may begin a bounded number of times."""

    def __init__(self, retries: int, actor: bool) -> None:
        self.beginnings_left = retries + 1 if retries >= 0 else None
        self.actor = actor
        self.cancelled = False
        self.begun = 0

    def again(self) -> bool:
        """It has begun once more; may it begin yet another time?"""
        if self.beginnings_left is None or self.beginnings_left > self.begun + 1:
            self.begun += 1
            return True
        return False

    def died(self, started: bool, actor_dead: bool) -> str:
        if self.cancelled:
            return "cancelled"
        if self.actor and actor_dead:
            return "actor_dead"
        if not started or self.again():
            return "run_again"
        return "unavailable" if self.actor else "crashed"

    def replied(self, status: int) -> str:
        if status == CANCELLED:
            return "cancelled"
        if status == GIVEN_BACK:
            return "cancelled" if self.cancelled else "run_again"
        if status == RETRY and not self.cancelled and self.again():
            return "run_again"
        return "complete"


EVENTS = st.one_of(
    st.tuples(st.just("died"), st.booleans(), st.booleans()),
    st.tuples(st.just("replied"), st.sampled_from([OK, ERROR, CANCELLED, GIVEN_BACK, RETRY, RETRY])),
    st.tuples(st.just("cancel")),
)


@settings(max_examples=300)
@given(retries=st.integers(-1, 5), actor=st.booleans(), events=st.lists(EVENTS, max_size=20))
def test_every_story_of_a_call_ends_as_the_model_says(
    retries: int, actor: bool, events: list[tuple[object, ...]]
) -> None:
    call, model = TaskRules(retries, actor), CallModel(retries, actor)
    for name, *arguments in events:
        if name == "cancel":
            call.cancel()
            model.cancelled = True
            continue
        verdict = getattr(call, str(name))(*arguments)
        assert verdict == getattr(model, str(name))(*arguments)
        assert call.attempt == model.begun
        if verdict != "run_again":
            return


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("actor", [False, True])
def test_retries_are_consumed_one_by_one_and_then_it_fails(retries: int, actor: bool) -> None:
    call = TaskRules(retries, actor)
    for attempt in range(retries):
        assert (call.attempt, call.retries_left) == (attempt, retries - attempt)
        assert call.died(True) == "run_again"
    assert call.died(True) == ("unavailable" if actor else "crashed")
    assert (call.attempt, call.retries_left) == (retries, 0)


def test_without_a_bound_it_runs_for_ever() -> None:
    call = TaskRules(-1)
    assert all(call.died(True) == "run_again" for _ in range(10_000))
    assert call.retries_left == -1 and call.attempt == 10_000


def test_what_had_not_begun_costs_nothing() -> None:
    call = TaskRules(0)
    assert all(call.died(False) == "run_again" for _ in range(100))
    assert all(call.replied(GIVEN_BACK) == "run_again" for _ in range(100))
    assert call.attempt == 0
    assert call.died(True) == "crashed"


def test_crashes_and_exceptions_share_the_bound() -> None:
    call = TaskRules(2)
    assert call.died(True) == "run_again"
    assert call.replied(RETRY) == "run_again"
    assert call.replied(RETRY) == "complete"  # the exception is the result


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("actor", [False, True])
def test_a_cancelled_call_never_runs_again(started: bool, actor: bool) -> None:
    for status in (GIVEN_BACK, CANCELLED, RETRY, OK, ERROR):
        call = TaskRules(-1, actor)
        call.cancel()
        assert call.replied(status) == ("cancelled" if status in (GIVEN_BACK, CANCELLED) else "complete")
    call = TaskRules(-1, actor)
    call.cancel()
    assert call.died(started) == "cancelled" and call.attempt == 0


def test_calls_of_a_dead_actor_fail_even_if_they_had_not_begun() -> None:
    assert TaskRules(-1, actor=True).died(False, actor_dead=True) == "actor_dead"
    assert TaskRules(0, actor=True).died(False) == "run_again"  # it comes back


# --- leases


@dataclass
class LeaseModel:
    load: int
    broken: bool = False
    paused: bool = False
    connected: bool = True
    last_reply_ns: int = 0
    taking_back: int = 0


LEASES = st.lists(
    st.builds(
        LeaseModel,
        load=st.one_of(st.integers(0, 4), st.integers(WINDOW - 2, WINDOW + 1)),
        broken=st.booleans(),
        paused=st.booleans(),
        connected=st.sampled_from([True, True, False]),
        last_reply_ns=st.integers(0, 1000),
        taking_back=st.sampled_from([0, 0, 3]),
    ),
    max_size=8,
)


def rules_of(leases: Sequence[LeaseModel], queued: int = 0) -> LeaseRules:
    rules = LeaseRules([lease.load for lease in leases], queued)
    for i, lease in enumerate(leases):
        rules.set(
            i,
            broken=lease.broken,
            paused=lease.paused,
            connected=lease.connected,
            last_reply_ns=lease.last_reply_ns,
            taking_back=lease.taking_back,
        )
    return rules


@settings(max_examples=300)
@given(LEASES)
def test_the_least_loaded_usable_lease_gets_the_next_call(leases: list[LeaseModel]) -> None:
    usable = [
        i
        for i, lease in enumerate(leases)
        if lease.connected and not lease.broken and not lease.paused and lease.load < WINDOW
    ]
    picked = rules_of(leases).pick()
    if not usable:
        assert picked is None
    else:
        assert picked in usable and leases[picked].load == min(leases[i].load for i in usable)


@settings(max_examples=300)
@given(LEASES, st.integers(0, 100))
def test_as_many_leases_are_wanted_as_calls_wait_for_one(leases: list[LeaseModel], queued: int) -> None:
    behind = sum(lease.load - 1 for lease in leases if lease.load and not lease.broken)
    assert rules_of(leases, queued).wanted() == min(queued + behind, MAX_ASKED)


def test_what_is_wanted_is_bounded_whatever_waits() -> None:
    assert LeaseRules([], 2**40).wanted() == MAX_ASKED
    assert LeaseRules([1, 1, 0], 0).wanted() == 0


@settings(max_examples=300)
@given(LEASES, st.integers(1000, 2000), st.integers(0, 1500))
def test_calls_are_taken_back_from_the_fullest_lease_that_has_gone_silent(
    leases: list[LeaseModel], now_ns: int, stale_ns: int
) -> None:
    silent = [
        i
        for i, lease in enumerate(leases)
        if not lease.broken
        and not lease.taking_back
        and lease.load > 1
        and now_ns - lease.last_reply_ns >= stale_ns
    ]
    found = rules_of(leases).overloaded(now_ns, stale_ns)
    if not silent:
        assert found is None
    else:
        assert found in silent and leases[found].load == max(leases[i].load for i in silent)


# --- the queue of a scheduling class


class Queue(RuleBasedStateMachine):
    """Calls leave in the order of their numbers, also those that were taken out and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = LeaseRules([])
        self.waiting: list[int] = []
        self.out: set[int] = set()
        self.number = 0

    @rule()
    def submit(self) -> None:
        self.rules.submit(self.number)
        self.waiting.append(self.number)
        self.number += 1

    @rule()
    def take(self) -> None:
        expected = self.waiting.pop(0) if self.waiting else None
        assert self.rules.take() == expected
        if expected is not None:
            self.out.add(expected)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.out)))
        self.out.remove(number)
        self.rules.put_back(number)
        self.waiting = sorted([*self.waiting, number])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.waiting))
        self.rules.withdraw(number)
        self.waiting.remove(number)

    @invariant()
    def in_order_both_ways(self) -> None:
        assert self.rules.queue() == (self.waiting, self.waiting[::-1], len(self.waiting))


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=100, stateful_step_count=50)


# --- ends by the memory monitor, and workers that leave


@given(st.integers(-1, 3), st.integers(-1, 3), st.lists(st.tuples(st.booleans(), st.booleans()), max_size=8))
def test_an_end_for_memory_uses_up_no_retry(retries: int, limit: int, ends: list[tuple[bool, bool]]) -> None:
    rules = TaskRules(retries)
    kills = 0
    for started, final in ends:
        verdict = rules.ended_for_memory(started, final, limit)
        if not started:
            assert verdict == "run_again"
        elif final or retries == 0 or 0 <= limit <= kills:
            assert verdict == "crashed"
            break
        else:
            kills += 1
            assert verdict == "run_later"
        assert (rules.retries_left, rules.attempt) == (retries, kills)


def test_a_cancelled_call_is_not_run_again_after_an_end_for_memory() -> None:
    rules = TaskRules(3)
    rules.cancel()
    assert rules.ended_for_memory(True) == "cancelled"
    assert TaskRules(3).ended_for_memory(True, final=True) == "crashed"


def test_the_pause_after_an_end_for_memory_doubles_up_to_a_minute() -> None:
    rules = TaskRules(-1)
    pauses = []
    for _ in range(80):
        rules.ended_for_memory(True)
        pauses.append(rules.memory_pause_ns(1_000_000_000) / 1e9)
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60] and pauses[-1] == 60


def test_a_worker_that_leaves_gets_nothing_more() -> None:
    rules = LeaseRules([0, 5])
    rules.set(0, spent=True)
    assert rules.pick() == 1
    rules.set(1, spent=True)
    assert rules.pick() is None


@given(st.lists(st.integers(0, 6), max_size=5), st.integers(1, 6))
def test_the_window_bounds_the_calls_in_flight(loads: list[int], window: int) -> None:
    rules = LeaseRules(loads, window=window)
    best = rules.pick()
    if min(loads, default=window) >= window:
        assert best is None
    else:
        assert best is not None and loads[best] == min(loads)
