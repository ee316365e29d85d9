"""Workers' output: from bytes of a pipe to labelled whole lines, and from many equal lines to one.

Two pure state machines.

``LineBuffer`` belongs to one pipe. Owns: the unfinished line, the label that the worker announced in-band
(a line of ``\\x1e`` name ``\\x1e``), the tail for error messages. Invariants: what it holds is bounded; a
line longer than the bound comes out in pieces.

``LineCollapser`` belongs to a driver. Owns: which lines other processes have just printed. Invariants: the
first of equal lines comes out at once; the others come out as one line with their count, never silently.
Leaves to others: pipes, frames, printing, the clock.
"""

from __future__ import annotations

from collections import deque

from ftray._node.record import Record

MAX_LINE_BYTES = 64 << 10
TAIL_LINES = 20
_MARK = b"\x1e"
_MAX_LABEL_BYTES = 256


class Chunk(Record):
    """Whole lines of one label."""

    label: str
    text: bytes


class LineBuffer:
    """Cut one pipe's bytes into labelled lines."""

    def __init__(self) -> None:
        self.label = ""
        self._partial = b""
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)

    def feed(self, data: bytes) -> list[Chunk]:
        """Add bytes; return the lines that are complete now, joined per label."""
        data = self._partial + data
        end = data.rfind(b"\n") + 1
        if len(data) - end > MAX_LINE_BYTES:
            whole, self._partial = data + b"\n", b""
        else:
            whole, self._partial = data[:end], data[end:]
        return self._chunks(whole)

    def finish(self) -> list[Chunk]:
        """The pipe is closed: return the unfinished line too."""
        rest, self._partial = self._partial, b""
        return self._chunks(rest + b"\n") if rest else []

    def tail(self) -> str:
        """Return the last lines, for messages about the process's end."""
        return b"".join(self._tail).decode(errors="replace").strip()

    def _chunks(self, whole: bytes) -> list[Chunk]:
        if not whole:
            return []
        if _MARK not in whole:
            self._remember(whole)
            return [Chunk(self.label, whole)]
        chunks: list[Chunk] = []
        pending: list[bytes] = []
        for line in whole.splitlines(keepends=True):
            if line.startswith(_MARK) and line.endswith(_MARK + b"\n"):
                if pending:
                    chunks.append(Chunk(self.label, b"".join(pending)))
                    pending = []
                self.label = line[1:-2][:_MAX_LABEL_BYTES].decode(errors="replace")
            else:
                pending.append(line)
        if pending:
            chunks.append(Chunk(self.label, b"".join(pending)))
        for chunk in chunks:
            self._remember(chunk.text)
        return chunks

    def _remember(self, text: bytes) -> None:
        start = max(0, len(text) - 4096)
        self._tail.extend(text[start:].splitlines(keepends=True)[-TAIL_LINES:])


class LineCollapser:
    """Print equal lines of many processes once, with a count.

    Parameters
    ----------
    window_s
        How long equal lines are counted before the count is printed.
    max_lines
        So many distinct lines are remembered; the oldest gives way, its count is printed.
    """

    def __init__(self, window_s: float = 5.0, max_lines: int = 256) -> None:
        self._window_s = window_s
        self._max_lines = max_lines
        self._seen: dict[str, _Repeat] = {}  # the oldest first

    def line(self, source: str, text: str, now_s: float) -> list[str]:
        """``source`` (the prefix to print) printed ``text``; return the lines to print now."""
        out = self.flush_due(now_s)
        seen = self._seen.get(text)
        if not text.strip() or (seen is not None and seen.first == source and not seen.count):
            return [*out, f"{source}{text}"]  # one process that repeats itself means it
        if seen is not None:
            seen.count += 1
            seen.last = source
            return out
        if len(self._seen) >= self._max_lines:
            out += self._summary(next(iter(self._seen)))
        self._seen[text] = _Repeat(source, now_s)
        return [*out, f"{source}{text}"]

    def flush_due(self, now_s: float) -> list[str]:
        """Return the counts whose window is over."""
        due = [text for text, seen in self._seen.items() if now_s - seen.since_s >= self._window_s]
        return [line for text in due for line in self._summary(text)]

    def flush(self) -> list[str]:
        """Return every count (the driver ends)."""
        return [line for text in list(self._seen) for line in self._summary(text)]

    def next_flush_s(self) -> float | None:
        """Return when ``flush_due`` has something to say, None when nothing is counted."""
        due = [seen.since_s for seen in self._seen.values() if seen.count]
        return min(due) + self._window_s if due else None

    def _summary(self, text: str) -> list[str]:
        seen = self._seen.pop(text)
        return [f"{seen.last}{text} [repeated {seen.count}x across processes]"] if seen.count else []


class _Repeat:
    """A line seen within the window."""

    __slots__ = ("count", "first", "last", "since_s")

    def __init__(self, source: str, now_s: float) -> None:
        self.first = source
        self.last = source
        self.since_s = now_s
        self.count = 0
