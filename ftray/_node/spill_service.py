"""Spilling, carried out: ``spilling``'s commands, the spill process, and where its files are.

Owns: the spill process (started when it is first needed, again when it died, killed when it hangs), the
numbers of segments that the node makes, and the directory or URL of this session's files.
Invariants: an operation that the process took to its grave counts as failed, a reading one is tried once
more; files never outlive the session, or are swept by the next one.
Leaves to others: what is spilled (``spilling``), room (``segments``), formats (``spill_files``).
"""

from __future__ import annotations

import marshal
import os
import select
import socket
import sys
import time

from ftray._node import spilling as machine
from ftray._node.frames import SpillAsk, SpillDone, SpillRestored
from ftray._node.segments import PATIENCE_S
from ftray._node.session import own_spill_directory, sweep_spilled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ftray._node.clients import Client
    from ftray._node.daemon import Node
    from ftray._node.frames import SpillOffer, SpillRestore, SpillSettled
    from ftray._node.object_service import ObjectService

# Arguments of calls in flight are free when the calls end: worth waiting for.
CALLS_PATIENCE_S = 5.0
# Memory that no owner knows of is on its way back from its producer, or with one that hangs and is killed
# for it: worth waiting for as well.
RETURN_PATIENCE_S = 15.0
# An operation may take this long, and as long as the slowest storage needs for its bytes.
OPERATION_S = 60.0
SLOWEST_BYTES_PER_S = 4 << 20
# A turn makes this much room, though less is lacking: the next reservation is likely to lack as much.
BATCH_SHARE = 8
BATCH_BYTES = 64 << 20
_WIPE_S = 5.0
# A full disk is not tried again before.
DISK_PAUSE_S = 0.5
_TRIES = 2
_TOLERATED_DEATHS = 3
# What became of a read, as the spill process says it.
_CODES = {"damaged": machine.LOST, "failed": machine.FAILED, "no memory": machine.NO_ROOM}


class SpillService:
    """Spilled objects of one node."""

    def __init__(self, node: Node, objects: ObjectService) -> None:
        self._node = node
        self._objects = objects
        self.machine = machine.Spilling()
        self.enabled: bool = node.config["spill"]
        self.location: str = node.config["spill_to"] or os.path.join(node.session.path, "spill")
        self.disk_trouble = ""
        self._process_trouble = ""
        self._sock: socket.socket | None = None
        self._pid = 0
        self._tries = 0
        self._deaths = 0  # since something was written
        self._seg_base = (int.from_bytes(node.node_id[:8], "little") & 0xFFFFFFFFFF) << 24
        self._seg_count = 0
        self._asked_s = self._progress_s = self._full_s = -1e9
        if node.config["spill_to"]:
            name = os.path.basename(node.session.path)
            self.location = f"{self.location.rstrip('/')}/ftray-spill-{os.getuid()}-{name}"
            if self.enabled and "://" not in self.location:
                sweep_spilled(node.config["spill_to"], node.session.path)
                own_spill_directory(self.location, node.session.path)

    # Memory is short ------------------------------------------------------------------------------

    def consider(self) -> None:
        """Begin a turn when a reservation waits for room."""
        lacking_bytes = self._objects.segments.lacking_bytes()
        if not self.enabled or self._node.stopping or not lacking_bytes or self.machine.busy:
            return
        if self.disk_trouble:
            if time.monotonic() - self._full_s < DISK_PAUSE_S:
                return  # what waits is refused; the next one may find that somebody has made room
            self.disk_trouble = ""
        clients = [client.number for client in self._node.clients.registered()]
        self._asked_s = time.monotonic()
        batch_bytes = min(self._objects.segments.capacity_bytes // BATCH_SHARE, BATCH_BYTES)
        self._apply(self.machine.short(max(lacking_bytes, batch_bytes), clients, self._asked_s))

    def hopeful(self, since_s: float) -> bool:
        """Whether what waits since then may still get room."""
        if not self.enabled or self.disk_trouble:
            return False
        if self._asked_s < since_s or self.machine.moving:
            return True
        waited_s = time.monotonic() - max(self._progress_s, since_s)
        segments = self._objects.segments
        unexplained_bytes = segments.used_bytes - self.machine.held_bytes
        if self.machine.asking or unexplained_bytes >= segments.lacking_bytes():
            return waited_s < RETURN_PATIENCE_S
        return waited_s < (CALLS_PATIENCE_S if self.machine.call_bytes else PATIENCE_S)

    def describe(self) -> str:
        """Return what holds the memory."""
        held = self.machine.held.values()
        parts = {
            "views of values (arrays, memoryviews) that are alive": sum(h.pinned_bytes for h in held),
            "references in processes other than the owner": sum(h.borrowed_bytes for h in held),
            "arguments of calls that have not ended": sum(h.busy_bytes for h in held),
        }
        holders = [f"{size} bytes by {what}" for what, size in parts.items() if size]
        if not self.enabled:
            return "Spilling to disk is switched off."
        spilled = f"{self.machine.stored()[1]} bytes are spilled to {self.location}."
        trouble = f" {self._process_trouble}." if self._process_trouble else ""
        return f"{'Held in memory: ' + ', '.join(holders) + '. ' if holders else ''}{spilled}{trouble}"

    # Frames ---------------------------------------------------------------------------------------

    def on_offer(self, client: Client, frame: SpillOffer) -> None:
        """SPILL_OFFER."""
        numbers = frame.offers
        offers = [machine.Offer(client.number, *numbers[at : at + 5]) for at in range(0, len(numbers) - 4, 5)]
        held = machine.Held(frame.pinned_bytes, frame.borrowed_bytes, frame.busy_bytes)
        self._apply(self.machine.offered(client.number, frame.turn, offers, held, time.monotonic()))

    def on_settled(self, client: Client, frame: SpillSettled) -> None:
        """SPILL_SETTLED."""
        if frame.taken:
            self._progress_s = time.monotonic()
        self._apply(self.machine.settled(client.number, frame.spill_id, bool(frame.taken), time.monotonic()))

    def on_restore(self, client: Client, frame: SpillRestore) -> None:
        """SPILL_RESTORE."""
        self._apply(self.machine.wanted(client.number, frame.spill_id))

    # Events of the node ---------------------------------------------------------------------------

    def room(self, number: int, ok: bool) -> None:
        """The answer to the reservation for a restore."""
        used, capacity = self._objects.segments.used_bytes, self._objects.segments.capacity_bytes
        why = self.disk_trouble or self.describe()
        text = "" if ok else f"it was spilled, and {used} of {capacity} bytes are in use. {why}"
        self._apply(self.machine.room(number, ok, text))

    def client_gone(self, number: int) -> None:
        """A process is dead."""
        self._apply(self.machine.client_gone(number, time.monotonic()))

    # Carrying out ---------------------------------------------------------------------------------

    def _apply(self, commands: Sequence[machine.Command]) -> None:
        for command in commands:
            self._carry_out(command)
        self._node.loop.set_timer("spilling", self.machine.next_tick_s(), self._ticked)

    def _ticked(self) -> None:
        self._apply(self.machine.ticked(time.monotonic()))
        self.consider()

    def _carry_out(self, command: machine.Command) -> None:
        if isinstance(command, machine.Ask):
            self._node.clients.broadcast(SpillAsk(command.turn, command.wanted_bytes))
        elif isinstance(command, machine.Done):
            self._tell(command.client, SpillDone(command.spill, int(command.ok)))
        elif isinstance(command, machine.Restored):
            self._tell(
                command.client,
                SpillRestored(command.spill, command.code, command.seg_id, command.text[:8000]),
            )
        elif isinstance(command, machine.MakeRoom):
            self._objects.room_for_node(command.number, _pages(command.size_bytes))
        elif isinstance(command, machine.LookAgain):
            self._objects.look_again()
        elif isinstance(command, machine.Remove):
            self._send(("remove", command.number, _name(command.number)))
        elif isinstance(command, machine.Write):
            self._write(command)
        elif isinstance(command, machine.Read):
            self._operate(
                ("read", command.number, _name(command.number), command.size_bytes, command.crc),
                command.size_bytes,
            )

    def _tell(self, number: int, frame: Any) -> None:
        client = self._node.clients.get(number)
        if client is not None:
            self._node.clients.send(client, frame)

    def _write(self, command: machine.Write) -> None:
        fd = self._objects.descriptor(command.seg_id)
        if fd is None:  # the object was dropped meanwhile, with its segment
            self._apply(self.machine.not_written(command.number, time.monotonic()))
            return
        self._operate(
            ("write", command.number, _name(command.number), command.offset, command.size_bytes),
            command.size_bytes,
            fd,
        )

    def _operate(self, message: tuple[Any, ...], size_bytes: int, fd: int = -1) -> None:
        until_s = time.monotonic() + OPERATION_S + size_bytes / SLOWEST_BYTES_PER_S
        self._node.loop.set_timer("spill operation", until_s, self._hangs)
        self._send(message, fd)

    # The process ----------------------------------------------------------------------------------

    def _send(self, message: tuple[Any, ...], fd: int = -1) -> None:
        if self._sock is None:
            self._start()
        if self._sock is None:
            return
        try:
            socket.send_fds(
                self._sock, [marshal.dumps(message)], [fd] if fd >= 0 else [], socket.MSG_NOSIGNAL
            )
        except (BrokenPipeError, ConnectionResetError):
            return  # it is dead; the loop reports the end of the stream
        except BlockingIOError:
            self._hangs()  # so many removals wait that the socket is full

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        boot = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot.py")
        config = self._node.config
        command = [sys.executable, *config["flags"], boot, "spill", "3"]
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        self._pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        theirs.close()
        ours.send(marshal.dumps({"sys_path": config["sys_path"], "location": self.location}))
        ours.setblocking(False)
        self._sock = ours
        self._node.loop.register(ours.fileno(), lambda _events: self._readable())

    def _readable(self) -> None:
        while self._sock is not None:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._sock, 1 << 16, 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, fds = b"", []
            if not data:
                self._ended()
                return
            self._answered(marshal.loads(data), fds[0] if fds else -1)

    def _hangs(self) -> None:
        if self._sock is not None:
            os.kill(self._pid, 9)  # reaped only after the end of its stream was seen, or later

    def _ended(self) -> None:
        """The process died."""
        assert self._sock is not None
        self._node.loop.unregister(self._sock.fileno())
        self._sock.close()
        self._sock = None
        self._node.loop.set_timer("spill operation", None, self._hangs)
        under_way = self.machine.under_way()
        if under_way is None or self._node.stopping:
            return
        number, reading = under_way
        self._deaths += 1
        if self._deaths <= _TOLERATED_DEATHS:
            self._progress_s = time.monotonic()  # what waits gets another turn
        self._process_trouble = "the process that writes spilled objects died"
        self._node.report(self._process_trouble)
        if not reading:
            self._send(("remove", number, _name(number)))
            self._apply(self.machine.not_written(number, time.monotonic()))
            return
        self._tries += 1
        file = self.machine.files[number]
        if self._tries < _TRIES:
            self._operate(("read", number, _name(number), file.size_bytes, file.crc), file.size_bytes)
        else:
            self._tries = 0
            text = f"it was spilled, and {self._process_trouble} while reading it"
            self._not_read(number, machine.FAILED, text)

    def _answered(self, message: tuple[Any, ...], fd: int) -> None:
        kind, number, outcome, result = message
        self._node.loop.set_timer("spill operation", None, self._hangs)
        if kind == "write":
            if outcome == "ok":
                self._process_trouble = ""
                self._deaths = 0
                self._apply(self.machine.written(number, result, time.monotonic()))
                return
            if outcome == "disk full":
                self.disk_trouble = result
                self._full_s = time.monotonic()
            if self._process_trouble != result:
                self._node.report(f"spilling: {result}")
            self._process_trouble = result
            self._apply(self.machine.not_written(number, time.monotonic()))
        elif kind == "read":
            self._tries = 0
            if outcome == "ok":
                self._adopt(number, result, fd)
            else:
                self._not_read(number, _CODES[outcome], f"it was spilled, and {result}")

    def _adopt(self, number: int, length: int, fd: int) -> None:
        file = self.machine.files[number]
        self._seg_count += 1
        seg_id = self._seg_base | self._seg_count
        self._objects.adopt(seg_id, length, file.client, fd)
        if self._node.clients.get(file.client) is None:
            self._objects.drop_adopted(seg_id, file.client)
        self._progress_s = time.monotonic()
        self._apply(self.machine.read(number, seg_id))

    def _not_read(self, number: int, code: int, text: str) -> None:
        self._node.report(f"spilling: {text}")
        size_bytes = _pages(self.machine.files[number].size_bytes)
        self._apply(self.machine.not_read(number, code, text))
        self._objects.give_back(size_bytes)

    # The end --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove the session's files."""
        if "://" in self.location:
            if self.machine.files or self._sock is not None:
                self._send(("wipe", 0, ""))
                if self._sock is not None:
                    select.select([self._sock], [], [], _WIPE_S)
        elif os.path.isdir(self.location):
            import shutil

            shutil.rmtree(self.location, ignore_errors=True)
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _pages(size_bytes: int) -> int:
    page = os.sysconf("SC_PAGESIZE")
    return -(-size_bytes // page) * page


def _name(number: int) -> str:
    return f"{number:08x}.spill"
