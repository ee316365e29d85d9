"""Stacks of a process that may hang: who is asked how, and where it writes.

A worker registers, before anything else, a handler that is plain C (``faulthandler``): on ``SIGNAL`` it
writes the Python stacks of all threads into a file that is open already. It needs neither the interpreter's
lock nor memory, so that a worker answers that holds the lock in an endless loop, or waits for another lock.

Owns: the number of the signal, the name of the file. Invariants: the signal goes only to a process that
catches it (its default would end the process).
Leaves to others: waiting for the answer, and what else can look into a process (``ftray/_stacks.py``).
"""

from __future__ import annotations

import os
import signal

SIGNAL = signal.SIGRTMIN + 8
MAX_BYTES = 4 << 20


def path_of(session_dir: str, pid: int) -> str:
    """Return the file that a worker writes its stacks to."""
    return os.path.join(session_dir, f"stacks-{pid}")


def prepare(session_dir: str) -> None:
    """Make this process answer."""
    import faulthandler

    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    fd = os.open(path_of(session_dir, os.getpid()), flags, 0o600)
    faulthandler.register(SIGNAL, file=fd, all_threads=True, chain=False)


def catches(pid: int) -> bool:
    """Whether the process has a handler for the signal."""
    try:
        with open(f"/proc/{pid}/status") as file:
            mask = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(mask, 16) >> (SIGNAL - 1) & 1)


def trim(path: str) -> int:
    """Return the size of a file of stacks, emptied when it has grown long; 0 when there is none."""
    try:
        size = os.stat(path).st_size
        if size > MAX_BYTES:
            os.truncate(path, 0)
            return 0
        return size
    except FileNotFoundError:
        return 0
