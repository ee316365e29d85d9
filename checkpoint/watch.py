"""Counts the incarnations that died while they ran one recorded call again, and tells them from chance.

A process that is killed while it recovers is started again, and gets as far as it got: nothing is wrong with
that. But a recorded call may end every process that runs it again (a segmentation fault, memory that is not
there any more), and then the actor would be restarted for ever. What tells the two apart is *where* they
die: the same call three times in a row, and nobody has got past it. Kills from outside hit another place the
next time; and once a recovery has got past the place, those who died there did so by chance: from then on
one more death is needed for each of them, as far as `MOST_BY_CHANCE`.

Owns what is noted of that (`Row`), and when. Deaths between two recorded calls say nothing. Pure but for the
notes, which the store keeps (`Store.open_watch`): in memory of the machine, as long as it is up.
"""

from __future__ import annotations

import contextlib
import struct
from typing import NamedTuple

from .errors import CheckpointError
from .stores.protocol import Store, WatchFile

PARK_AFTER = 3
MOST_BY_CHANCE = 17
PARTS = 16
"""Where a note costs a request: into how many parts the suspected calls are divided, each time."""
_NOTE = struct.Struct("<QQIIQQB7x")
_PLACE, _PLACE_AT = struct.Struct("<QQ"), 24
_NOWHERE = _PLACE.pack(0, 0)
NOTE_BYTES = _NOTE.size


class Row(NamedTuple):
    """Deaths in a row in the same place.

    Attributes
    ----------
    first, last : int
        The journal positions of the place; 0: there is none.
    deaths : int
    by_chance : int
        Deaths in other places, or that later proved to say nothing.
    """

    first: int = 0
    last: int = 0
    deaths: int = 0
    by_chance: int = 0

    @property
    def too_many(self) -> bool:
        """Whether one and the same call is to blame."""
        return 0 < self.first == self.last and self.deaths >= PARK_AFTER + min(self.by_chance, MOST_BY_CHANCE)


class Note(NamedTuple):
    """What an incarnation says: the row before it, and where it is just now (0, 0: in no recorded call)."""

    row: Row
    first: int = 0
    last: int = 0
    over: bool = False


def encode(note: Note) -> bytes:
    """Return the bytes of a note."""
    row = note.row
    return _NOTE.pack(row.first, row.last, row.deaths, row.by_chance, note.first, note.last, note.over)


def decode(data: bytes | None) -> Note:
    """Read a note; an empty one if it is none."""
    if data is None or len(data) < NOTE_BYTES:
        return Note(Row())
    first, last, deaths, by_chance, at_first, at_last, over = _NOTE.unpack_from(data)
    return Note(Row(first, last, deaths, by_chance), at_first, at_last, bool(over))


def after_death(note: Note) -> Row:
    """Return what the next incarnation knows, if this is the last word of one that is dead."""
    row = note.row
    if not note.first:
        return row
    if (note.first, note.last) == (row.first, row.last):
        return row._replace(deaths=row.deaths + 1)
    if row.first <= note.first and note.last <= row.last:  # the same place, seen more closely
        return Row(note.first, note.last, 1, row.by_chance)
    return Row(note.first, note.last, 1, row.by_chance + row.deaths)


def passed(row: Row) -> Row:
    """Return the row when an incarnation has got past its place."""
    return Row(0, 0, 0, min(row.by_chance + row.deaths, MOST_BY_CHANCE))


class Watch:
    """What one recovery notes.

    Parameters
    ----------
    first, last : int
        Positions of the journal that are replayed.
    suspicious : bool
        The incarnation before has not come to serve. Where a note costs a request, none is made else.
    """

    def __init__(self, store: Store, key: str, epoch: int, first: int, last: int, suspicious: bool) -> None:
        self._file: WatchFile | None = None
        self._cheap = store.notes_each_call
        self._until = 0  # what the present note covers
        self._step = max(1, -(-(last - first + 1) // PARTS))
        if not (self._cheap or suspicious):
            self.row = Row()
            return
        before = decode(store.read_watch(key))
        self.row = after_death(before)
        if self.row.last < first:  # a snapshot contains it
            self.row = passed(self.row)
        self._calm = before.over  # nobody has died in a recovery since the last one that succeeded
        self._file = store.open_watch(key, epoch)
        self._write()

    def _write(self, first: int = 0, last: int = 0, over: bool = False) -> None:
        assert self._file is not None
        self._file.write(encode(Note(self.row, first, last, over)))

    def enter(self, position: int) -> None:
        """The call recorded at `position` is run again now."""
        if self._file is None or position <= self._until:
            return
        if self._cheap:
            self._file.write(_PLACE.pack(position, position), _PLACE_AT)
            return
        self._until = self._part_from(position)
        self._write(position, self._until)

    def _part_from(self, position: int) -> int:
        """The end of the part of the journal that one note covers."""
        row = self.row
        if position < row.first:
            return min(position + self._step, row.first) - 1
        if position <= row.last:
            return min(position - 1 + max(1, -(-(row.last - row.first + 1) // PARTS)), row.last)
        return position + self._step - 1

    def leave(self, position: int) -> None:
        """It has ended, and did not end the process."""
        if self._file is None:
            return
        if self.row.deaths and position >= self.row.last:
            self.row = passed(self.row)
            self._until = position
            self._write()
        else:
            self.nowhere()

    def nowhere(self) -> None:
        """No recorded call runs."""
        if self._file is not None and self._cheap:
            self._file.write(_NOWHERE, _PLACE_AT)

    def over(self) -> None:
        """All recorded calls have run again: whoever died in one of them did so by chance."""
        if self._file is None:
            return
        self.row = passed(self.row)
        if self._calm:
            self.row = self.row._replace(by_chance=self.row.by_chance // 2)
        self._write(over=True)
        self._file.close()
        self._file = None

    def close(self) -> None:
        """The recovery has failed by an error, which is counted by itself."""
        if self._file is None:
            return
        with contextlib.suppress(CheckpointError):  # what has failed before is told
            self._write()
        self._file.close()
        self._file = None
