"""Who holds answers for the toolkit is told what holds, and last what holds in the end."""

from __future__ import annotations

import threading

from ftray.checkpoint.releases import NO_CEILING, Releases


def test_whoever_listens_is_told_at_once_what_holds():
    releases = Releases()
    releases.durable(7)
    releases.set_ceiling(3)
    told = []
    releases.listen(lambda position, ceiling: told.append((position, ceiling)))
    assert told == [(3, 3)]
    releases.set_ceiling(NO_CEILING)
    releases.durable(9)
    assert told[1:] == [(7, NO_CEILING), (9, NO_CEILING)]


def test_a_slow_word_is_not_overtaken():
    """One thread is about to tell of a ceiling when another raises it: the last word is that it is raised."""
    releases = Releases()
    told: list[tuple[int, int]] = []
    telling, go_on = threading.Event(), threading.Event()

    def slow(position: int, ceiling: int) -> None:
        if ceiling == 5:
            telling.set()
            assert go_on.wait(20)
        told.append((position, ceiling))

    releases.listen(slow)
    lowering = threading.Thread(target=releases.set_ceiling, args=(5,))
    lowering.start()
    assert telling.wait(20)
    raising = threading.Thread(target=releases.set_ceiling, args=(NO_CEILING,))
    raising.start()
    go_on.set()
    lowering.join(20)
    raising.join(20)
    assert told[-1] == (0, NO_CEILING)


def test_a_journal_is_asked_to_tell_of_what_somebody_waits_for_and_of_nothing_else():
    releases = Releases()
    wanted: list[int | None] = []
    left: list[int] = []
    releases.hold(4, lambda _error: left.append(4))
    releases.tell_by(wanted.append)
    releases.hold(9, lambda _error: left.append(9))
    releases.hold(2, lambda _error: left.append(2))
    assert wanted == [4, 4, 2]
    releases.durable(3)
    assert (left, wanted[3:]) == ([2], [4])
    releases.durable(3)
    assert wanted[4:] == []
    releases.durable(9)
    assert (left, wanted[4:]) == ([2, 4, 9], [None])


def test_what_waits_for_the_ceiling_is_still_waited_for():
    releases = Releases()
    wanted: list[int | None] = []
    left: list[int] = []
    releases.tell_by(wanted.append)
    releases.set_ceiling(0)
    releases.hold(1, lambda _error: left.append(1))
    releases.durable(1)
    assert (left, wanted) == ([], [None, 1])
    releases.set_ceiling(NO_CEILING)
    assert (left, wanted) == ([1], [None, 1, None])
