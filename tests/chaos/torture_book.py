"""The reference of the torture: what was to be applied, and what replies must be. Knows no runtime."""

from __future__ import annotations

import os
import threading
from collections import Counter

from tests.chaos.torture_actors import Reply, mix


class Page:
    """One actor: entries given out, and what its replies have said."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.issued = 0
        self.numbers = bytearray()  # by a reply's number: how often it was given
        self.answered = bytearray()  # by entry: how many different replies it had
        self.refused: set[int] = set()  # entries that may have been applied or not


class Book:
    """All entries of a run. Problems are texts; `wrong` counts them by kind.

    With `log`, a descriptor, every reply is also written there as a line, before the next one.
    """

    def __init__(self, names: list[str], log: int | None = None) -> None:
        self._log = log
        self.pages = {name: Page(name) for name in names}
        self.problems: list[str] = []
        self.wrong: Counter[str] = Counter()
        self.calls = 0
        self.poisoned = 0  # calls refused because processes died in them again and again
        self._lock = threading.Lock()
        self.moved = threading.Condition(self._lock)

    def entry(self, name: str) -> int:
        """The next index of this actor."""
        with self._lock:
            page = self.pages[name]
            page.issued += 1
            return page.issued - 1

    def problem(self, kind: str, text: str) -> None:
        with self._lock:
            self.wrong[kind] += 1
            if len(self.problems) < 100:
                self.problems.append(f"{kind}: {text}")

    def refuse(self, name: str, index: int) -> None:
        """The call was refused for good: the entry may or may not have been applied, but not twice."""
        with self._lock:
            self.pages[name].refused.add(index)

    def replied(self, name: str, index: int, number: int, times: int) -> None:
        """An entry was answered: as the `number`-th of its actor, applied `times` times."""
        with self._lock:
            page = self.pages[name]
            self.calls += 1
            self.moved.notify_all()
            for kept, at in ((page.numbers, number), (page.answered, index)):
                if at >= len(kept):
                    kept.extend(bytes(max(65536, at + 1 - len(kept))))
                kept[at] = min(255, kept[at] + 1)
            if self._log is not None:
                os.write(self._log, f"{name}[{index}]\t{number}\n".encode())
        if times != 1:
            self.problem("doubled", f"{name}[{index}] was applied {times} times by its reply")

    def reply(self, name: str, index: int, given: int, reply: Reply) -> int:
        """The same for a leaf's whole reply; returns its number."""
        number, times, mixed = reply
        self.replied(name, index, number, times)
        if mixed != mix(index, given):
            self.problem("wrong reply", f"{name}[{index}] of {given} answered {reply}")
        return number

    def in_order(self, name: str, last: int, number: int) -> int:
        """Calls of one flow to one actor are applied in their order."""
        if number <= last:
            self.problem("out of order", f"{name} numbered a later call {number} after {last}")
        return number

    def close(self, name: str, last: int, applied: bytes) -> None:
        """Compare with what the actor has in the end."""
        page = self.pages[name]
        for index in range(page.issued):
            times = applied[index] if index < len(applied) else 0
            answered = page.answered[index] if index < len(page.answered) else 0
            if times == 0 and index not in page.refused:
                self.problem("lost", f"{name}[{index}], answered {answered} times")
            elif times > 1:
                self.problem("doubled", f"{name}[{index}] was applied {times} times")
        if any(applied[page.issued :]):
            self.problem("invented", f"{name} has applied what nobody asked for")
        if last != sum(applied):
            self.problem("wrong state", f"{name} counts {last}, and {sum(applied)} were applied")
        self._close_numbers(page, last)

    def _close_numbers(self, page: Page, last: int) -> None:
        twice = [n for n, times in enumerate(page.numbers) if times > 1]
        missing = [n for n in range(1, last + 1) if n >= len(page.numbers) or not page.numbers[n]]
        if twice:
            self.problem("doubled number", f"{page.name} gave {len(twice)} numbers twice: {twice[:5]}")
        if len(missing) > len(page.refused):
            text = f"{page.name} gave {len(missing)} numbers to nobody: {missing[:5]}"
            self.problem("number without a reply", text)
        if any(page.numbers[last + 1 :]):
            self.problem("lost", f"{page.name} has answered with numbers above {last}, which is its last")
