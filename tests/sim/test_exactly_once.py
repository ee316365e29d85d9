"""The exactly-once protocol: with all rules no invariant breaks; without any one of them a known one does.

``python -m tests.sim.exactly_once --long`` explores larger sizes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sim.exactly_once import BREAKS, LONG, MODELS, run, without
from tests.sim.exactly_once_rules import I9, INVARIANTS, RULE_NAMES, Rules
from tests.sim.explorer import TooLargeError, explore

TEXT = (Path(__file__).parents[2] / "docs" / "exactly-once.md").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_no_invariant_breaks(name: str) -> None:
    result = run(MODELS[name], Rules())
    print(f"{name}: {result}")
    assert not result.broken, result


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_without_one_rule_an_invariant_breaks(rule: str) -> None:
    result = without(rule)
    print(f"without {rule}: {result}")
    assert result.broken == BREAKS[rule][1]
    assert result.trace


def test_every_rule_has_a_place_where_it_shows() -> None:
    assert tuple(BREAKS) == RULE_NAMES
    assert {name for name, _ in BREAKS.values()} <= set(MODELS)


def test_an_exploration_that_is_not_exhaustive_says_so() -> None:
    with pytest.raises(TooLargeError, match="more than 100 states"):
        explore(LONG["fencing"](Rules()), stuck=I9, max_states=100)


def test_a_trace_is_readable() -> None:
    assert str(without("store_load_fences")).splitlines()[1:] == [
        "   1. the old one stores its record",
        "   2. the old one loads the fence word: open, and answers",
        "   3. the new one stores the fence word",
        "   4. the new one reads: no record",
    ]


def test_the_page_has_the_rules_and_what_breaks_without_them() -> None:
    rows = re.findall(r"^\| R(\d+) \| `(\w+)` \|.*\| (I\d) \|", TEXT, re.MULTILINE)
    assert rows == [(str(n), rule, BREAKS[rule][1][:2]) for n, rule in enumerate(RULE_NAMES, 1)]


def test_the_page_has_the_invariants_and_the_models() -> None:
    assert re.findall(r"^\| (I\d) \| ([^|]+) \|", TEXT, re.MULTILINE) == [(i[:2], i[3:]) for i in INVARIANTS]
    assert [name for name in MODELS if f"| {name} |" not in TEXT] == []
