"""Which objects leave shared memory when a reservation does not fit, and what is on disk for whom.

A pure state machine: methods are events, their results are commands; time is an argument.

Owns: turns (ask everybody for offers, choose, write, let owners settle), the record of every file, the
queue of what the spill process is to do, and the figures.
Invariants: one turn at a time, and every step of it ends by itself within a bound; at most one operation
is with the spill process; reading goes before writing; a file is removed when its owner does not need it,
says no, or is gone; a record whose owner has not settled is never read.
Leaves to others: room in shared memory (``segments``), files (``spill_process``), what is sent
(``spill_service``).
"""

from __future__ import annotations

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Commands = list["Command"]

# How long processes get to make offers, and owners to settle.
ANSWER_S = 2.0
# How long the memory of what was spilled gets to come back from its producers; then clients look again.
DRAIN_S = 0.01


class Offer(Record):
    """An object that may leave: its number with its owner, its place, and since when it is there."""

    client: int
    spill: int
    seg_id: int
    offset: int
    size_bytes: int
    born_ns: int


def choose(offers: Iterable[Offer], need_bytes: int) -> list[Offer]:
    """Return what to spill: the oldest until ``need_bytes`` are covered, without any that turns out needless.

    A large object may cover what smaller, older ones were taken for: these stay, the smallest first.
    """
    chosen: list[Offer] = []
    covered_bytes = 0
    for offer in sorted(offers, key=lambda o: (o.born_ns, o.client, o.spill)):
        if covered_bytes >= need_bytes:
            break
        chosen.append(offer)
        covered_bytes += offer.size_bytes
    for offer in sorted(chosen, key=lambda o: (o.size_bytes, -o.born_ns)):
        if covered_bytes - offer.size_bytes < need_bytes:
            break
        chosen.remove(offer)
        covered_bytes -= offer.size_bytes
    return chosen


class Command(Record):
    """What the service is to do."""


class Ask(Command):
    """Ask every process for offers."""

    turn: int
    wanted_bytes: int


class Write(Command):
    """Have an object written to file ``number``."""

    number: int
    seg_id: int
    offset: int
    size_bytes: int


class Read(Command):
    """Have file ``number`` read into a new segment."""

    number: int
    size_bytes: int
    crc: int


class Remove(Command):
    """Have file ``number`` removed."""

    number: int


class Done(Command):
    """Tell the owner that the file is there, or that there will be none."""

    client: int
    spill: int
    ok: bool


class MakeRoom(Command):
    """Reserve memory for what is to be restored."""

    number: int
    size_bytes: int


class Restored(Command):
    """Tell the owner where the object is, or why it is not (``code``: see RESTORE_* of _core/spills.pxd)."""

    client: int
    spill: int
    code: int
    seg_id: int
    text: str


class LookAgain(Command):
    """A turn is over and memory was freed: whoever waits shall look into its own segments again."""


RESTORED, NO_ROOM, LOST, FAILED = range(4)
_WRITING, _OFFERED, _STORED, _DROPPED = range(4)


class _File:
    __slots__ = ("client", "crc", "offer", "restoring", "size_bytes", "spill", "state")

    def __init__(self, offer: Offer) -> None:
        self.client, self.spill, self.size_bytes = offer.client, offer.spill, offer.size_bytes
        self.offer = offer
        self.crc = 0
        self.state = _WRITING
        self.restoring = False


class Held(Record):
    """Why objects cannot be spilled, in bytes: live views, other processes' references, calls in flight."""

    pinned_bytes: int = 0
    borrowed_bytes: int = 0
    busy_bytes: int = 0


class Spilling:
    """Spilled objects of one node."""

    def __init__(self) -> None:
        self.files: dict[int, _File] = {}
        self.held: dict[int, Held] = {}  # as of the last turn in which all had answered
        self._holding: dict[int, Held] = {}
        self.figures = dict.fromkeys(
            ("spilled_objects", "spilled_bytes", "restored_objects", "restored_bytes", "lost_objects"), 0
        )
        self._by_spill: dict[tuple[int, int], int] = {}
        self._number = 0
        self._turn = 0
        self._asked: dict[int, None] | None = None  # who has not answered; None: no turn asks
        self._offers: list[Offer] = []
        self._need_bytes = 0
        self._unsettled: dict[int, None] = {}
        self._freed = False
        self._until_s: float | None = None
        self._writes: list[int] = []
        self._reads: list[int] = []
        self._with_process: int | None = None
        self._reading = False

    # Turns ----------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a turn is under way."""
        return self._asked is not None or bool(self._unsettled) or self._until_s is not None

    @property
    def moving(self) -> bool:
        """Whether objects of this turn are on their way out."""
        return bool(self._unsettled)

    @property
    def asking(self) -> bool:
        """Whether somebody has not answered."""
        return self._asked is not None

    @property
    def held_bytes(self) -> int:
        """Bytes that cannot leave memory now."""
        return sum(h.pinned_bytes + h.borrowed_bytes + h.busy_bytes for h in self.held.values())

    @property
    def call_bytes(self) -> int:
        """Bytes that calls in flight hold: they will be free without anybody's doing."""
        return sum(held.busy_bytes for held in self.held.values())

    def short(self, need_bytes: int, clients: Iterable[int], now_s: float) -> Commands:
        """So many bytes are missing: a turn begins, unless one is under way."""
        if self.busy or need_bytes <= 0:
            return []
        self._turn += 1
        self._asked = dict.fromkeys(clients)
        self._need_bytes = need_bytes
        self._offers = []
        self._holding = {}
        self._freed = False
        self._until_s = now_s + ANSWER_S
        return [Ask(self._turn, need_bytes), *self._answered(now_s)]

    def offered(self, client: int, turn: int, offers: Sequence[Offer], held: Held, now_s: float) -> Commands:
        """A process has answered."""
        if self._asked is None or turn != self._turn or client not in self._asked:
            return []
        del self._asked[client]
        self._offers += offers
        self._holding[client] = held
        return self._answered(now_s)

    def _answered(self, now_s: float) -> Commands:
        if self._asked:
            return []
        self._asked = None
        self.held = self._holding
        commands: Commands = []
        for offer in choose(self._offers, self._need_bytes):
            commands += self._take(offer)
        self._offers = []
        self._until_s = now_s + ANSWER_S if self._unsettled else now_s + DRAIN_S
        return commands + self._next()

    def _take(self, offer: Offer) -> Commands:
        number = self._by_spill.get((offer.client, offer.spill))
        if number is not None:  # it was on disk before: the file is still good
            self._unsettled[number] = None
            self.files[number].state = _OFFERED
            return [Done(offer.client, offer.spill, True)]
        self._number += 1
        self.files[self._number] = _File(offer)
        self._by_spill[(offer.client, offer.spill)] = self._number
        self._unsettled[self._number] = None
        self._writes.append(self._number)
        return []

    def ticked(self, now_s: float) -> Commands:
        """Time has passed."""
        if self._until_s is None or now_s < self._until_s:
            return []
        if self._asked is not None:
            self._asked.clear()  # who does not answer offers nothing
            return self._answered(now_s)
        writing = [n for n in self._unsettled if self.files[n].state == _WRITING]
        if writing:
            self._until_s = now_s + ANSWER_S  # files have a bound of their own
            return []
        if self._unsettled:
            self._unsettled.clear()  # they may still settle later
            self._until_s = now_s + DRAIN_S
            return []
        self._until_s = None
        return [LookAgain()] if self._freed else []

    def next_tick_s(self) -> float | None:
        """Return when ``ticked`` is due."""
        return self._until_s

    # Writing --------------------------------------------------------------------------------------

    def written(self, number: int, crc: int, now_s: float) -> Commands:
        """The spill process has written a file."""
        file = self.files[number]
        self._with_process = None
        file.crc = crc
        if file.state == _DROPPED:
            return [*self._forget(number), *self._settled_one(number, now_s), *self._next()]
        file.state = _OFFERED
        self._until_s = now_s + ANSWER_S
        return [Done(file.client, file.spill, True), *self._next()]

    def not_written(self, number: int, now_s: float) -> Commands:
        """It could not; nothing of the file is left."""
        file = self.files.pop(number)
        self._with_process = None
        self._by_spill.pop((file.client, file.spill), None)
        told: Commands = [] if file.state == _DROPPED else [Done(file.client, file.spill, False)]
        return [*told, *self._settled_one(number, now_s), *self._next()]

    def settled(self, client: int, spill: int, taken: bool, now_s: float) -> Commands:
        """The owner's record points to the file; or (not ``taken``) it does not need the file."""
        number = self._by_spill.get((client, spill))
        if number is None:
            return []
        file = self.files[number]
        if taken and file.state == _OFFERED:
            file.state = _STORED
            self.figures["spilled_objects"] += 1
            self.figures["spilled_bytes"] += file.size_bytes
            self._freed = True
            return self._settled_one(number, now_s)
        return [*self._drop(number), *self._settled_one(number, now_s)]

    def _settled_one(self, number: int, now_s: float) -> Commands:
        if number in self._unsettled:
            del self._unsettled[number]
            if not self._unsettled and self._asked is None:
                self._until_s = now_s + DRAIN_S
        return []

    def _drop(self, number: int) -> Commands:
        """Nobody needs the file; what is with the spill process is removed when it comes back."""
        file = self.files[number]
        self._by_spill.pop((file.client, file.spill), None)
        if number in self._writes:
            self._writes.remove(number)
            del self.files[number]
            return []
        if number == self._with_process or file.restoring:
            file.state = _DROPPED
            return []
        return self._forget(number)

    def _forget(self, number: int) -> Commands:
        del self.files[number]
        return [Remove(number)]

    # Reading --------------------------------------------------------------------------------------

    def wanted(self, client: int, spill: int) -> Commands:
        """The owner wants an object back."""
        number = self._by_spill.get((client, spill))
        file = self.files.get(number) if number is not None else None
        if number is None or file is None or file.state != _STORED:
            return [Restored(client, spill, LOST, 0, "its spill file is not known")]
        if file.restoring:
            return []
        file.restoring = True
        return [MakeRoom(number, file.size_bytes)]

    def room(self, number: int, ok: bool, text: str) -> Commands:
        """Memory for it is reserved, or cannot be had."""
        file = self.files[number]
        if ok:
            self._reads.append(number)
            return self._next()
        return self._back(number, Restored(file.client, file.spill, NO_ROOM, 0, text))

    def read(self, number: int, seg_id: int) -> Commands:
        """The spill process has read a file into segment ``seg_id``."""
        file = self.files[number]
        self._with_process = None
        self.figures["restored_objects"] += 1
        self.figures["restored_bytes"] += file.size_bytes
        return [*self._back(number, Restored(file.client, file.spill, RESTORED, seg_id, "")), *self._next()]

    def not_read(self, number: int, code: int, text: str) -> Commands:
        """It could not: the file is gone or damaged (LOST), cannot be read now (FAILED), or NO_ROOM."""
        lost = code == LOST
        file = self.files[number]
        self._with_process = None
        self.figures["lost_objects"] += lost
        told = Restored(file.client, file.spill, code, 0, text)
        commands = self._back(number, told)
        if lost and number in self.files:
            commands += self._drop(number)
        return [*commands, *self._next()]

    def _back(self, number: int, told: Restored) -> Commands:
        file = self.files[number]
        file.restoring = False
        if file.state == _DROPPED:
            return [told, *self._forget(number)]
        return [told]

    # Common ---------------------------------------------------------------------------------------

    def _next(self) -> Commands:
        """Give the spill process something to do, when it has nothing."""
        if self._with_process is not None:
            return []
        if self._reads:
            number = self._reads.pop(0)
            self._with_process, self._reading = number, True
            return [Read(number, self.files[number].size_bytes, self.files[number].crc)]
        if self._writes:
            number = self._writes.pop(0)
            self._with_process, self._reading = number, False
            offer = self.files[number].offer
            return [Write(number, offer.seg_id, offer.offset, offer.size_bytes)]
        return []

    def under_way(self) -> tuple[int, bool] | None:
        """Return the file that the spill process has, and whether it reads it."""
        return None if self._with_process is None else (self._with_process, self._reading)

    def client_gone(self, client: int, now_s: float) -> Commands:
        """A process is gone, and with it every object that it owned."""
        commands: Commands = []
        self.held.pop(client, None)
        for number in [n for n, file in self.files.items() if file.client == client]:
            commands += self._drop(number)
            commands += self._settled_one(number, now_s)
        if self._asked is not None and client in self._asked:
            del self._asked[client]
            commands += self._answered(now_s)
        return commands

    def stored(self) -> tuple[int, int]:
        """Return how many objects are on disk only or as well, and their bytes."""
        sizes = [file.size_bytes for file in self.files.values() if file.state == _STORED]
        return len(sizes), sum(sizes)

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself (for tests)."""
        for (client, spill), number in self._by_spill.items():
            assert (self.files[number].client, self.files[number].spill) == (client, spill)
            assert self.files[number].state != _DROPPED
        dropped = [n for n, file in self.files.items() if file.state == _DROPPED]
        assert all(n == self._with_process or self.files[n].restoring for n in dropped)
        assert len(self.files) == len(self._by_spill) + len(dropped)
        assert all(self.files[n].state == _WRITING for n in self._writes)
        assert all(self.files[n].restoring for n in self._reads)
        assert set(self._unsettled) <= set(self.files)
        if self._with_process is None:
            assert not self._writes and not self._reads
        assert not self.busy or self._until_s is not None
