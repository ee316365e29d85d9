"""What a process remembers of the dead: bounded, and never less than it still needs.

The processes here are attached by hand to a node that is the test: it tells them of as many deaths as it
likes.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import tempfile
import threading
from pathlib import Path

import pytest

from ftray._node import board, frames, protocol
from tests.helpers.sync import eventually

HEADER = struct.Struct("<IHHQ")
KEPT = 1024  # DEAD_KEPT of _core/dispatch.pyx

MEMBER = """
import os, socket, sys
import ftray as ray
from ftray import _core
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
refs, values = {}, {}

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
refs.clear(), values.clear()
_core.detach()
"""


class Member:
    """One process; ``member("expression")`` evaluates it there."""

    def __init__(self, start_driver, slot, board_fd, directory):
        self.id = bytes([slot]) * 28
        self.socket = Path(directory, f"{self.id.hex()[:16]}.sock")
        self._node, theirs = socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        args = [str(slot), str(theirs.fileno()), str(board_fd), directory]
        self._driver = start_driver(MEMBER, args=args, pass_fds=[theirs.fileno(), board_fd])
        theirs.close()
        self.remembers = {}  # deaths that the node tells again when it is asked
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self("slot") == slot  # it is attached, and can be found by its socket

    def _read(self):
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

    def __call__(self, expression):
        self._driver.say(expression)
        return self._driver.expect("did")

    def hear_of_deaths(self, worker_ids, text="was killed"):
        died = [frames.WorkerDied(worker_id, 1, 2, 9, 1.0, text) for worker_id in worker_ids]
        told = [*died, frames.Warn("that is all")]
        self._node.sendall(b"".join(protocol.encode(frame, 0, 0) for frame in told))
        assert self("len(_core.inbox_next())") == 1  # what was sent before is done

    def end(self):
        self._driver.say("")
        self._driver.finish()
        self._reader.join()
        self._node.close()


@pytest.fixture
def member(start_driver):
    """``member(slot)``: a process of a session whose node is the test."""
    members = []
    places = board.Board(8)
    with tempfile.TemporaryDirectory() as directory:  # whose name is short enough for a socket

        def start(slot):
            members.append(Member(start_driver, slot, places.fd, directory))
            return members[-1]

        yield start
        for one in members:
            one.end()
    places.close()


def strangers(n, kind):
    return [bytes([kind]) + i.to_bytes(8, "little") + bytes(19) for i in range(n)]


def test_reports_are_bounded_and_keep_what_lost_objects_need(member):
    one = member(1)
    for owner in (101, 102):
        one(f"borrow('of{owner}', f'{{{owner}:056x}}', {owner})")
    one.hear_of_deaths([bytes([101]) * 28], "was killed by SIGKILL, of all things")
    one.hear_of_deaths(strangers(10_000, 200))
    one.hear_of_deaths([bytes([102]) * 28], "was the last to go")
    assert KEPT <= one("count('death_reports')") <= 2 * KEPT + 2
    assert "of all things" in one("get('of101')")
    assert "was the last to go" in one("get('of102')")
    one("refs.clear()")
    one.hear_of_deaths(strangers(3 * KEPT, 201))
    one.hear_of_deaths([bytes([103]) * 28], "left after all others")
    assert KEPT <= one("count('death_reports')") <= 2 * KEPT + 2
    one("borrow('of103', f'{5:056x}', 103)")
    assert "left after all others" in one("get('of103')")


def test_an_owner_whose_death_is_forgotten_is_dead(member):
    one = member(1)
    one.hear_of_deaths([bytes([101]) * 28, *strangers(3 * KEPT, 200)])
    one("borrow('late', f'{5:056x}', 101)")
    assert "OwnerDiedError" in one("get('late')")


def test_the_report_of_a_death_that_is_forgotten_is_asked_for(member):
    one = member(1)
    one.hear_of_deaths([bytes([101]) * 28, *strangers(3 * KEPT, 200)])
    late = bytes([101]) * 28
    one.remembers[late] = frames.WorkerDied(late, 1, 2, 9, 1.0, "was killed by SIGKILL")
    one("borrow('late', f'{5:056x}', 101)")
    one("borrow('later', f'{6:056x}', 101)")
    assert "SIGKILL" in one("get('late')") and "SIGKILL" in one("get('later')")


def test_messages_are_waited_for_as_long_as_asked_for(member):
    one = member(1)
    assert one("_core.inbox_next(0.01)") == [] == one("_core.inbox_next(0)")
    one.hear_of_deaths([])


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "dead"])
def test_nobody_borrows_in_the_name_of_a_process_whose_death_is_forgotten(member, dead):
    """A relay that has not heard of it yet hands a ref on; alive or dead is told by the process's socket."""
    owner, relay, receiver = (member(slot) for slot in (1, 2, 3))
    x = owner("put('x', 5)")
    relay(f"borrow('x', '{x}', 1)")
    box = relay("put('box', [refs['x']])")
    owner.hear_of_deaths(([receiver.id] if dead else []) + strangers(4 * KEPT, 200))
    if dead:
        receiver.socket.unlink()
    receiver(f"borrow('box', '{box}', 2)")
    assert "ObjectRef" in receiver("get('box')")
    relay("refs.clear()")
    owner("refs.clear()")
    if dead:
        eventually(lambda: owner("count('entries')") == 0)
    else:
        assert owner("count('entries')") == 1
        assert receiver("refs.update(x=values['box'][0]) or get('x')") == "5"
        receiver("refs.clear() or values.clear()")
        eventually(lambda: owner("count('entries')") == 0)
