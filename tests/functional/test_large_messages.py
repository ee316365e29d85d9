"""Messages to ftrayd that are larger than sockets, and than may wait for a process that does not read."""

from __future__ import annotations

import numpy as np
import pytest

import ftray as ray
from ftray import _core, _native_actors
from ftray._node.connection import MAX_QUEUED_BYTES

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=1)]


@ray.remote(max_restarts=1)
class Holder:
    def __init__(self, data):
        self.size, self.sum = len(data), int(data[:: 1 << 20].sum())

    def facts(self):
        return self.size, self.sum


def pattern(size):
    return np.arange(size >> 12, dtype=np.uint32).repeat(1 << 10).view(np.uint8)


def test_constructor_arguments_larger_than_what_may_wait():
    """They are kept by value with the actor's record, and go to its process in one frame."""
    data = pattern(MAX_QUEUED_BYTES + (8 << 20))
    holder = Holder.remote(data)
    assert ray.get(holder.facts.remote()) == (len(data), int(data[:: 1 << 20].sum()))


def test_constructor_arguments_that_no_message_holds_are_refused(monkeypatch):
    monkeypatch.setattr(_native_actors, "_MOST_CONSTRUCTOR_BYTES", 1_000_000)
    words = r"Holder.__init__ take \d+ bytes; .* at most 1000000\..* refs inside a list"
    with pytest.raises(ValueError, match=words):
        Holder.remote(np.zeros(1_000_000, np.uint8))
    with pytest.raises(ValueError, match=words):
        Holder.options(name="named").remote(np.zeros(1_000_000, np.uint8))
    assert ray.get(Holder.remote(np.zeros(900_000, np.uint8)).facts.remote()) == (900_000, 0)


def test_messages_longer_than_frames_are_refused():
    with pytest.raises(ValueError, match="1073741824 bytes to ftrayd; it takes at most"):
        _core.ask_node(100, bytes(1 << 30))
    with pytest.raises(ValueError, match="1073741824 bytes to ftrayd; it takes at most"):
        _core.tell_node(30, bytes(1 << 30))
    assert ray.get(ray.put(1)) == 1


@ray.remote
def total(*values):
    return len(values), sum(int(value[0]) + int(value[-1]) for value in values)


@ray.remote
class Totals:
    def total(self, *values):
        return len(values), sum(int(value[0]) + int(value[-1]) for value in values)

    def pass_on(self, refs):
        return ray.get(total.remote(*refs))


def test_more_small_values_than_one_frame_carries():
    """Each goes along with the call; what would be beyond 64 MiB is asked for by the callee."""
    count, size = 720, 99_000
    assert count * size > 1.05 * (64 << 20)
    refs = [ray.put(np.full(size, number % 251, dtype=np.uint8)) for number in range(count)]
    expected = (count, sum(2 * (number % 251) for number in range(count)))
    assert ray.get(total.remote(*refs)) == expected
    totals = Totals.options(num_cpus=0).remote()
    assert ray.get(totals.total.remote(*refs)) == expected
    assert ray.get(totals.pass_on.remote(refs)) == expected  # a borrower calls with values of ours
