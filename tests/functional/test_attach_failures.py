"""What an attempt to attach to a session leaves when it fails half-way: nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

import ftray as ray
from ftray import _core

# Attaches by hand to a node that is a socket nobody answers at; `fail` says what goes wrong.
PROGRAM = """
import os, resource, socket, struct, sys
from ftray import _core

def board(magic=0x46545259, slots=4, size=4096 + 4 * 1024):
    fd = os.memfd_create("ftray-board-of-test")
    os.ftruncate(fd, size)
    os.pwrite(fd, struct.pack("<IIII", magic, 1, slots, 1024)[:size], 0)
    return fd

def open_files():
    return {int(name): os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{name}") or os.path.islink(f"/proc/self/fd/{name}")}

def mapped():
    with open("/proc/self/maps") as file:
        return [line for line in file if "ftray-board" in line or "ftray-events" in line]

def ended(peer):
    '''Has the other end been closed? What it had sent before is of no interest.'''
    try:
        while peer.recv(65536):
            pass
    except BlockingIOError:
        return False
    return True

def threads():
    return len(os.listdir("/proc/self/task"))

def attempt(board_fd, slot=1, node_fd=None, limit=None):
    '''Attach; the other end of the connection and the error, None when there was none.'''
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    theirs.setblocking(False)
    node = mine.detach()
    if node_fd is not None:         # which cannot be watched
        os.dup2(node_fd, node)
        os.close(node_fd)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\\0" + os.urandom(8).hex())
    listener.listen()
    arguments = [node, board_fd, os.open(".", os.O_PATH), listener.detach(), os.urandom(28), bytes(28), slot,
                 1, True, 2, 0, 7, b"", 256, False, False]
    before = resource.getrlimit(limit[0]) if limit else None
    if limit:
        resource.setrlimit(limit[0], (limit[1](board_fd), before[1]))
    try:
        _core.attach(*arguments)
        error = None
    except Exception as e:
        error = e
    if limit:
        resource.setrlimit(limit[0], before)
    return theirs, error

def spare_descriptors(n):
    '''A limit that lets so many be opened once the board is closed.'''
    def limit(board_fd):
        used = set(open_files()) - {board_fd}
        free = [fd for fd in range(len(used) + n + 1) if fd not in used]
        return free[n]
    return (resource.RLIMIT_NOFILE, limit)

def no_room_for_a_stack(board_fd):
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096 + 300_000

before = open_files(), threads()
theirs, error = attempt(**eval(sys.argv[1]))
print(type(error).__name__, error)
assert error is not None and not _core.attached()
assert ended(theirs)
theirs.close()
assert not mapped()
assert (open_files(), threads()) == before, (open_files(), threads(), before)

theirs, error = attempt(board())       # nothing is in the way of another attempt
assert error is None and _core.attached()
_core.detach()
theirs.close()
assert not mapped()
assert (open_files(), threads()) == before, (open_files(), threads(), before)
"""

FAULTS = {
    "no board": ("dict(board_fd=os.open('/dev/null', os.O_RDWR))", "RuntimeError not a board"),
    "another board": ("dict(board_fd=board(magic=7))", "RuntimeError not a board"),
    "no such slot": ("dict(board_fd=board(), slot=4)", "RuntimeError not a board"),
    "cut board": ("dict(board_fd=board(size=4096))", "RuntimeError a board of 4096 bytes"),
    "no epoll": ("dict(board_fd=board(), limit=spare_descriptors(0))", "OSError [Errno 24] epoll_create1"),
    "no eventfd": ("dict(board_fd=board(), limit=spare_descriptors(1))", "OSError [Errno 24] eventfd"),
    "no socket": (
        "dict(board_fd=board(), node_fd=os.open(sys.executable, 0))",
        "PermissionError [Errno 1] epoll_ctl",
    ),
    "no thread": (
        "dict(board_fd=board(), limit=(resource.RLIMIT_AS, no_room_for_a_stack))",
        ("BlockingIOError [Errno 11] cannot start the runtime's thread", "MemoryError"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_attach_closes_all_it_was_given(fault, tmp_path):
    source, words = FAULTS[fault]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, source],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(words)


@pytest.mark.parametrize("step", ["attach", "register", "setting"])
def test_a_failed_init_ends_the_node_that_it_started(no_runtime, monkeypatch, step):
    if step == "attach":
        attach = _core.attach

        def with_another_board(node_fd, board_fd, *rest):
            os.close(board_fd)
            attach(node_fd, os.memfd_create("no-board"), *rest)

        monkeypatch.setattr(_core, "attach", with_another_board)
        expected = pytest.raises(RuntimeError, match="not a board")
    elif step == "register":
        from ftray._node import client

        monkeypatch.setattr(client, "VERSION", "0")
        expected = pytest.raises(ray.exceptions.VersionMismatchError)
    else:
        monkeypatch.setenv("FTRAY_SPIN_US", "many")
        expected = pytest.raises(ValueError, match="FTRAY_SPIN_US='many'")
    with expected:
        ray.init(num_cpus=1)
    assert not ray.is_initialized()
    no_runtime.check_restored()
    monkeypatch.undo()
    ray.init(num_cpus=1)
    assert ray.get(ray.put(1)) == 1


def test_a_driver_that_cannot_attach_leaves_the_session_as_it_was(start_driver):
    """Its socket goes, and what it had registered is dead to the others."""
    driver = start_driver(
        """
        import os, sys
        import ftray as ray
        context = ray.init(num_cpus=1)
        directory = context.address_info["address"]
        @ray.remote
        def one():
            return 1
        tell("session", directory)
        name = await_word()
        assert name not in os.listdir(directory)
        assert ray.get(one.remote()) == 1
        ray.shutdown()
        """
    )
    second = start_driver(
        """
        import os, sys
        import ftray as ray
        from ftray import _core
        attach = _core.attach
        def with_another_board(node_fd, board_fd, directory_fd, listen_fd, worker_id, *rest):
            name = worker_id.hex()[:16] + ".sock"
            assert name in os.listdir(sys.argv[1])
            tell("socket", name)
            os.close(board_fd)
            attach(node_fd, os.memfd_create("no-board"), directory_fd, listen_fd, worker_id, *rest)
        _core.attach = with_another_board
        try:
            ray.init(address=sys.argv[1])
        except RuntimeError as error:
            tell("error", str(error))
        await_word()
        """,
        args=[driver.expect("session")],
    )
    name = second.expect("socket")
    assert "not a board" in second.expect("error")
    driver.say(name)
    driver.finish()
    second.say("stop")
    second.finish()


def test_attaching_twice_is_refused_and_the_second_connection_closed(no_runtime):
    ray.init(num_cpus=1)
    ends = [socket.socketpair() for _ in range(4)]
    with pytest.raises(RuntimeError, match="attached already"):
        _core.attach(*(a.detach() for a, _ in ends), bytes(28), bytes(28), 1, 1, True, 2, 0, 7)
    for _, end in ends:
        assert end.recv(1) == b""
        end.close()
    assert ray.get(ray.put(1)) == 1
