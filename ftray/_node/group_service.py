"""Placement groups: carries the decisions of ``placement`` out, and answers where a demand may be served.

Owns: the groups' RPC methods, what clients get instead of a place that there is not.
Invariants: whoever waits for a place in a group is told when the group is removed; whatever runs in it is
killed before its resources are anybody else's.
Leaves to others: the decisions; granting (``scheduler``), workers' ends (``workers``).
"""

from __future__ import annotations

import time

from ftray._node import placement as machine
from ftray._node import strategies
from ftray._node.amounts import ResourceError, as_floats, describe, fixed_point
from ftray._node.frames import (
    DEATH_GROUP_REMOVED,
    INFEASIBLE_GROUP_REMOVED,
    INFEASIBLE_NEVER,
    INFEASIBLE_NOW,
    LeaseInfeasible,
    clip,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ftray._node.amounts import Amounts
    from ftray._node.clients import Client
    from ftray._node.daemon import Node
    from ftray._node.scheduler import Withdrawn


class NoPlace(Exception):
    """A demand that will not be served, or not as things stand.

    Attributes
    ----------
    fatal
        A value of LEASE_INFEASIBLE's field; `INFEASIBLE_NOW`: it waits until it is cancelled.
    """

    def __init__(self, fatal: int, text: str) -> None:
        super().__init__(text)
        self.fatal = fatal


class GroupService:
    """Placement groups of a node, and the strategies of demands."""

    def __init__(self, node: Node, total: Amounts, labels: dict[str, str]) -> None:
        self._node = node
        self._total = total
        self._labels = labels
        self.table = machine.Groups(total)

    # Demands --------------------------------------------------------------------------------------

    def place(self, strategy: str, needed: Amounts, held: Amounts) -> machine.Place | None:
        """Return where a demand may be served; None: on the node's own resources.

        Raises
        ------
        NoPlace
            Nowhere.
        """
        try:
            wanted = strategies.parse(strategy, self._node.node_id, self._labels)
            for name in needed:
                if machine.is_pool_name(name):
                    raise machine.GroupError(
                        f"the resource {name!r} is a bundle's: use PlacementGroupSchedulingStrategy"
                    )
            if wanted.group_id:
                return self.table.place(wanted.group_id, wanted.bundle, needed, held)
        except machine.GroupRemovedError as error:
            raise NoPlace(INFEASIBLE_GROUP_REMOVED, str(error)) from None
        except (strategies.StrategyError, machine.GroupError) as error:
            raise NoPlace(INFEASIBLE_NEVER, str(error)) from None
        text = describe(needed, self._total) if wanted.must_fit else ""
        if text:
            raise NoPlace(INFEASIBLE_NEVER, f"the node that it is bound to is too small: {text}")
        if wanted.obstacle:
            raise NoPlace(INFEASIBLE_NOW, f"{wanted.obstacle}; it waits until it is cancelled")
        return None

    def withdrawn(self, command: Withdrawn) -> None:
        """A demand went with its group."""
        text = self.table.text_of_removal(command.group_id)
        if command.is_actor:
            assert isinstance(command.key, tuple)
            self._node.actors.end(command.key[0], "group_removed", text)
            return
        client = self._node.clients.get(command.client)
        if client is not None and isinstance(command.key, int):
            frame = LeaseInfeasible(command.key, INFEASIBLE_GROUP_REMOVED, clip(text))
            self._node.clients.send(client, frame)

    def reserved(self, group_id: bytes) -> None:
        """The scheduler granted a group's reservation."""
        self.table.reserved(group_id, time.monotonic())

    # Ends -----------------------------------------------------------------------------------------

    def job_ended(self, job_id: int) -> None:
        """A driver left."""
        for group_id in self.table.ending_with(job_id=job_id):
            self._apply(self.table.removed(group_id, f"the driver of job {job_id} left"))

    def actor_dead(self, actor_id: bytes) -> None:
        """An actor is dead for good."""
        for group_id in self.table.ending_with(actor_id=actor_id):
            self._apply(self.table.removed(group_id, f"the actor {actor_id.hex()} that made it died"))

    def _apply(self, commands: Sequence[machine.Command]) -> None:
        leases = self._node.leases
        for command in commands:
            if isinstance(command, machine.Warn):
                self._node.warn_job(command.job_id, command.text)
            elif isinstance(command, machine.Reserve):
                leases.apply(
                    leases.scheduler.group_requested(
                        command.group_id, command.amounts, command.pools, command.title
                    )
                )
            elif isinstance(command, machine.Release):
                workers, further = leases.scheduler.group_removed(command.group_id)
                leases.apply(further)
                for number in workers:
                    self._end_worker(number, command.text)

    def _end_worker(self, number: object, text: str) -> None:
        worker = self._node.workers.get(number) if isinstance(number, int) else None
        if worker is None:
            return
        self._node.workers.kill(worker, DEATH_GROUP_REMOVED, f"was ended because its {text}")
        if worker.actor_id is not None:
            self._node.actors.end(worker.actor_id, "group_removed", text)

    # Methods for clients --------------------------------------------------------------------------

    def methods(self) -> dict[str, Any]:
        """Return the RPC methods."""
        return {
            "placement_group_create": self.create,
            "placement_group_remove": self.remove,
            "placement_group_find": self.find,
            "placement_group_table": self.describe,
        }

    def create(
        self,
        client: Client,
        group_id: bytes,
        bundles: list[dict[str, float]],
        strategy: str,
        name: str,
        detached: bool,
    ) -> None:
        """Make a group; ValueError when it cannot be."""
        try:
            amounts = tuple(fixed_point(bundle.items()) for bundle in bundles)
        except ResourceError as error:
            raise ValueError(f"bundles: {error}") from None
        actor_id, job_id = self._creator(client)
        spec = machine.GroupSpec(
            group_id, amounts, strategy, name, self._node.namespace_of(client), detached, job_id, actor_id
        )
        self._apply(self.table.created(spec, time.monotonic()))

    def remove(self, client: Client, group_id: bytes) -> None:
        """Remove a group; one that is removed or unknown is none."""
        self._apply(self.table.removed(group_id))

    def find(self, client: Client, name: str) -> tuple[bytes, list[dict[str, float]]] | None:
        """Return id and bundles of a named group in the caller's namespace, None without one."""
        spec = self.table.lookup(name, self._node.namespace_of(client))
        return None if spec is None else (spec.group_id, [as_floats(bundle) for bundle in spec.bundles])

    def describe(self, client: Client, group_id: bytes | None = None) -> dict[str, Any]:
        """Return one group's state ({} for an unknown one), or that of all groups by their ids."""
        node_id = self._node.node_id.hex()
        if group_id is not None:
            return self.table.info(group_id, node_id) or {}
        return {known.hex(): self.table.info(known, node_id) for known in self.table.known()}

    def _creator(self, client: Client) -> tuple[bytes, int]:
        """Return whose end is the end of what the client makes: a detached actor (or b""), and a job."""
        job_id = self._node.job_of(client)
        actor_id = client.worker.actor_id if client.worker is not None else None
        fields = self._node.actors.fields_of(actor_id) if actor_id is not None else None
        if actor_id is not None and fields is not None and fields["lifetime"] == "detached":
            return actor_id, job_id
        if self._node.clients.driver_of(job_id) is None:
            raise ValueError(f"the driver of job {job_id} left, so that the placement group would be removed")
        return b"", job_id
