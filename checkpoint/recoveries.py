"""How long the recoveries of a key took: the newest of them, which each seal takes over from the one before.

Pure. A seal is published once, before its epoch serves: what it says of its own recovery is what was known
then. The incarnation itself knows better, and says so in its status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT = 16
_FIELD = "recoveries"


def of(sealed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the recoveries that a seal tells of, oldest first; none if it was written before they were."""
    return [dict(each) for each in sealed.get(_FIELD, ())]


def fields(known: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a seal has to say of these."""
    return {_FIELD: known} if known else {}
