"""Counting calls: the numbers, and when a look at what is due comes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ftray.checkpoint.counting import CallCount

METHOD, READS = "add", "value"
steps = st.lists(
    st.one_of(
        st.tuples(st.just("calls"), st.integers(1, 30)),
        st.tuples(st.sampled_from(["reads", "capture", "only_count", "go_on", "replayed"]), st.just(1)),
        st.tuples(st.just("continue_from"), st.integers(0, 100)),
    ),
    max_size=40,
)


@given(st.integers(1, 25), st.integers(1, 25), steps)
def test_each_call_is_counted_and_the_look_is_never_late(every: int, stride: int, done: list[Any]) -> None:
    looks: list[int] = []

    def look() -> None:
        looks.append(count.total)
        count.go_on()

    count = CallCount(frozenset({READS}), every, stride, look)
    total = captured = 0
    next_look: int | None = min(every, stride)  # at this total at the latest; None: no look is wanted

    def latest() -> int:
        left = every - (total - captured)
        return total + min(stride, left if left > 0 else every)

    for what, number in done:
        if what == "calls":
            for _ in range(number):
                seen = len(looks)
                count.counter.after_call(METHOD)
                total += 1
                assert (len(looks) > seen) == (total == next_look)
                if total == next_look:
                    assert looks[-1] == total and count.is_due == (total - captured >= every)
                    next_look = latest()
        elif what == "reads":
            count.counter.after_call(READS)
        elif what == "capture":
            count.capture()
            assert count.captured == total
            captured = total
            next_look = latest()
        elif what == "only_count":
            count.only_count()
            next_look = None
        elif what == "go_on":
            count.go_on()
            next_look = latest()
        elif what == "replayed":
            count.replayed()
            next_look = None if next_look is None else next_look + 1
            total += 1
            captured = total
        else:
            count.continue_from(number)
            next_look = None if next_look is None else next_look + number - total
            total = captured = number
            assert count.saved == number
        assert (count.total, count.captured) == (total, captured)
