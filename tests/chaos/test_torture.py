"""A short torture of exactly-once actors (``make torture`` is a long one), and that it sees what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests import ROOT
from tests.chaos.torture_actors import mix
from tests.chaos.torture_book import Book

WORKERS = ["--kills", "25", "--calls", "6000"]
DRIVERS = ["--driver-kills", "2", "--driver-batches", "12"]
SHORT = ["--parts", "file,drivers", *WORKERS, *DRIVERS]
SEED = "short"  # the same plan in every run; FTRAY_CHAOS_SEED names another


@pytest.mark.limit(120)
def test_short_run():
    seed = os.environ.get("FTRAY_CHAOS_SEED", SEED)
    result = subprocess.run(
        [sys.executable, "-m", "tests.chaos.torture", *SHORT, "--seed", seed],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join([*sys.path, ROOT])),
        timeout=110,
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}\n{result.stderr[-20000:]}"
    assert result.stdout.count("lost 0, doubled 0, other problems 0") == 2
    assert int(re.search(r"calls judged +(\d+)", result.stdout)[1]) >= 6000
    assert int(re.search(r"kills +(\d+)", result.stdout)[1]) == 25
    assert int(re.search(r"drivers killed +(\d+)", result.stdout)[1]) >= 1


# --- its judgement: a pass that cannot fail proves nothing


def filled() -> Book:
    """Three entries, each applied once and answered."""
    book = Book(["leaf"])
    for number in (1, 2, 3):
        index = book.entry("leaf")
        book.reply("leaf", index, 5, (number, 1, mix(index, 5)))
    return book


def test_a_right_run_has_no_problems():
    book = filled()
    book.close("leaf", 3, b"\1\1\1\0\0")
    assert book.problems == []
    assert book.calls == 3


@pytest.mark.parametrize(
    ("last", "applied", "kind"),
    [
        (2, b"\1\0\1", "lost"),
        (4, b"\1\2\1", "doubled"),
        (4, b"\1\1\1\1", "invented"),
        (4, b"\1\1\1", "wrong state"),
        (4, b"\1\1\2", "number without a reply"),
    ],
)
def test_a_wrong_state_is_seen(last, applied, kind):
    book = filled()
    book.close("leaf", last, applied)
    assert book.wrong[kind] > 0, book.problems


def test_wrong_replies_are_seen():
    book = filled()
    index = book.entry("leaf")
    book.reply("leaf", index, 5, (4, 2, mix(index, 5)))
    assert book.wrong == {"doubled": 1}
    book.reply("leaf", index, 5, (4, 1, 0))
    assert book.wrong["wrong reply"] == 1
    book.in_order("leaf", 4, 4)
    assert book.wrong["out of order"] == 1
    book.close("leaf", 4, b"\1\1\1\1")
    assert book.wrong["doubled number"] == 1


def test_what_was_refused_may_be_missing_but_not_be_there_twice():
    book = filled()
    for _ in range(2):
        book.refuse("leaf", book.entry("leaf"))
    book.close("leaf", 4, b"\1\1\1\0\1")
    assert book.problems == []
    book.close("leaf", 5, b"\1\1\1\0\2")
    assert book.wrong["doubled"] == 1
