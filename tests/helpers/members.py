"""Processes that are attached by hand to a node that is the test: it tells them what it likes."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ftray._node import board, frames, protocol
from tests.helpers.drivers import Driver

HEADER = struct.Struct("<IHHQ")
FRAME = struct.Struct("<IBBHQ")  # FrameHeader of _core/channel.pxd
F_TASK = 1
RING_HEADER = 4096
TASK_ID_BYTES = 24
HELLO_BYTES = 52

MEMBER = """
import os, socket, sys
import ftray as ray
from ftray import _core
from ftray._core.actorrefs import new_actor_ref
from ftray._core.calls import ActorTarget, MethodCaller, method_definition
from ftray._core.objects import rebuild_ref

slot, node_fd, board_fd, directory = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
me = bytes([slot]) * 28
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.path.join(directory, me.hex()[:16] + ".sock"))
listener.listen()
listener.setblocking(False)
os.set_blocking(node_fd, False)
directory_fd = os.open(directory, os.O_PATH)
_core.attach(node_fd, board_fd, directory_fd, listener.detach(), me, bytes(28), slot, 1, True, 2, 0, slot)
refs, values, actors = {}, {}, {}

def call(actor, times, retries=0):
    if actor not in actors:
        target = ActorTarget(new_actor_ref(bytes.fromhex(actor), False))
        actors[actor] = MethodCaller(target, method_definition("m"), 1, retries, -1, 0, 0)
    made = [actors[actor].remote() for _ in range(times)]
    refs.update((ref.hex(), ref) for ref in made)
    return [ref.hex() for ref in made]

def put(name, value):
    refs[name] = ray.put(value)
    ray.put([refs[name]])           # from now on others may name it
    return refs[name].hex()

def borrow(name, hex, owner):
    refs[name] = rebuild_ref(bytes.fromhex(hex), bytes([owner]) * 28)

def get(name):
    try:
        values[name] = ray.get(refs[name], timeout=20)
        return repr(values[name])
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def count(what):
    return _core.debug_counters()[what]

while True:
    word = await_word()
    if not word:
        break
    tell("did", eval(word))
refs.clear(), values.clear(), actors.clear()
_core.detach()
"""


class Member:
    """One process; ``member("expression")`` evaluates it there."""

    def __init__(self, start_driver: Callable[..., Driver], slot: int, board_fd: int, directory: str) -> None:
        self.id = worker_id(slot)
        self.socket = socket_path(directory, slot)
        self._node, theirs = socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        args = [str(slot), str(theirs.fileno()), str(board_fd), directory]
        self._driver = start_driver(MEMBER, args=args, pass_fds=[theirs.fileno(), board_fd])
        theirs.close()
        # Deaths that the node tells again when it is asked.
        self.remembers: dict[bytes, frames.WorkerDied] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self("slot") == slot  # it is attached, and can be found by its socket

    def _read(self) -> None:
        """DEATH_ASK is answered; DEATH_ACKs and the like are of no interest."""
        unread = b""
        while select.select([self._node], [], [])[0]:
            piece = self._node.recv(1 << 16)
            if not piece:
                return
            unread += piece
            while len(unread) >= HEADER.size and len(unread) >= HEADER.size + HEADER.unpack_from(unread)[0]:
                size, kind, _, _ = HEADER.unpack_from(unread)
                payload, unread = unread[HEADER.size : HEADER.size + size], unread[HEADER.size + size :]
                if kind == frames.DeathAsk.TYPE:
                    answer = self.remembers.get(payload, frames.DeathUnknown(payload))
                    self._node.sendall(protocol.encode(answer, 0, 0))

    def __call__(self, expression: str) -> Any:
        self._driver.say(expression)
        return self._driver.expect("did")

    def hear(self, *told: protocol.Frame) -> None:
        """Tell it these frames; returns when it has done what they ask."""
        every = [*told, frames.Warn("that is all")]
        self._node.sendall(b"".join(protocol.encode(frame, 0, 0) for frame in every))
        assert self("len(_core.inbox_next())") == 1  # what was sent before is done

    def end(self) -> None:
        self._driver.say("")
        self._driver.finish()
        self._reader.join()
        self._node.close()


class Silent:
    """A process that is connected to and answers nothing: the test reads what the first caller wrote."""

    def __init__(self, slot: int, directory: str) -> None:
        self.id = worker_id(slot)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(socket_path(directory, slot)))
        self._listener.listen()
        self._listener.setblocking(False)
        self._open = ExitStack()
        self._open.enter_context(self._listener)
        self._ring: mmap.mmap | None = None

    def calls(self) -> list[str]:
        """Return the ids of the tasks that were sent to it by now, in order."""
        if self._ring is None:
            try:
                self._accept()
            except BlockingIOError:
                return []
        assert self._ring is not None
        head, at, found = int.from_bytes(self._ring[:8], "little"), 0, []
        while at < head:
            size, kind, *_ = FRAME.unpack_from(self._ring, RING_HEADER + at)
            if kind == F_TASK:
                body = RING_HEADER + at + FRAME.size
                found.append(self._ring[body : body + TASK_ID_BYTES].hex())
            at += size
        return found

    def _accept(self) -> None:
        caller = self._open.enter_context(self._listener.accept()[0])
        _, (memory,), _, _ = socket.recv_fds(caller, HELLO_BYTES, 1)
        try:
            self._ring = self._open.enter_context(mmap.mmap(memory, 0))
        finally:
            os.close(memory)

    def end(self) -> None:
        self._open.close()


class Members:
    """The processes of a session whose node is the test."""

    def __init__(self, start_driver: Callable[..., Driver], board_fd: int, directory: str) -> None:
        self._start_driver, self._board_fd, self._directory = start_driver, board_fd, directory
        self.all: list[Member | Silent] = []

    def __call__(self, slot: int) -> Member:
        member = Member(self._start_driver, slot, self._board_fd, self._directory)
        self.all.append(member)
        return member

    def silent(self, slot: int) -> Silent:
        self.all.append(made := Silent(slot, self._directory))
        return made


@contextmanager
def members(start_driver: Callable[..., Driver]) -> Iterator[Members]:
    """Processes that end with the block."""
    places = board.Board(8)
    with tempfile.TemporaryDirectory() as directory:  # whose name is short enough for a socket
        session = Members(start_driver, places.fd, directory)
        yield session
        for one in session.all:
            one.end()
    places.close()


def worker_id(slot: int) -> bytes:
    return bytes([slot]) * 28


def socket_path(directory: str, slot: int) -> Path:
    return Path(directory, f"{worker_id(slot).hex()[:16]}.sock")


def died(one: bytes, text: str = "was killed") -> frames.WorkerDied:
    """Return what a node says of a process that was killed."""
    return frames.WorkerDied(one, 1, 2, 9, 1.0, text)
