"""One notion of the classes of ``__main__`` for both picklers of this process.

Ray has a cloudpickle of its own. A class that is pickled by value is known again by an id that the pickler
keeps; ftray's parts (errors, states) go through the other cloudpickle, and what comes back by it would be of
another class than what went out by Ray's: ``except MyError`` would not match.

Owns: that both look ids up in the same tables.
"""

from __future__ import annotations

import cloudpickle.cloudpickle as ours
import ray.cloudpickle.cloudpickle as theirs

_TABLES = ("_DYNAMIC_CLASS_TRACKER_BY_CLASS", "_DYNAMIC_CLASS_TRACKER_BY_ID", "_DYNAMIC_CLASS_TRACKER_LOCK")


def share() -> None:
    """Have ftray's cloudpickle use the tables of Ray's; what it had in its own is kept."""
    if getattr(ours, _TABLES[0]) is getattr(theirs, _TABLES[0]):
        return
    for name in _TABLES[:2]:
        getattr(theirs, name).update(getattr(ours, name))
    for name in _TABLES:
        setattr(ours, name, getattr(theirs, name))
