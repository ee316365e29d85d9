"""The Host protocol: all that the toolkit asks of the engine that runs an actor.

An engine implements `Host` and drives one `ActorSession` per actor process (see `engine`). Nothing else
passes between the two, so that any engine can run the same `Checkpointable` classes.

What the engine promises
    * One session per actor process; an old incarnation is dead, or about to be killed, when a new one
      opens its own.
    * `ActorSession.after_call` after each method, on its thread, before the next one starts there.
    * Actions given to `run_between_calls` run while no method of a serial actor runs, also when it is idle.
What the toolkit promises
    * No call into the host from `after_call` in the usual case; none of its calls expects the host to block.
    * `report_incident` and `fenced` may come from the toolkit's background thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

CRASHED = 70
"""Exit status of an actor whose method was interrupted half-way."""
NOT_NOW = 75
"""Exit status of an actor whose restore has failed, and may not the next time: EX_TEMPFAIL."""


class ActorIdentity(NamedTuple):
    """Who an actor is, as far as its snapshots care.

    Attributes
    ----------
    namespace : str
    name : str
        Empty for an unnamed actor.
    unique_id : str
        Never used by another actor on any store: contains the session's random nonce, never only a job
        number.
    class_name : str
        The user's class, as people know it.
    """

    namespace: str
    name: str
    unique_id: str
    class_name: str


class Incident(NamedTuple):
    """Something that people should see, as one line.

    ``kind`` is one of ``restored``, ``snapshot_skipped``, ``history_ignored``, ``save_failed``,
    ``save_starved``, ``final_save_failed``, ``hook_failed``, ``fenced``, ``journal_lost``,
    ``journal_note``, ``journal_fails``, ``journal_failed``, ``replayed``, ``hash_seed``, ``refused``;
    ``fatal`` says that saving has ended.
    """

    kind: str
    message: str
    error: BaseException | None = None
    fatal: bool = False
    details: Mapping[str, object] = {}


class Host(Protocol):
    """What an engine tells the toolkit about one actor process, and does for it."""

    @property
    def identity(self) -> ActorIdentity:
        """Who the actor is. The same for all its incarnations."""

    @property
    def incarnation(self) -> int:
        """1 for the first process of the actor, then 2, 3, ... For people; what fences is the epoch."""

    @property
    def is_reconstructed(self) -> bool:
        """Whether an earlier incarnation of this very actor ended without intent."""

    def predecessor_fault(self) -> str:
        """How the process before this one ended, if by a fault of its own: a signal such as SIGSEGV, an exit.

        "" if somebody else has ended it or asked for its end, or if that is not known.
        """

    def has_served(self) -> bool:
        """Whether an earlier incarnation had come to serve. False if that is not known."""

    @property
    def max_concurrency(self) -> int:
        """How many methods may run at once. Above 1 the engine also calls `ActorSession.before_call`."""

    @property
    def is_async(self) -> bool:
        """Whether the methods run on an asyncio loop."""

    def run_between_calls(self, action: Callable[[], None]) -> None:
        """Run `action` soon on the actor's thread (its loop), between two methods, also when no call comes.

        Callable from any thread. Actions run in the order given, before the next method starts.
        """

    def report_incident(self, incident: Incident) -> None:
        """Make `incident` visible to people. Callable from any thread; does not raise."""

    def crashed(self, error: BaseException) -> None:
        """End this process at once, as if it had been killed, and restart the actor if that is left to it.

        Asked for by exactly-once actors: a method was interrupted half-way, or the journal's medium failed.
        """

    @property
    def hash_seed(self) -> str:
        """``PYTHONHASHSEED`` of this process as it was started, "" if that is not known."""

    def restart_with_hash_seed(self, seed: str) -> None:
        """End this process, and have the actor's next one started with another hash seed.

        Asked for before any recorded call is run again, when those ran with another seed. Returns if that is
        not possible (the user has chosen the seed, or the engine cannot): the session goes on and says so.
        """

    def fenced(self, error: BaseException) -> None:
        """A newer incarnation holds the key: end this process because of `error`, do not restart it."""


class ProcessHost:
    """What hosts have in common whose actors are processes, with a stderr that is shown to people."""

    identity: ActorIdentity

    def report_incident(self, incident: Incident) -> None:
        """See `Host.report_incident`: one line."""
        print(f"checkpoint {incident.kind}: {incident.message}", file=sys.stderr, flush=True)

    def predecessor_fault(self) -> str:
        """See `Host.predecessor_fault`: most engines do not tell."""
        return ""

    def has_served(self) -> bool:
        """See `Host.has_served`: unknown."""
        return False

    def crashed(self, error: BaseException) -> None:
        """See `Host.crashed`."""
        import traceback

        print(f"{self.identity.class_name} ends because of {type(error).__name__}:", file=sys.stderr)
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
        os._exit(CRASHED)
