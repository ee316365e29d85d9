"""Handles from a session that is over, in journals and states: the actor in the old one's place answers.

A method that had begun when its whole session ended begins again in another one, with the arguments that
it was given then; a state that was saved in one session is loaded in another. A handle in them names an
actor that is gone; the driver that is run again makes another one under the same key, perhaps a moment later.

Owns: when such a handle looks for that actor (at its first use by code that is no repetition), and how long
it waits. Leaves to others: what a handle is (`ftray.actor`), and who has which key (the node).
"""

from __future__ import annotations

import pickle
import sys
import time
from typing import Any

from ftray import _core
from ftray.actor import ActorHandle, ActorMethod, _Meta, _rebuild_handle
from ftray.checkpoint.capture import capturing

WAIT_S = 60.0
_WARN_S = 5.0
_PAUSES_S = (0.01, 0.25)  # the first between two looks, and the longest


class RestoredHandle(ActorHandle[Any]):
    """A handle of an earlier session, until it is used. Equal to those of the same actor of that session."""

    _place: bytes

    @classmethod
    def at(cls, place: bytes, meta: _Meta) -> RestoredHandle:
        """Return the handle of an actor that was at `place` (see ``_core.actor_place``)."""
        handle = cls.__new__(cls)
        handle._meta, handle._place = meta, place
        return handle

    def __getattr__(self, name: str) -> Any:
        """Asked for what a handle has not: so its target is looked for when it is first needed."""
        if name == "_old":
            meta, ref = self._meta, _core.actor_at(self._place)[0]
            self._old = _core.ActorTarget(ref, meta.out_of_order, meta.key, meta.exactly_once)
            return self._old
        guard = _core.the_guard()
        if guard is not None and guard.repeats():
            # A call that is repeated sends nothing, so it needs nobody who would get it.
            old = self._old
            return old if name == "_target" else self._method(old, name)
        if name == "_target":
            self._target = find(self._meta) or self._gone()
            return self._target
        return super().__getattr__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        if capturing() and "_target" not in self.__dict__:
            return _rebuild_handle, (self._place, self._meta)
        return super().__reduce__()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RestoredHandle) and self._place == other._place

    def __hash__(self) -> int:
        return hash(self._place)

    def __repr__(self) -> str:
        return f"Actor({self._meta.class_name}, of another session)"

    def _gone(self) -> _core.ActorTarget:
        """Calls fail as those of any actor that is gone."""
        text = (
            f"the handle of {self._meta.class_name} is of an earlier session, and within {WAIT_S:g} s"
            " this one has made no actor in its place (of the same name or checkpoint_key, or made by the"
            " driver at the same place of its program)"
        )
        actor_id = self._old.actor_id()
        self._old.fail(pickle.dumps({"kind": "creation failed", "actor_id": actor_id, "text": text}, 5))
        return self._old

    def _method(self, target: _core.ActorTarget, name: str) -> ActorMethod:
        found = self._meta.methods.get(name)
        if found is None:
            from ftray import _own_methods

            found = _own_methods.find(self._meta, name)
        return ActorMethod(target, self._meta, name, *found)


def find(meta: _Meta) -> _core.ActorTarget | None:
    """Wait for the actor under the key of `meta` in this session; None if it does not come."""
    from ftray._api import node_rpc

    begin_s = time.monotonic()
    warned = False
    pause_s = _PAUSES_S[0]
    while True:
        info = node_rpc("actor_by_key", key=meta.key)
        if info is not None:
            spec = info["spec"]
            ref = _core.foreign_actor_ref(spec["actor_id"], spec["owner"])
            return ActorHandle._make(ref, pickle.loads(spec["meta"]))._target
        waited_s = time.monotonic() - begin_s
        if waited_s > WAIT_S:
            return None
        if waited_s > _WARN_S and not warned:
            warned = True
            print(
                f"a call that had begun in an earlier session waits for its actor {meta.class_name}, which "
                f"this session has not made yet; it waits {WAIT_S:.0f} s at most",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSES_S[1])
