"""Loss of values in shared memory: the node forgets the segment of a value, as if it had never had it."""

from __future__ import annotations

from typing import Any

import ftray as ray
from ftray._api import node_rpc
from ftray._core.objects import debug_object
from tests.helpers.sync import eventually

SHARED = 3  # state of an object's record: its value is in shared memory


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
