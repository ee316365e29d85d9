"""Loss of values in shared memory: the node forgets the segment of a value, as if it had never had it."""

from __future__ import annotations

from typing import Any

import numpy as np

import ftray as ray
from ftray._api import node_rpc
from ftray._core.gets import debug_object
from tests.helpers.sync import eventually

SIZE = 200_000  # of values: more than travels inline
OWN_SEGMENT = 5 * 2**20  # so large that a value has a segment for itself
INSPECT_OBJECTS = 2
SHARED = 3  # state of an object's record: its value is in shared memory


class Unreadable:
    """A value that cannot be rebuilt where it arrives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def segment_of(ref: Any) -> int:
    """The segment that the value of a finished ref is in."""
    ray.wait([ref])
    found = debug_object(ref)
    assert found["state"] == SHARED, f"{ref} is not in shared memory: {found}"
    return found["segment"]


def is_kept(ref: Any) -> bool:
    """Whether this process could make the value again."""
    return bool(debug_object(ref)["kept"])


def lose(*refs: Any) -> None:
    """Lose the values of finished refs, with all that is in the same segments."""
    for segment in {segment_of(ref) for ref in refs}:
        lose_segment(segment)


def lose_segment(segment: int) -> None:
    lost: list[bool] = []

    def registered() -> bool:  # its producer may not have told the node yet
        lost.append(node_rpc("lose_segment", segment=segment))
        return lost[-1]

    eventually(registered, f"the node has segment {segment:x}")
    # Every process has heard of it once it has answered a question that came later: else its maker may put
    # the next value into it, or a reader that has it mapped read on, which is right, but not what is tested.
    node_rpc("inspect", what=INSPECT_OBJECTS, limit=1, timeout_s=60.0)


def attempt() -> int:
    return ray.get_runtime_context().attempt_number


@ray.remote
def make(tally: Any, *parts: Any) -> Any:
    """One more than the largest of its arguments, many times."""
    tally.bump()
    return np.full(SIZE, 1 + max([int(part[0]) for part in parts], default=0), dtype=np.uint8)


def check(ref: Any, number: int) -> None:
    """Whether a ref of `make` has the right value."""
    array = ray.get(ref)
    assert array.shape == (SIZE,)
    assert array[0] == array[-1] == number
