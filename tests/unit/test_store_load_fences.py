"""R16: a store, a full fence, and only then the load, on both sides of a local takeover.

The writer of a journal in shared memory stores its record and loads the fence word; the successor stores the
word and loads the records. Without a fence between the two a processor may do the load first, which no test
that runs can be relied on to meet. So this looks at the source; tests/sim has the rule as a model.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT

FILES = [Path(ROOT, "_core", name).read_text() for name in ("journal_append.hpp", "journal_sys.hpp")]
SOURCE = re.sub(r"/\*.*?\*/|//[^\n]*", "", "".join(FILES), flags=re.S)
FENCE = "std::atomic_thread_fence(std::memory_order_seq_cst);"


def body(head: str) -> str:
    """The body of the function, or block, that begins with `head`."""
    assert SOURCE.count(head) == 1, head
    at = SOURCE.index("{", SOURCE.index(head))
    depth = 0
    for place in range(at, len(SOURCE)):
        depth += {"{": 1, "}": -1}.get(SOURCE[place], 0)
        if depth == 0:
            return SOURCE[at : place + 1]
    raise AssertionError(f"{head} does not end")


@pytest.mark.parametrize("look", ["bool fence_open()", "bool holds()"])
def test_r16_a_look_at_the_fence_is_behind_a_fence(look: str) -> None:
    text = body(look)
    assert text.index(FENCE) < text.index("fence_set()")


def test_r16_a_record_is_stored_before_the_look() -> None:
    text = body("else if (put_record(guard, parts, n, size))")
    assert text.index(FENCE) < text.index("fence_set()") < text.index("durable.store(")


def test_r16_the_successor_s_word_is_stored_before_it_reads() -> None:
    text = body("int set_fence(int fd, uint64_t epoch)")
    assert text.index("write_at(") < text.index(FENCE) < text.index("return err")


def test_r16_there_is_no_other_look_that_lets_an_answer_leave() -> None:
    """The one left is that of the thread that syncs; it only notices sooner that it is all over."""
    looks = len(re.findall(r"\bfence_set\(\)", SOURCE))
    assert looks == 1 + 2 + 1 + 1, "where it is made, fence_open and holds, the append, the syncing thread"
