"""No two kinds of frame, state or error have one number: two changes may each take the next free one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

CORE = Path(ROOT, "_core")
MEMBER = re.compile(r"^\s+(?P<name>[A-Z][A-Z0-9_]*)\s*=\s*(?P<number>-?\d+|0x[0-9a-fA-F]+)\s*(?:#.*)?$")


def enums() -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Every `cdef enum` of the core: where it stands, and its members with plain numbers."""
    for path in sorted([*CORE.glob("*.pxd"), *CORE.glob("*.pyx")]):
        lines = path.read_text().splitlines()
        for at, line in enumerate(lines):
            begin = re.match(r"^(?P<indent>\s*)(?:cdef|cpdef) enum\b(?P<name>[^:\"]*)", line)
            if begin is None:
                continue
            members = []
            for inner in lines[at + 1 :]:
                if inner.strip() and len(inner) - len(inner.lstrip()) <= len(begin["indent"]):
                    break
                found = MEMBER.match(inner)
                if found:
                    members.append((found["name"], int(found["number"], 0)))
            yield f"{path.name}:{at + 1} {begin['name'].strip()}", members


ENUMS = list(enums())


def test_the_enums_are_found():
    assert any({"F_TASK", "F_LAST"} <= dict(members).keys() for _, members in ENUMS)
    assert len(ENUMS) > 20


@pytest.mark.parametrize(("where", "members"), ENUMS, ids=[name for name, _ in ENUMS])
def test_no_number_stands_twice(where, members):
    by_number: dict[tuple[str, int], list[str]] = {}
    for name, number in members:
        by_number.setdefault((name.partition("_")[0], number), []).append(name)  # F_TASK is of the kind F
    assert {number: names for (_, number), names in by_number.items() if len(names) > 1} == {}
