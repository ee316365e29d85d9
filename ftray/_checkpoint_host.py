"""The native engine's `Host` for the checkpoint toolkit: who the actor is, and how to reach its thread."""

from __future__ import annotations

import os
import sys

from ftray.checkpoint.host import ActorIdentity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ftray._core.worker import Executor
    from ftray.checkpoint.host import Incident
    from ftray.checkpoint.session import ActorSession


class NativeHost:
    """See `ftray.checkpoint.host.Host`."""

    def __init__(
        self, spec: dict[str, Any], incarnation: int, executor: Executor, end: Callable[[BaseException], None]
    ) -> None:
        self.identity = ActorIdentity(
            spec["checkpoint_namespace"], spec["name"] or "", spec["unique_id"], spec["class_name"]
        )
        self.incarnation = incarnation
        self.is_reconstructed = incarnation > 1
        # Groups run beside the default one.
        self.max_concurrency: int = spec["max_concurrency"] + sum(spec["concurrency_groups"].values())
        self.is_async: bool = spec["is_async"]
        self._executor = executor
        self._end = end

    def run_between_calls(self, action: Callable[[], None]) -> None:
        """See `Host.run_between_calls`."""
        self._executor.post(action)

    def report_incident(self, incident: Incident) -> None:
        """One line on stderr, which the driver prints with the actor's name and pid."""
        print(f"checkpoint {incident.kind}: {incident.message}", file=sys.stderr, flush=True)

    def crashed(self, error: BaseException) -> None:
        """See `Host.crashed`."""
        print(f"actor crashes: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)

    def fenced(self, error: BaseException) -> None:
        """See `Host.fenced`."""
        self._end(error)


def open_session(
    instance: Any,
    spec: dict[str, Any],
    incarnation: int,
    executor: Executor,
    end: Callable[[BaseException], None],
) -> ActorSession:
    """Restore the instance's state and begin its checkpoints."""
    from ftray.checkpoint import engine

    return engine.open(instance, NativeHost(spec, incarnation, executor, end), spec["checkpoint"])
