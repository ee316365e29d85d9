"""How far apart saves are: the bucket, and the scheduler that asks it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.checkpoint.pace import Pace
from ftray.checkpoint.scheduler import CAPTURE, EVERY, SaveScheduler

SHARE, BURST_S, LONGEST_S = 0.02, 0.002, 0.1


def pace(share: float = SHARE) -> Pace:
    return Pace(0.0, share, burst_s=BURST_S, longest_s=LONGEST_S)


class TestPace:
    def test_a_burst_is_free_and_then_each_save_waits_until_it_is_paid(self) -> None:
        p = pace()
        assert [p.spent(0.001, 0.0), p.spent(0.001, 0.0)] == [None, None]
        until_s = p.spent(0.001, 0.0)
        assert until_s == pytest.approx(0.001 / SHARE)
        assert p.spent(0.001, until_s) == pytest.approx(2 * until_s)

    def test_rest_fills_the_bucket_to_a_burst_and_no_further(self) -> None:
        p = pace()
        assert p.spent(BURST_S, 0.0) is None
        assert p.spent(BURST_S, 1000.0) is None
        assert p.spent(BURST_S, 1000.0) == pytest.approx(1000.0 + BURST_S / SHARE)

    def test_no_wait_is_longer_than_the_longest(self) -> None:
        p = pace()
        assert p.spent(60.0, 5.0) == pytest.approx(5.0 + LONGEST_S)
        assert p.spent(60.0, 5.0 + LONGEST_S) == pytest.approx(5.0 + 2 * LONGEST_S)
        assert p.spent(0.0, 5.0 + 2 * LONGEST_S) is None

    def test_a_whole_cpu_means_no_bound(self) -> None:
        p = pace(1.0)
        assert [p.spent(60.0, now) for now in (0.0, 0.0, 1.0)] == [None] * 3

    @given(
        st.floats(0.001, 0.9),
        st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.2)), min_size=1, max_size=60),
    )
    def test_what_all_saves_take_is_bounded(self, share: float, saves: list[tuple[float, float]]) -> None:
        """Saves that the longest wait can pay for take the share of the time, and one burst."""
        p, now_s, spent_s, allowed_s = pace(share), 0.0, 0.0, 0.0
        for fraction, later_s in saves:
            now_s = max(now_s + later_s, allowed_s)
            cost_s = fraction * share * LONGEST_S
            spent_s += cost_s
            until_s = p.spent(cost_s, now_s)
            assert until_s is None or now_s <= until_s <= now_s + LONGEST_S * 1.001
            allowed_s = now_s if until_s is None else until_s
            assert spent_s <= BURST_S + share * allowed_s + 1e-9


def scheduler() -> SaveScheduler:
    return SaveScheduler(0.0, None, pace=Pace(0.0, SHARE, burst_s=0.0, longest_s=LONGEST_S))


def saved(s: SaveScheduler, now_s: float, cost_s: float = 0.001) -> tuple[str, ...]:
    s.started()
    return s.ended(True, now_s, cost_s)


class TestScheduler:
    def test_counted_calls_wait_and_the_timer_ends_it(self) -> None:
        s = scheduler()
        assert s.want(EVERY, 0.0) == (CAPTURE,)
        assert saved(s, 0.0) == ()
        assert s.deadline_s == pytest.approx(0.05)
        assert s.want(EVERY, 0.01) == () and not s.may_capture and s.wanted == EVERY
        assert s.timer(0.04, True) == () and not s.may_capture
        assert s.timer(0.05, True) == (CAPTURE,) and s.may_capture
        assert s.held_back == 1

    def test_calls_that_are_counted_later_do_not_wait(self) -> None:
        s = scheduler()
        s.want(EVERY, 0.0)
        saved(s, 0.0)
        assert s.want(EVERY, 0.06) == (CAPTURE,) and s.held_back == 0
        saved(s, 0.06)
        assert s.timer(0.2, True) == () and s.deadline_s is None

    @pytest.mark.parametrize("reason", ["request", "after", "journal", "nondeterministic", "base", "retry"])
    def test_other_reasons_never_wait_and_take_along_what_does(self, reason: str) -> None:
        s = scheduler()
        s.want(EVERY, 0.0)
        saved(s, 0.0)
        assert s.want(EVERY, 0.01) == ()
        assert s.want(reason, 0.01) == (CAPTURE,) and s.may_capture
        saved(s, 0.02)
        assert s.wanted is None
        assert s.want(EVERY, 0.03) == () and not s.may_capture, "the next one waits again"

    def test_nor_does_the_interval(self) -> None:
        s = SaveScheduler(0.0, 0.01, pace=Pace(0.0, SHARE, burst_s=0.0, longest_s=LONGEST_S))
        s.want(EVERY, 0.0)
        saved(s, 0.0)
        assert s.timer(0.01, True) == (CAPTURE,)

    def test_what_became_due_during_a_save_waits_after_it(self) -> None:
        s = scheduler()
        s.want(EVERY, 0.0)
        s.started()
        s.want(EVERY, 0.001)
        assert s.ended(True, 0.002, 0.001) == () and not s.may_capture and s.held_back == 1
        s.want("request", 0.003)
        s.started()
        assert s.want("request", 0.004) == ()
        assert s.ended(True, 0.005, 0.001) == (CAPTURE,), "it is not counting that wants it"

    def test_a_failed_save_is_retried_when_its_own_time_comes(self) -> None:
        s = scheduler()
        s.want(EVERY, 0.0)
        s.started()
        s.ended(False, 0.0, 0.001)
        s.want(EVERY, 0.01)
        assert s.timer(0.05, True) == (CAPTURE,)
        s.started()
        s.ended(False, 0.06, 0.001)
        assert s.failures == 2 and s.timer(2.06, True) == (CAPTURE,) and s.wanted == "retry"

    @pytest.mark.parametrize("seed", range(20))
    def test_no_want_is_ever_forgotten_nor_waits_longer(self, seed: int) -> None:
        rng = random.Random(seed)
        s, now_s, since_s = scheduler(), 0.0, None
        for _ in range(3000):
            now_s += rng.random() * 0.02
            event = rng.choice(["want", "want", "urgent", "end", "gap", "gap"])
            while s.deadline_s is not None and s.deadline_s <= now_s:  # the timer is punctual
                s.timer(s.deadline_s, False)
            if event in ("want", "urgent"):
                s.want(EVERY if event == "want" else "request", now_s)
                assert event == "want" or s.may_capture or s.in_flight
            elif event == "end" and s.in_flight:
                s.ended(True, now_s, rng.random() * 0.005)
            elif event == "gap" and s.may_capture:
                s.started()
            idle = s.wanted is not None and not s.in_flight and not s.may_capture
            since_s = (since_s if since_s is not None else now_s) if idle else None
            assert since_s is None or now_s - since_s <= LONGEST_S + 0.02, f"seed {seed}"
