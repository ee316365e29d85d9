"""A Markdown document as a program: its ``python`` blocks, at the lines where they stand.

Line n of the program is line n of the document, so that a traceback points at the text. Blocks of a document
form one program, in order; a block whose fence says ``python standalone`` is a program of its own. In a block
that begins with ``>>>`` the output is compared, as doctest does it (``...`` matches anything, the amount of
white space does not count).

This file is copied beside a program and imported from there, so it stands on the standard library alone.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any, NamedTuple

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+|~~~+) *(?P<words>[^`]*)$")
_COMPARE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PRELUDE = "from documents import compare as _compare"


class Block(NamedTuple):
    """A fenced block: the words behind the fence, its first line (1-based) and its lines."""

    words: tuple[str, ...]
    line: int
    lines: tuple[str, ...]

    @property
    def is_python(self) -> bool:
        return self.words[:1] == ("python",)

    @property
    def is_session(self) -> bool:
        """Does it show a session at the prompt, with what it prints?"""
        return next((text for text in self.lines if text.strip()), "").startswith(">>>")


def blocks(text: str) -> list[Block]:
    """Return every fenced block of a document, of whatever language."""
    found: list[Block] = []
    opened: tuple[str, tuple[str, ...], int, list[str]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened = (fence["ticks"], tuple(fence["words"].split()), number + 1, [])
        elif fence and not fence["words"].strip() and fence["ticks"].startswith(opened[0]):
            found.append(Block(opened[1], opened[2], tuple(opened[3])))
            opened = None
        else:
            opened[3].append(line)
    if opened is not None:
        raise ValueError(f"the block that begins at line {opened[2] - 1} has no end")
    return found


def programs(text: str) -> dict[int, str]:
    """Return the programs of a document by the line at which each begins."""
    shared: list[Block] = []
    found: dict[int, str] = {}
    for block in blocks(text):
        if not block.is_python:
            continue
        unknown = [word for word in block.words[1:] if word != "standalone"]
        if unknown:
            where = f"line {block.line - 1}"
            raise ValueError(
                f"{where}: {unknown[0]!r} is not known; a block is `python` or `python standalone`"
            )
        if "standalone" in block.words:
            found[block.line] = _program([block])
        else:
            shared.append(block)
    if shared:
        found[shared[0].line] = _program(shared)
    return dict(sorted(found.items()))


def _program(parts: list[Block]) -> str:
    lines: list[str] = []
    for block in parts:
        lines += [""] * (block.line - 1 - len(lines))
        if block.is_session:
            session = "\n".join(block.lines) + "\n"
            lines.append(f"_compare({session!r}, globals(), __file__, {block.line - 1})")
        else:
            lines += block.lines
    lines[0] = PRELUDE  # the first line of a document is its title
    return "\n".join(lines) + "\n"


def compare(session: str, names: dict[str, Any], file: str, line: int) -> None:
    """Run a session at the prompt; AssertionError when it prints something else than the document shows."""
    test = doctest.DocTestParser().get_doctest(session, names, Path(file).name, file, line)
    test.globs = names
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=_COMPARE).run(test, out=report.append, clear_globs=False)
    if result.failed:
        raise AssertionError("".join(report))


def anchors(text: str) -> set[str]:
    """Return what a link into the document may name: its headings as the usual renderers spell them."""
    code = {number for block in blocks(text) for number in range(block.line, block.line + len(block.lines))}
    headings = (
        line.lstrip("#").strip()
        for number, line in enumerate(text.splitlines(), 1)
        if line.startswith("#") and number not in code
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Return the targets of every link, those in code excluded."""
    code = {number for block in blocks(text) for number in range(block.line, block.line + len(block.lines))}
    prose = "\n".join(line for number, line in enumerate(text.splitlines(), 1) if number not in code)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose))


def table(text: str, head: str) -> list[list[str]]:
    """Return the cells of each row of the table whose first column has this heading."""
    lines = text.splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in lines]
    (begin,) = [number for number, cells in enumerate(rows) if cells and cells[0] == head]
    found = []
    for cells in rows[begin + 2 :]:
        if not cells:
            break
        found.append(cells)
    return found


def named(cell: str) -> list[str]:
    """Return the first word of each code span: the options that a row of a table is about."""
    return [re.match(r"[\w\-]+", span)[0] for span in re.findall(r"`([^`]+)`", cell)]  # type: ignore[index]
