"""Each rule of docs/exactly-once.md names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "exactly-once.md").read_text()


def rules(numbers: str) -> list[str]:
    return re.findall(r"R\d+", numbers)


def test_every_rule_has_its_line_and_every_test_named_there_exists() -> None:
    stated = re.findall(r"^\| (R\d+) \| `(?!test_)\w+` \|", DOCUMENT, re.M)
    table = re.search(r"### Which test fails without it\n(.*?)\n## ", DOCUMENT, re.S)
    assert table is not None
    lines = re.findall(r"^\| (R[^|]*) \| (.*) \|$", table[1], re.M)
    assert [rule for numbers, _ in lines for rule in rules(numbers)] == stated
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    written += (ROOT / "tests/unit/checkpoint/journal_suite.py").read_text()
    defined = set(re.findall(r"def (test_\w+)", written))
    for numbers, tests in lines:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named or tests.startswith(("Model", "not implemented")), numbers
        assert set(named) <= defined, (numbers, set(named) - defined)
