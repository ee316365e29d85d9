"""The object store's frames and the acknowledgements of deaths: carries ``segments`` and ``deaths`` out.

Owns: the descriptor of every registered segment.
Invariants: a descriptor is closed exactly when its segment leaves the accounts; a slot of the board is
given back only when its user's death is settled.
Leaves to others: the decisions; memory itself (producers and readers map it).
"""

from __future__ import annotations

import os
import time

from ftray._node import segments as machine
from ftray._node.deaths import Deaths
from ftray._node.frames import (
    FLAG_GIVE_BACK,
    FLAG_OPTIONAL,
    RESERVE_LOOK_AGAIN,
    RESERVE_NO_DISK,
    RESERVE_OK,
    RESERVE_REFUSED,
    DeathAck,
    SegFd,
    SegGone,
    SegOpen,
    SegRegister,
    SegRelease,
    SegReserve,
    SegReserved,
    SegShrink,
    SegUnhold,
)
from ftray._node.protocol import ProtocolError
from ftray._node.spill_service import SpillService

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftray._node.clients import Client
    from ftray._node.daemon import Node


EARLY_READER_S = 1.0


class ObjectService:
    """Segments and deaths of one node."""

    def __init__(self, node: Node, capacity_bytes: int) -> None:
        self._node = node
        self.segments = machine.Segments(capacity_bytes)
        self.deaths = Deaths()
        self.spills = SpillService(node, self)
        self._fds: dict[int, int] = {}
        self._early: dict[int, list[tuple[Client, int]]] = {}  # SEG_OPENs of segments not registered yet
        self._slots: dict[bytes, int] = {}  # of processes whose death is not settled

    # Frames ---------------------------------------------------------------------------------------

    def on_reserve(self, client: Client, frame: SegReserve, req: int, flags: int) -> None:
        """SEG_RESERVE."""
        if flags & FLAG_GIVE_BACK:
            self._checked(lambda: self._apply(self.segments.given_back(client.number, frame.size_bytes)))
        else:
            optional = bool(flags & FLAG_OPTIONAL)
            self._apply(
                self.segments.reserved(client.number, req, frame.size_bytes, time.monotonic(), optional)
            )

    def on_register(self, client: Client, frame: SegRegister, fd: int) -> None:
        """SEG_REGISTER; ``fd`` is ours from now on."""
        try:
            self._checked(
                lambda: self.segments.registered(
                    client.number, client.worker_id, frame.seg_id, frame.size_bytes
                )
            )
        except ProtocolError:
            os.close(fd)
            raise
        self._fds[frame.seg_id] = fd
        for reader, reader_req in self._early.pop(frame.seg_id, ()):
            self.on_open(reader, SegOpen(frame.seg_id), reader_req)

    def on_release(self, client: Client, frame: SegRelease) -> None:
        """SEG_RELEASE."""
        self._checked(lambda: self._apply(self.segments.released(client.worker_id, frame.seg_id)))

    def on_open(self, client: Client, frame: SegOpen, req: int) -> None:
        """SEG_OPEN.

        The word of an object can reach a reader before its producer's SEG_REGISTER is read here (they come
        over different sockets): an unknown segment gets ``EARLY_READER_S`` to be registered.
        """
        size_bytes = self.segments.opened(client.number, frame.seg_id)
        if size_bytes is None and self.segments.is_lost(frame.seg_id):
            self._node.clients.send(client, SegFd(0, frame.seg_id, 0), req)
        elif size_bytes is None:
            waiting = self._early.setdefault(frame.seg_id, [])
            waiting.append((client, req))
            if len(waiting) == 1:
                when_s = time.monotonic() + EARLY_READER_S
                self._node.loop.set_timer(
                    ("early", frame.seg_id), when_s, lambda: self._never_registered(frame.seg_id)
                )
        else:
            self._node.clients.send(
                client, SegFd(1, frame.seg_id, size_bytes), req, [self._fds[frame.seg_id]]
            )

    def _never_registered(self, seg_id: int) -> None:
        if self._early.get(seg_id):
            self.lose(seg_id)
        for client, req in self._early.pop(seg_id, ()):
            self._node.clients.send(client, SegFd(0, seg_id, 0), req)

    def lose(self, seg_id: int) -> None:
        """Forget a segment, as if this node had lost it; readers that ask hear that it is gone."""
        self._apply(self.segments.lost(seg_id))

    def on_unhold(self, client: Client, frame: SegUnhold) -> None:
        """SEG_UNHOLD."""
        self._apply(self.segments.unheld(client.number, frame.seg_id))

    def on_death_ack(self, client: Client, frame: DeathAck) -> None:
        """DEATH_ACK."""
        self.segments.held(client.number, frame.worker_id, frame.held)
        if self.deaths.acknowledged(frame.worker_id, client.number):
            self._settle(frame.worker_id)

    def _checked(self, act: Callable[[], None]) -> None:
        try:
            act()
        except machine.SegmentError as error:
            raise ProtocolError(str(error)) from None

    # Events of the node ---------------------------------------------------------------------------

    def process_died(self, client: Client) -> None:
        """A registered process is dead; it has left the list of clients."""
        self._slots[client.worker_id] = client.slot
        self._apply(self.segments.producer_died(client.number, client.worker_id))
        self.spills.client_gone(client.number)
        survivors = [other.number for other in self._node.clients.registered()]
        if self.deaths.died(client.worker_id, survivors):
            self._settle(client.worker_id)
        for dead in self.deaths.client_gone(client.number):
            self._settle(dead)

    def _settle(self, dead: bytes) -> None:
        self._node.board.release(self._slots.pop(dead))
        self._apply(self.segments.settled(dead))

    # Carrying out ---------------------------------------------------------------------------------

    def descriptor(self, seg_id: int) -> int | None:
        """Return the descriptor of a registered segment."""
        return self._fds.get(seg_id)

    def room_for_node(self, req: int, size_bytes: int) -> None:
        """The node itself wants room; ``spills`` gets the answer."""
        self._apply(self.segments.reserved(machine.NODE, req, size_bytes, time.monotonic()))

    def adopt(self, seg_id: int, size_bytes: int, holder: int, fd: int) -> None:
        """A segment that the node made with such room; ``fd`` is ours from now on."""
        self.segments.adopted(seg_id, size_bytes, holder)
        self._fds[seg_id] = fd

    def give_back(self, size_bytes: int) -> None:
        """The node does not use its room."""
        self._apply(self.segments.given_back(machine.NODE, size_bytes))

    def drop_adopted(self, seg_id: int, holder: int) -> None:
        """The holder is gone, or does not want it."""
        self._apply(self.segments.unheld(holder, seg_id))

    def look_again(self) -> None:
        """Have whoever waits look into its own segments."""
        self._apply(self.segments.look_again())

    def _answer(self, command: machine.Reserved) -> None:
        if command.client == machine.NODE:
            self.spills.room(command.req, command.ok)
            return
        client = self._node.clients.get(command.client)
        if client is None:
            return
        code, text = RESERVE_OK if command.ok else RESERVE_LOOK_AGAIN, ""
        if not command.ok and not command.again:
            text = self.spills.disk_trouble
            code = RESERVE_NO_DISK if text else RESERVE_REFUSED
            text = text or self.spills.describe()
        used, capacity = self.segments.used_bytes, self.segments.capacity_bytes
        self._node.clients.send(client, SegReserved(code, used, capacity, text), command.req)

    def _apply(self, commands: Sequence[machine.Command]) -> None:
        for command in commands:
            if isinstance(command, machine.Reserved):
                self._answer(command)
            elif isinstance(command, machine.AskShrink):
                self._node.clients.broadcast(SegShrink())
            elif isinstance(command, machine.Drop):
                os.close(self._fds.pop(command.seg_id))
                for number in command.readers:
                    client = self._node.clients.get(number)
                    if client is not None:
                        self._node.clients.send(client, SegGone(command.seg_id))
        self._node.loop.set_timer(
            "segments",
            self.segments.next_tick_s(),
            lambda: self._apply(self.segments.ticked(time.monotonic(), self.spills.hopeful)),
        )
        self.spills.consider()

    def close(self) -> None:
        """Close every segment; spilled objects go."""
        self.spills.close()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
