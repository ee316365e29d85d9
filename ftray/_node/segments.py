"""Accounting of the object store: who reserved, who made which segment, who still needs a dead process's.

A pure state machine: methods are events, their results are commands; time is an argument.

Owns: capacity, reservations, segments by id, holders of orphans, reservations that wait for room.
Invariants: reserved plus registered bytes never exceed the capacity; a segment goes when its producer says
so, or, its producer dead, when the death is settled and nobody holds it; a reservation that waits is
answered within ``patience_s``; what a dead client reserved or waited for is given back.
Leaves to others: descriptors (``object_service``), what is inside a segment (its producer).
"""

from __future__ import annotations

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Commands = list["Command"]

# What the node itself reserves and makes (restored objects) is this client's.
NODE = -1
# How long owners get to free warm segments before a reservation is refused.
PATIENCE_S = 0.2
# What waits longer because there is hope is looked at again after so long.
LINGER_S = 0.05


class SegmentError(Exception):
    """A client contradicted the accounts: its connection cannot be trusted."""


class Command(Record):
    """What the daemon is to do."""


class Reserved(Command):
    """Answer a reservation; ``again``: not now, but blocks were freed that may be the client's own."""

    client: int
    req: int
    ok: bool
    again: bool = False


class AskShrink(Command):
    """Ask every process to give warm segments back."""


class Drop(Command):
    """Close the segment; tell ``readers`` that it is gone."""

    seg_id: int
    readers: tuple[int, ...]


class _Segment:
    __slots__ = ("holders", "maker", "orphan", "producer", "readers", "settled", "size_bytes")

    def __init__(self, maker: int, producer: bytes, size_bytes: int) -> None:
        self.maker = maker
        self.producer = producer
        self.size_bytes = size_bytes
        self.readers: dict[int, None] = {}
        self.holders: dict[int, None] = {}
        self.orphan = False
        self.settled = False


class _Waiting(Record):
    client: int
    req: int
    size_bytes: int
    until_s: float
    since_s: float


class Segments:
    """The object store's accounts on one node."""

    def __init__(self, capacity_bytes: int, patience_s: float = PATIENCE_S) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._patience_s = patience_s
        self._reserved: dict[int, int] = {}
        self._segments: dict[int, _Segment] = {}
        self._waiting: list[_Waiting] = []
        self._lost: set[int] = set()

    # Reservations ---------------------------------------------------------------------------------

    def reserved(
        self, client: int, req: int, size_bytes: int, now_s: float, optional: bool = False
    ) -> Commands:
        """A client asks for room; what is ``optional`` does not wait for it."""
        if size_bytes > self.capacity_bytes:
            return [Reserved(client, req, False)]
        if not self._waiting and self._fits(size_bytes):
            self._take(client, size_bytes)
            return [Reserved(client, req, True)]
        if optional:
            return [Reserved(client, req, False)]
        self._waiting.append(_Waiting(client, req, size_bytes, now_s + self._patience_s, now_s))
        return [AskShrink()]

    def given_back(self, client: int, size_bytes: int) -> Commands:
        """A client does not use what it reserved."""
        self._untake(client, size_bytes)
        self.used_bytes -= size_bytes
        return self._serve()

    def ticked(self, now_s: float, hopeful: Callable[[float], bool] | None = None) -> Commands:
        """Time has passed: refuse what has waited too long.

        ``hopeful`` says of what waits since a time whether there may still be room for it: then it waits on.
        """
        late = [w for w in self._waiting if w.until_s <= now_s]
        if hopeful is not None and late:
            late = [w for w in late if not hopeful(w.since_s)]
        refused_ones = [(w.client, w.req) for w in late]
        self._waiting = [
            w if w.until_s > now_s else _Waiting(w.client, w.req, w.size_bytes, now_s + LINGER_S, w.since_s)
            for w in self._waiting
            if (w.client, w.req) not in refused_ones
        ]
        refused: Commands = [Reserved(w.client, w.req, False) for w in late]
        return refused + self._serve()

    def lacking_bytes(self) -> int:
        """Return how much the first reservation that waits lacks, 0 when none does."""
        if not self._waiting:
            return 0
        return max(0, self.used_bytes + self._waiting[0].size_bytes - self.capacity_bytes)

    def look_again(self) -> Commands:
        """Blocks were freed, maybe inside the segments of those who wait: they look there, and ask again."""
        asked = [w for w in self._waiting if w.client != NODE]
        self._waiting = [w for w in self._waiting if w.client == NODE]
        return [Reserved(w.client, w.req, False, True) for w in asked] + self._serve()

    def next_tick_s(self) -> float | None:
        """Return when ``ticked`` is due, None when nothing waits."""
        return min((w.until_s for w in self._waiting), default=None)

    # Segments -------------------------------------------------------------------------------------

    def registered(self, client: int, producer: bytes, seg_id: int, size_bytes: int) -> None:
        """A producer made a segment with bytes that it had reserved.

        Raises
        ------
        SegmentError
            The id is taken, or more bytes are used than were reserved.
        """
        if seg_id in self._segments:
            raise SegmentError(f"segment {seg_id} exists already; ids are never used twice in a session")
        self._untake(client, size_bytes)
        self._segments[seg_id] = _Segment(client, producer, size_bytes)

    def lost(self, seg_id: int) -> Commands:
        """A segment cannot be given to readers any more, or was not there when one was told that it is gone.

        It never is again, for anybody: what it held may have been made anew elsewhere meanwhile.
        """
        self._lost.add(seg_id)
        segment = self._segments.get(seg_id)
        if segment is None:
            return []
        dropped = self._drop(seg_id)
        told = [*dropped.readers, *(() if segment.orphan else (segment.maker,))]
        return [Drop(seg_id, tuple(dict.fromkeys(told))), *self._serve()]

    def is_lost(self, seg_id: int) -> bool:
        """Whether a reader was told that this segment is gone."""
        return seg_id in self._lost

    def adopted(self, seg_id: int, size_bytes: int, holder: int) -> None:
        """The node made a segment for an object of ``holder``, which keeps it as one of a dead process."""
        self.registered(NODE, b"", seg_id, size_bytes)
        segment = self._segments[seg_id]
        segment.orphan = segment.settled = True
        segment.holders[holder] = None

    def released(self, producer: bytes, seg_id: int) -> Commands:
        """The producer destroyed its segment.

        Raises
        ------
        SegmentError
            It is not a segment of this producer.
        """
        segment = self._segments.get(seg_id)
        if segment is None and seg_id in self._lost:
            return []  # its producer had not heard of the loss
        if segment is None or segment.producer != producer:
            raise SegmentError(f"process {producer.hex()} released segment {seg_id}, which is not its own")
        return [self._drop(seg_id), *self._serve()]

    def opened(self, client: int, seg_id: int) -> int | None:
        """A reader wants a segment: its size, None when it is gone."""
        segment = self._segments.get(seg_id)
        if segment is None or seg_id in self._lost:
            return None
        segment.readers[client] = None
        return segment.size_bytes

    # Deaths ---------------------------------------------------------------------------------------

    def producer_died(self, client: int, producer: bytes) -> Commands:
        """A process died: its reservations go, its segments wait for the others' acknowledgements."""
        self.used_bytes -= self._reserved.pop(client, 0)
        self._waiting = [w for w in self._waiting if w.client != client]
        for segment in self._segments.values():
            segment.readers.pop(client, None)
            if segment.producer == producer:
                segment.orphan = True
        return self._unheld(client) + self._serve()

    def held(self, client: int, producer: bytes, seg_ids: Iterable[int]) -> None:
        """A process acknowledged a death and still needs these segments of the dead one.

        Segments that are gone, or of another process, are ignored: the claim crossed with their end.
        """
        for seg_id in seg_ids:
            segment = self._segments.get(seg_id)
            if segment is not None and segment.orphan and segment.producer == producer:
                segment.holders[client] = None

    def unheld(self, client: int, seg_id: int) -> Commands:
        """A process does not need a dead process's segment any more."""
        segment = self._segments.get(seg_id)
        if segment is None or client not in segment.holders:
            return []
        del segment.holders[client]
        return self._collect([seg_id])

    def settled(self, producer: bytes) -> Commands:
        """Everybody has acknowledged the death of ``producer``."""
        mine = [seg_id for seg_id, segment in self._segments.items() if segment.producer == producer]
        for seg_id in mine:
            self._segments[seg_id].settled = True
        return self._collect(mine)

    # Queries --------------------------------------------------------------------------------------

    def count(self) -> int:
        """Return the number of segments."""
        return len(self._segments)

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself (for tests)."""
        total = sum(self._reserved.values()) + sum(s.size_bytes for s in self._segments.values())
        assert self.used_bytes == total <= self.capacity_bytes, (self.used_bytes, total, self.capacity_bytes)
        for segment in self._segments.values():
            assert not segment.holders or segment.orphan
            assert not (segment.orphan and segment.settled and not segment.holders)
        assert not self._waiting or not self._fits(self._waiting[0].size_bytes)

    # Mechanics ------------------------------------------------------------------------------------

    def _fits(self, size_bytes: int) -> bool:
        return self.used_bytes + size_bytes <= self.capacity_bytes

    def _take(self, client: int, size_bytes: int) -> None:
        self.used_bytes += size_bytes
        self._reserved[client] = self._reserved.get(client, 0) + size_bytes

    def _untake(self, client: int, size_bytes: int) -> None:
        have = self._reserved.get(client, 0)
        if size_bytes > have:
            raise SegmentError(f"{size_bytes} bytes used or given back, but only {have} are reserved")
        self._reserved[client] = have - size_bytes
        if have == size_bytes:
            del self._reserved[client]

    def _serve(self) -> Commands:
        """Answer reservations that fit now, in their order."""
        commands: Commands = []
        while self._waiting and self._fits(self._waiting[0].size_bytes):
            waiting = self._waiting.pop(0)
            self._take(waiting.client, waiting.size_bytes)
            commands.append(Reserved(waiting.client, waiting.req, True))
        return commands

    def _drop(self, seg_id: int) -> Drop:
        segment = self._segments.pop(seg_id)
        self.used_bytes -= segment.size_bytes
        return Drop(seg_id, tuple(segment.readers))

    def _unheld(self, client: int) -> Commands:
        holding = [seg_id for seg_id, segment in self._segments.items() if client in segment.holders]
        for seg_id in holding:
            del self._segments[seg_id].holders[client]
        return self._collect(holding)

    def _collect(self, seg_ids: Iterable[int]) -> Commands:
        """Drop the orphans among these that nobody needs."""
        gone: Commands = []
        for seg_id in seg_ids:
            segment = self._segments[seg_id]
            if segment.orphan and segment.settled and not segment.holders:
                gone.append(self._drop(seg_id))
        return gone + self._serve() if gone else []
