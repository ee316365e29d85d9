"""`power`: records of a busy appender are written together; none waits for a word that never comes."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from ftray._core.journal import LocalJournal
from ftray.checkpoint.stores.local import LocalStore
from tests.helpers.sync import eventually

from .journal_suite import WAIT_S, begin, payload, read, upto


def one_more_while_others_are_synced(store: LocalStore) -> LocalJournal:
    """A journal whose thread has synced record 1 and finds record 2, whose appender is busy."""
    _, journal = begin(store, "power")
    assert isinstance(journal, LocalJournal)
    journal.rest()
    journal.inject("file.journal.synced", "stall")
    journal.append(payload(1))
    assert journal.wait_stalled(WAIT_S)
    journal.append(payload(2))
    journal.release()
    return journal


@pytest.mark.parametrize("word", ["none", "rest", "flush", "wait"])
def test_what_was_gathered_becomes_durable(tmp_path: Path, word: str) -> None:
    journal = one_more_while_others_are_synced(LocalStore(str(tmp_path)))
    if word == "wait":
        journal.wait(2, WAIT_S)
    elif word != "none":
        getattr(journal, word)()
    eventually(lambda: journal.durable_position == 2)
    journal.close(WAIT_S)
    assert read(LocalStore(str(tmp_path))) == upto(2)


def test_closing_does_not_wait_for_more(tmp_path: Path) -> None:
    journal = one_more_while_others_are_synced(LocalStore(str(tmp_path)))
    journal.close(WAIT_S)
    assert journal.durable_position == 2 and read(LocalStore(str(tmp_path))) == upto(2)


def test_a_busy_appender_has_fewer_commits_than_records(tmp_path: Path) -> None:
    """However fast the medium is: what came while records were synced is written together."""
    store = LocalStore(str(tmp_path))
    _, journal = begin(store, "power")
    assert isinstance(journal, LocalJournal)
    journal.rest()
    for position in range(1, 3001):
        assert journal.append(payload(position)) == position
    journal.rest()
    journal.wait(3000, WAIT_S)
    assert journal.stats()["commits"] < 1500
    journal.close(WAIT_S)
    assert read(LocalStore(str(tmp_path))) == upto(3000)


@pytest.mark.parametrize("seed", range(4))
def test_any_words_in_any_order(tmp_path: Path, seed: int) -> None:
    """Several threads append, rest, flush and wait as they like: nothing stays behind."""
    _, journal = begin(LocalStore(str(tmp_path)), "power")
    assert isinstance(journal, LocalJournal)
    failed: list[BaseException] = []

    def act(number: int) -> None:
        dice = random.Random(seed * 10 + number)
        try:
            for _ in range(200):
                last = journal.append(b"x")
                word = dice.choice(["rest", "flush", "wait", "nothing", "nothing"])
                if word == "wait":
                    journal.wait(last, WAIT_S)
                elif word != "nothing":
                    getattr(journal, word)()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=act, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    eventually(lambda: journal.durable_position == 600)
    journal.close(WAIT_S)
