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
