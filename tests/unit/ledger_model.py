"""The rules of the ledger once more, as plainly as Python says them: what test_ledger.py compares with."""

from __future__ import annotations

from dataclasses import dataclass, field

from ftray._core.gate import Outcome
from ftray._core.records import Head

Identity = tuple[bytes, int, int] | bytes  # (parent, n, retry), or the CallID of a call by key


@dataclass
class Call:
    digest: int
    call_id: bytes
    done: bool = False
    status: int = 0
    reply: bytes = b""
    position: int = 0


@dataclass
class Caller:
    root: bytes
    forgets: bool
    attempts: tuple[int, ...]
    acked: int = 0
    released: bool = False
    inside: bool = False
    of_job: bool = False
    expired: set[int] = field(default_factory=set)


class Model:
    def __init__(self, key: bytes, history: int, bound_bytes: int, bound_calls: int) -> None:
        self.key, self.history, self.bound_bytes, self.bound_calls = key, history, bound_bytes, bound_calls
        self.callers: dict[bytes, Caller] = {}
        self.calls: dict[Identity, Call] = {}
        self.droppable: list[Identity] = []
        self.expired_keys: dict[bytes, int] = {}
        self.buried: set[tuple[bytes, bytes]] = set()
        self.over: set[bytes] = set()
        self.counts = {"duplicates": 0, "mismatches": 0, "refused": 0, "held_back": 0}

    @staticmethod
    def identity(head: Head) -> Identity:
        return head.call_id if head.keyed else (head.parent, head.n, head.retry)

    def of(self, parent: bytes) -> list[tuple[Identity, Call]]:
        found = [(i, c) for i, c in self.calls.items() if isinstance(i, tuple) and i[0] == parent]
        return sorted(found, key=lambda item: item[0])

    @property
    def reply_bytes(self) -> int:
        return sum(len(call.reply) for call in self.calls.values())

    # --- decisions

    def accept(self, head: Head, digest: int, mutating: bool) -> tuple[Outcome, int, bytes | None, int]:
        outcome = self.decide(head, digest, mutating)
        counter = {
            Outcome.IN_PROGRESS: "duplicates",
            Outcome.RECORDED: "duplicates",
            Outcome.MISMATCH: "mismatches",
            Outcome.STALE_ATTEMPT: "refused",
            Outcome.ROLLED_BACK: "refused",
            Outcome.CYCLE: "refused",
            Outcome.HELD_BACK: "held_back",
        }.get(outcome)
        if counter:
            self.counts[counter] += 1
        if outcome != Outcome.RECORDED:
            return outcome, 0, None, 0
        call = self.calls[self.identity(head)]
        return outcome, call.status, call.reply, call.position

    def decide(self, head: Head, digest: int, mutating: bool) -> Outcome:
        if head.history not in (0, self.history):
            return Outcome.ROLLED_BACK
        if mutating and self.key in head.chain:
            return Outcome.CYCLE
        caller = None if head.keyed else self.callers.get(head.parent)
        if caller is not None and head.attempts < caller.attempts:
            return Outcome.STALE_ATTEMPT
        known = self.calls.get(self.identity(head))
        if mutating and known and (known.digest, known.call_id) != (digest, head.call_id):
            return Outcome.MISMATCH
        if head.keyed and mutating and self.expired_keys.get(head.call_id, digest) != digest:
            return Outcome.MISMATCH
        if caller is not None:
            caller.attempts = head.attempts
            self.acknowledge(head.parent, head.acked)
        if not mutating:
            return Outcome.NEW
        return self.enter(head, digest)

    def enter(self, head: Head, digest: int) -> Outcome:
        if not head.keyed and head.parent not in self.callers:
            if (head.root, head.parent) in self.buried:
                return Outcome.EXPIRED
            forgets = head.root_kind != 1 and head.root == head.parent
            self.callers[head.parent] = Caller(
                head.root, forgets, head.attempts, inside=bool(head.chain), of_job=head.root_kind == 1
            )
            self.acknowledge(head.parent, head.acked)
        known = self.calls.get(self.identity(head))
        if known:
            return Outcome.RECORDED if known.done else Outcome.IN_PROGRESS
        if head.keyed:
            if head.call_id in self.expired_keys:
                return Outcome.EXPIRED
            owes = any(isinstance(i, bytes) and not c.done for i, c in self.calls.items())
        else:
            caller = self.callers[head.parent]
            if caller.released or head.n in caller.expired or (caller.forgets and head.n < caller.acked):
                return Outcome.EXPIRED
            owes = any(i[1] >= caller.acked for i, _ in self.of(head.parent))  # type: ignore[misc, operator]
        if not self.make_room(1, 0) and owes:
            return Outcome.HELD_BACK
        self.calls[self.identity(head)] = Call(digest, head.call_id)
        return Outcome.NEW

    def make_room(self, calls: int, size: int) -> bool:
        while len(self.calls) + calls > self.bound_calls or self.reply_bytes + size > self.bound_bytes:
            if not self.droppable:
                return False
            oldest = self.droppable.pop(0)
            call = self.calls.pop(oldest)
            if isinstance(oldest, bytes):
                self.expired_keys[oldest] = call.digest
            else:
                self.callers[oldest[0]].expired.add(oldest[1])
        return True

    def acknowledge(self, parent: bytes, acked: int) -> None:
        caller = self.callers[parent]
        before, caller.acked = caller.acked, max(acked, caller.acked)
        for identity, call in self.of(parent):
            if call.done and before <= identity[1] < acked:  # type: ignore[operator]
                if caller.forgets:
                    del self.calls[identity]
                else:
                    self.droppable.append(identity)

    def finish(self, head: Head, status: int, reply: bytes, position: int) -> None:
        identity = self.identity(head)
        call = self.calls[identity]
        caller = None if head.keyed else self.callers[head.parent]
        if caller and (caller.released or (caller.forgets and head.n < caller.acked)):
            self.forget(head)
            return
        self.make_room(0, len(reply))
        call.done, call.status, call.reply, call.position = True, status, reply, position
        if caller is None or head.n < caller.acked:
            self.droppable.append(identity)

    def forget(self, head: Head) -> None:
        del self.calls[self.identity(head)]
        if not head.keyed and self.callers[head.parent].released and not self.of(head.parent):
            del self.callers[head.parent]

    def release(self, parent: bytes) -> None:
        if parent not in self.callers:
            return
        self.callers[parent].expired.clear()
        caller = self.callers[parent]
        # Runs of a job's driver come one after the other, and not beside each other.
        if any(caller.attempts[2:] if caller.of_job else caller.attempts):
            self.buried.add((self.callers[parent].root, parent))
        for identity, call in self.of(parent):
            if call.done:
                del self.calls[identity]
                if identity in self.droppable:
                    self.droppable.remove(identity)
        if self.of(parent):
            self.callers[parent].released = True
        else:
            del self.callers[parent]

    def release_root(self, root: bytes) -> None:
        for parent in [p for p, c in self.callers.items() if c.root == root and not c.inside]:
            self.release(parent)
        if any(of == root for of, _ in self.buried):
            self.over.add(root)

    def begin_history(self, number: int) -> None:
        self.history = number

    def reload(self) -> None:
        """What a dump that is loaded has: no calls under way."""
        self.calls = {identity: call for identity, call in self.calls.items() if call.done}
        self.callers = {parent: caller for parent, caller in self.callers.items() if not caller.released}
        self.buried = {(root, parent) for root, parent in self.buried if root not in self.over}
        self.over = set()

    def counters(self) -> dict[str, int]:
        return {
            "callers": len(self.callers),
            "calls": len(self.calls),
            "accepted": sum(not call.done for call in self.calls.values()),
            "reply_bytes": self.reply_bytes,
            "expired": len(self.expired_keys) + sum(len(caller.expired) for caller in self.callers.values()),
            "released": len(self.buried),
            **self.counts,
        }
