"""Which records of which segments count after a crash: decisions over what scans have told. Pure.

Epochs are chained by first positions: the first segment of an epoch says where it begins, and cuts what any
older epoch has from there on. Within an epoch the records are one unbroken run. Where it breaks, one
question decides: *had what is broken here been durable, or complete?* Then the journal is damaged, and an
error says so. Else it is the unfinished tail of a dead writer, and is cut:

- `power`: it had been durable if any record found says that positions up to there were synced. A segment's
  header and size were durable before its first record.
- `process`, in the same boot: the page cache loses nothing, so only the very last record can be unfinished;
  a valid record behind it means damage.
- `process`, after a new boot: as in `power`; but what is cut may have been answered, and is told as lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .errors import CheckpointCorruptedError
from .segments import DATA, Record, Scan

NEVER = 1 << 63
"""First position of an epoch that never wrote a record: it cuts nothing."""


class Unread(NamedTuple):
    """A segment whose header could not be read.

    ``blank_header``: where it belongs there is nothing, or zeros; ``blank``: and nowhere else anything
    either. ``same_boot``: the epoch is known to be of the present boot.
    """

    epoch: int
    number: int
    durability: str
    why: str
    blank_header: bool
    blank: bool
    same_boot: bool


class EpochRun(NamedTuple):
    """The records of one epoch that are valid and unbroken, with the number of the segment that each is
    in."""

    epoch: int
    first_position: int
    records: list[tuple[int, Record]]
    notes: list[str]
    lost: list[str]

    @property
    def last_position(self) -> int:
        """The last valid position; the one before the first if there is none."""
        return self.records[-1][1].position if self.records else self.first_position - 1


class Chosen(NamedTuple):
    """What counts: (epoch, segment number, record), in order of positions."""

    records: list[tuple[int, int, Record]]
    last_position: int
    notes: list[str]
    lost: list[str]


class _Epoch:
    """What is known of an epoch while its segments are judged one after the other."""

    def __init__(self, run: EpochRun, scans: Sequence[Scan], boot_id: bytes, cut: int) -> None:
        header = scans[0].header
        self.run, self.cut, self.mode = run, cut, header.durability
        self.new_boot = header.boot_id != boot_id
        self.may_lose = self.mode == "process" and self.new_boot
        self.synced = max(s.synced for s in scans)

    def damaged(self, why: str) -> None:
        position = self.run.last_position + 1
        if position < self.cut:
            raise _damaged(self.run.epoch, position, why)

    def breaks(self, why: str, beyond: Sequence[Record]) -> None:
        """The run ends here, though more was found, or may have been."""
        position = self.run.last_position + 1
        if position >= self.cut:
            return
        later = max((r.position for r in beyond), default=0)
        if self.synced >= position:
            self.damaged(f"{why}, and positions up to {self.synced} had been made durable")
        if self.may_lose:
            self.lost(why, later)
        elif self.mode == "process" and later >= position:
            self.damaged(f"{why}, and a whole record at position {later} follows")
        else:
            self.run.notes.append(
                f"epoch {self.run.epoch}: the unfinished tail after position {position - 1} was cut ({why})"
            )

    def lost(self, why: str, later: int = 0) -> None:
        traces = f"; traces of position {later} were found" if later > self.run.last_position else ""
        self.run.lost.append(
            f"epoch {self.run.epoch} ran with durability='process' until this machine went down: its journal "
            f"ends at position {self.run.last_position} ({why}){traces}. Calls answered after it are lost; "
            "durability='power' keeps them"
        )


def _damaged(epoch: int, position: int, why: str) -> CheckpointCorruptedError:
    return CheckpointCorruptedError(
        f"the journal is damaged at position {position} of epoch {epoch}: {why}. Nothing is started "
        "without what was "
        "answered: put back a good copy of the segment, or restore a snapshot that includes that position"
    )


def judge_epoch(segments: Sequence[Scan | Unread], boot_id: bytes, cut: int = NEVER) -> EpochRun:
    """Return the run of one epoch.

    Parameters
    ----------
    segments : sequence of Scan or Unread
        At least one, ascending by number. The first ones of the epoch may be missing: they were trimmed.
    boot_id : bytes
        The present boot.
    cut : int
        The lowest first position of all later epochs: what is wrong from there on is of no concern.

    Raises
    ------
    CheckpointCorruptedError
    """
    first = segments[0]
    if isinstance(first, Unread):
        return _judge_unread(first, segments, cut)
    scans = [s for s in segments if isinstance(s, Scan)]
    run = EpochRun(first.header.epoch, _begin(first), [], [], [])
    epoch = _Epoch(run, scans, boot_id, cut)
    number = first.header.number
    for segment in segments:
        rest = [r for s in scans if s.header.number > number for r in (*s.records, *s.beyond)]
        if not _judge_segment(epoch, segment, number, rest):
            return run
        number += 1
    if epoch.may_lose:
        epoch.breaks(f"segment {number} is missing", [])
    else:
        epoch.damaged(f"segment {number - 1} says that another one follows, and there is none")
    return run


def _begin(first: Scan) -> int:
    if first.header.first_position:
        return first.header.first_position
    if not first.records:
        return NEVER
    return first.records[0].position + (first.records[0].kind != DATA)


def _judge_segment(epoch: _Epoch, segment: Scan | Unread, number: int, rest: list[Record]) -> bool:
    """Add the records of a segment to the run; whether the next segment goes on with it."""
    if isinstance(segment, Unread):
        why = f"segment {segment.number}: {segment.why}"
        if epoch.may_lose and segment.blank_header:
            epoch.breaks(why, rest)
        else:
            epoch.damaged(why)
        return False
    if segment.header.number != number:
        epoch.breaks(f"segment {number} is missing", rest + segment.records)
        return False
    problem = _take(epoch.run, segment)
    if problem:
        epoch.breaks(problem, segment.beyond + rest)
        return False
    if segment.ended:
        return True
    if segment.short and not epoch.may_lose and (segment.records or number > 1 or not epoch.new_boot):
        epoch.damaged(f"segment {number} has {segment.length} bytes where {segment.header.size} were written")
    elif segment.broken is not None:
        why = f"segment {number} holds no whole record at offset {segment.broken}"
        epoch.breaks(why, segment.beyond + rest)
    elif any(r.kind == DATA for r in rest):
        epoch.breaks(f"segment {number} ends before the next one begins", rest)
    elif epoch.may_lose and not segment.closed:
        epoch.lost("what came after it, if anything did, was not written out")
    return False


def _judge_unread(first: Unread, segments: Sequence[Scan | Unread], cut: int) -> EpochRun:
    """The first segment cannot be read: nothing of the epoch was ever durable, or the journal is damaged."""
    may_lose = first.durability == "process" and first.blank_header
    written = any(isinstance(s, Scan) and s.records for s in segments)
    run = EpochRun(first.epoch, NEVER, [], [], [])
    why = f"segment {first.number}: {first.why}"
    if first.same_boot or first.number > 1 or not (may_lose or (first.blank and not written)):
        raise _damaged(first.epoch, 0, why)
    if may_lose:
        run.lost.append(
            f"epoch {first.epoch} ran with durability='process' until this machine went down, and nothing of "
            f"its journal was written out ({why}). Calls it answered are lost; durability='power' keeps them"
        )
    else:
        run.notes.append(f"epoch {first.epoch} never wrote a record ({why})")
    return run


def _take(run: EpochRun, segment: Scan) -> str:
    """Add the records of a segment to a run; returns what is wrong with where they begin."""
    number = segment.header.number
    for record in segment.records:
        expected = run.last_position + (record.kind == DATA)
        if record.position != expected:
            return f"segment {number} goes on with position {record.position} where {expected} comes next"
        if record.kind == DATA:
            run.records.append((number, record))
    return ""


def judge(
    epochs: Mapping[int, Sequence[Scan | Unread]], boot_id: bytes, after: int, limits: Mapping[int, int]
) -> Chosen:
    """Decide about all epochs of a key: what counts after a position.

    Parameters
    ----------
    epochs : mapping of int to sequence of Scan or Unread
        The segments of each epoch, ascending by number.
    after : int
        Position of the snapshot that was restored.
    limits : mapping of int to int
        Per epoch, the last position that may be taken for durable where that is less than what can be read.

    Raises
    ------
    CheckpointCorruptedError
    """
    runs: list[EpochRun] = []
    cut = NEVER
    for epoch in sorted(epochs, reverse=True):
        if cut <= after + 1:
            break  # nothing that older epochs have counts any more, so they may be damaged
        run = judge_epoch(epochs[epoch], boot_id, min(cut, limits.get(epoch, NEVER) + 1))
        runs.insert(0, run)
        cut = min(cut, run.first_position)
    return chain(runs, after, limits)


def chain(runs: Sequence[EpochRun], after: int, limits: Mapping[int, int]) -> Chosen:
    """Chain the runs of all epochs, oldest first, into the records after a position.

    Raises
    ------
    CheckpointCorruptedError
        Positions are missing.
    """
    chosen: list[tuple[int, int, Record]] = []
    reach, cut = 0, NEVER
    for run in reversed(runs):
        bound = min(cut - 1, limits.get(run.epoch, NEVER))
        chosen[:0] = [(run.epoch, n, r) for n, r in run.records if after < r.position <= bound]
        if run.first_position <= bound and run.first_position != NEVER:
            reach = max(reach, run.first_position - 1)
        cut = min(cut, run.first_position)
    for expected, (_, _, record) in enumerate(chosen, after + 1):
        if record.position != expected:
            raise _gap(after, expected, record.position)
    last = chosen[-1][2].position if chosen else after
    if reach > last:
        raise _gap(after, last + 1, reach + 1)
    # An incarnation that has begun a journal has told before what it found of those before it.
    begun = max((i for i, run in enumerate(runs) if run.first_position != NEVER), default=0)
    notes = [text for run in runs[begun:] for text in run.notes]
    lost = [text for run in runs[begun:] for text in run.lost]
    return Chosen(chosen, last, notes, lost)


def _gap(after: int, expected: int, found: int) -> CheckpointCorruptedError:
    return CheckpointCorruptedError(
        f"the journal has a gap: positions {expected} to {found - 1} are missing, and everything after "
        f"position {after} is asked for. A snapshot that includes position {found - 1} is needed, or the "
        "missing segments"
    )
