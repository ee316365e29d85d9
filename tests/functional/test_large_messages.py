"""Messages to ftrayd that are larger than sockets, and than may wait for a process that does not read."""

from __future__ import annotations

import numpy as np
import pytest

import ftray as ray
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


def test_constructor_arguments_that_no_message_holds_are_refused():
    with pytest.raises(ValueError, match=r"Holder.__init__ take \d+ bytes; .* at most .* refs inside a list"):
        Holder.remote(np.broadcast_to(np.uint8(0), 1 << 30))
    assert ray.get(ray.put(1)) == 1
