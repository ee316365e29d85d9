"""A cancellation in the middle of an import: the worker, which has half a module, serves nobody else."""

from __future__ import annotations

import importlib
import os
import sys
import threading

import pytest

import ftray as ray

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=1)]

# As extensions that cannot be loaded twice in a process, whatever became of the first attempt.
ONCE = """
import sys
if hasattr(sys, __name__):
    raise ImportError("cannot load module more than once per process")
setattr(sys, __name__, True)
from tests.helpers.sync import Sender, Waiter
Sender({box!r}).post("importing")
Waiter({gate!r}).wait()
"""


@ray.remote(max_retries=0)
def load(directory, how):
    """Import the module of that directory, in one of the ways in which people do."""
    sys.path.insert(0, directory)
    try:
        if how == "statement":
            exec(f"import {os.path.basename(directory)}")
        else:
            importlib.import_module(os.path.basename(directory))
    except BaseException:
        if how != "caught":  # "if it is not there we do without"
            raise
    finally:
        sys.path.remove(directory)
    return os.getpid()


class NeedsOnce:
    """Unpickling it imports the module."""

    def __init__(self, directory):
        self.directory = directory

    def __reduce__(self):
        return load_once, (self.directory,)


def load_once(directory):
    sys.path.insert(0, directory)
    try:
        return importlib.import_module(os.path.basename(directory)).__name__
    finally:
        sys.path.remove(directory)


@ray.remote(max_retries=0)
def take(value):
    return os.getpid()


@pytest.fixture
def directory(tmp_path, mailbox, gate):
    """With a module in it that has the directory's name, which no other test has."""
    place = tmp_path / f"once_{os.urandom(8).hex()}"
    place.mkdir()
    (place / f"{place.name}.py").write_text(ONCE.format(box=mailbox.path, gate=gate.path))
    return str(place)


@pytest.mark.parametrize("how", ["statement", "function", "caught", "argument"])
def test_the_next_task_is_in_another_process(directory, mailbox, gate, how):
    ref = take.remote(NeedsOnce(directory)) if how == "argument" else load.remote(directory, how)
    assert mailbox.take() == "importing"
    waiting = [load.remote(directory, "statement") for _ in range(3)]  # some behind it, in the same worker
    ray.cancel(ref)
    if how == "caught":
        first = ray.get(ref)  # as with any task that catches the interruption
    else:
        first = None
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(ref)
    gate.open()
    pids = ray.get(waiting)
    assert len(set(pids)) == 1 and first not in pids
    assert ray.get(take.remote(NeedsOnce(directory))) == pids[0]


@ray.remote(max_retries=0)
def doze(box):
    box.post(os.getpid())
    never = threading.Event()
    while not never.wait(0.0005):
        pass


def test_a_cancellation_elsewhere_leaves_the_worker(mailbox):
    pids = set()
    for _ in range(5):
        ref = doze.remote(mailbox)
        pids.add(mailbox.take())
        ray.cancel(ref)
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(ref)
    assert len(pids) == 1
