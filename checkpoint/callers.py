"""For tests and small hosts: callers of exactly-once actors, with the identities of an engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ftray._core.identity import call_id, derive_callee_key
from ftray._core.records import encode_head

from .codec import ERROR, ToolkitCodec

if TYPE_CHECKING:
    from .serving import Answer, ExactlyOnceCalls

_CODEC = ToolkitCodec()


class Call:
    """One call, which may be sent any number of times: it runs once.

    Attributes
    ----------
    head, method, args : bytes, str, bytes
        As `ExactlyOnceCalls.call` takes them.
    """

    def __init__(self, caller: Caller, key: str, n: int, head: bytes, method: str, args: bytes) -> None:
        self._caller, self._key, self.n = caller, key, n
        self.head, self.method, self.args = head, method, args

    def __repr__(self) -> str:
        return f"call {self.n} of {self.method!r}"

    def sent_to(self, calls: ExactlyOnceCalls, timeout_s: float = 10.0) -> Any:
        """Send it and return its value, or raise its error, on the present thread."""
        return self._decoded(calls.call(self.head, self.method, self.args, timeout_s))

    async def sent_to_async(self, calls: ExactlyOnceCalls, timeout_s: float = 10.0) -> Any:
        """`sent_to` on the running event loop."""
        return self._decoded(await calls.call_async(self.head, self.method, self.args, timeout_s))

    def _decoded(self, answer: Answer) -> Any:
        self._caller.answered(self._key, self.n)
        value = _CODEC.decode_reply(answer.status, answer.reply)
        if answer.status == ERROR:
            raise value
        return value


class Caller:
    """Somebody who calls exactly-once actors, under one root.

    Parameters
    ----------
    root : bytes, optional
        16 bytes. Default: random.
    parent : bytes, optional
        CallID of the calling task or method. Default: the root, as a driver calls.
    attempt : int
        Which execution of the caller this is.
    acknowledges : bool
        Whether later calls tell that the replies of the earlier ones have arrived.
    """

    def __init__(
        self,
        root: bytes | None = None,
        *,
        parent: bytes | None = None,
        attempt: int = 0,
        acknowledges: bool = True,
    ) -> None:
        self.root = os.urandom(16) if root is None else root
        self.parent = self.root if parent is None else parent
        self.attempt, self._acknowledges = attempt, acknowledges
        self._made: dict[str, int] = {}
        self._answered: dict[str, set[int]] = {}

    def call(self, key: str, method: str, *args: Any, **kwargs: Any) -> Call:
        """Make the next call to the actor with this checkpoint key; nothing is sent."""
        n = self._made[key] = self._made.get(key, 0) + 1
        return self.numbered(key, n, method, *args, **kwargs)

    def numbered(self, key: str, n: int, method: str, *args: Any, **kwargs: Any) -> Call:
        """Make the n-th call, as a caller does that is executed again."""
        callee = derive_callee_key(key)
        head = encode_head(
            root_kind=0,
            root=self.root,
            parent=self.parent,
            call_id=call_id(self.parent, callee, n, 0),
            n=n,
            acked=self._acked(key),
            attempts=(self.attempt,),
        )
        return Call(self, key, n, head, method, _CODEC.encode_args(args, kwargs))

    def answered(self, key: str, n: int) -> None:
        """The reply of the n-th call has arrived."""
        self._answered.setdefault(key, set()).add(n)

    def _acked(self, key: str) -> int:
        if not self._acknowledges:
            return 0
        answered, acked = self._answered.get(key, set()), 1
        while acked in answered:
            acked += 1
        return acked
