"""The node's methods that clients call by name.

Owns: the list of methods, their arguments and results.
Invariants: a method never waits; an exception is the reply, never the node's end.
Leaves to others: the tables that the methods read.
"""

from __future__ import annotations

import os
import pickle

from ftray._node.frames import Rpc, RpcReply
from ftray._node.placement import wildcards
from ftray._node.resources import NODE_IP
from ftray._node.storage import MAX_KEY_BYTES, MAX_VALUE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ftray._node.clients import Client
    from ftray._node.daemon import Node


def _check_size(what: str, value: bytes, limit_bytes: int) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"the {what} must be bytes, not {type(value).__name__}")
    if len(value) > limit_bytes:
        raise ValueError(f"the {what} has {len(value)} bytes; at most {limit_bytes} are allowed")


def _table(namespace: bytes) -> bytes:
    """Return the table of a namespace of the key-value store; other tables of the head begin otherwise."""
    _check_size("namespace", namespace, MAX_KEY_BYTES)
    return b"kv:" + namespace


def _key(key: bytes) -> bytes:
    _check_size("key", key, MAX_KEY_BYTES)
    return key


class RpcService:
    """Dispatch of RPC frames."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._methods: dict[str, Callable[..., Any]] = {
            "kv_put": self.kv_put,
            "kv_get": self.kv_get,
            "kv_del": self.kv_del,
            "kv_exists": self.kv_exists,
            "kv_keys": self.kv_keys,
            "get_named_actor": self.get_named_actor,
            "actor_by_key": self.actor_by_key,
            "list_named_actors": self.list_named_actors,
            "actor_info": self.actor_info,
            "actor_waits": node.actors.on_waits,
            "actors": self.actors,
            "cluster_resources": lambda client: wildcards(node.leases.scheduler.total()),
            "available_resources": lambda client: wildcards(node.leases.scheduler.available()),
            "waiting": lambda client: node.leases.scheduler.waiting(),
            "nodes": self.nodes,
            "workers": self.workers,
            "job": self.job,
            "jobs": lambda client: [job.facts() for job in node.jobs.all()],
            "assigned_resources": self.assigned_resources,
            "object_store": self.object_store,
            "lose_segment": self.lose_segment,
            "preload": self.preload,
            "flush_output": lambda client: node.logs.flush(client.job_id),
            **node.groups.methods(),
            "task_events": node.state.task_events,
            "processes": node.state.processes,
            "actor_states": node.actors.states,
            "hash_seed": node.actors.set_hash_seed,
            "predecessor_death": node.actors.predecessor_death,
            "has_served": node.actors.has_served,
            "dump_stacks": node.workers.dump_stacks,
        }
        # These reply themselves, later.
        self._deferred: dict[str, Callable[..., None]] = {
            "inspect": node.state.inspect,
            "settle_deaths": node.workers.settle,
        }

    def on_rpc(self, client: Client, frame: Rpc, req: int) -> None:
        """RPC: call the method and reply."""
        try:
            method, arguments = pickle.loads(frame.call)
            if method in self._deferred:
                self._deferred[method](client, req, **arguments)
                return
            function = self._methods.get(method)
            if function is None:
                raise ValueError(
                    f"the node has no method {method!r}; it has {', '.join(sorted(self._methods))}"
                )
            reply = RpcReply(1, pickle.dumps(function(client, **arguments)))
        except Exception as error:
            reply = RpcReply(0, _pickled_error(error))
        self._node.clients.send(client, reply, req)

    # Internal key-value store ---------------------------------------------------------------------

    def kv_put(
        self, client: Client, key: bytes, value: bytes, namespace: bytes = b"", overwrite: bool = True
    ) -> bool:
        """Store; True when the key was there already (as in Ray's internal_kv)."""
        _check_size("value", value, MAX_VALUE_BYTES)
        return self._node.tables.put(_table(namespace), _key(key), value, overwrite)

    def kv_get(self, client: Client, key: bytes, namespace: bytes = b"") -> bytes | None:
        """Return the value, None without one."""
        return self._node.tables.get(_table(namespace), _key(key))

    def kv_del(self, client: Client, key: bytes, namespace: bytes = b"", del_by_prefix: bool = False) -> int:
        """Remove; return how many keys went."""
        return self._node.tables.delete(_table(namespace), _key(key), del_by_prefix)

    def kv_exists(self, client: Client, key: bytes, namespace: bytes = b"") -> bool:
        """Whether the key is there."""
        return self._node.tables.exists(_table(namespace), _key(key))

    def kv_keys(self, client: Client, prefix: bytes = b"", namespace: bytes = b"") -> list[bytes]:
        """Return the keys that begin with ``prefix``."""
        return self._node.tables.keys(_table(namespace), _key(prefix))

    # Actors ---------------------------------------------------------------------------------------

    def get_named_actor(
        self, client: Client, name: str, namespace: str | None = None
    ) -> dict[str, Any] | None:
        """Return the living actor of that name: its spec without arguments."""
        where = self._node.namespace_of(client) if namespace is None else namespace
        spec = self._node.actors.table.lookup(name, where)
        return None if spec is None else self.actor_info(client, spec.actor_id)

    def actor_by_key(self, client: Client, key: bytes) -> dict[str, Any] | None:
        """Return the living actor with that callee key, as `get_named_actor` does."""
        found = self._node.actors.with_key(key)
        return None if found is None else self.actor_info(client, found)

    def list_named_actors(
        self, client: Client, all_namespaces: bool = False, namespace: str | None = None
    ) -> list[dict[str, str]]:
        """Return name and namespace of living named actors."""
        wanted = self._node.namespace_of(client) if namespace is None else namespace
        return [
            {"namespace": space, "name": name}
            for space, name in self._node.actors.table.names()
            if all_namespaces or space == wanted
        ]

    def actor_info(self, client: Client, actor_id: bytes) -> dict[str, Any] | None:
        """Return state, incarnation, cause and address of an actor, and its spec while it lives.

        Of an exactly-once actor also, for longer, under which key and in which store its checkpoints are.
        """
        info = self._node.actors.table.info(actor_id)
        if info is None:
            return None
        number = info.pop("worker")
        worker = self._node.workers.get(number) if number is not None else None
        if worker is not None and worker.client is not None:
            info["pid"], info["worker_id"] = worker.pid, worker.client.worker_id
        fields = self._node.actors.fields_of(actor_id)
        if fields is not None:
            info["spec"] = {key: value for key, value in fields.items() if key != "args_blob"}
        info["checkpoint"] = self._node.actors.checkpoint_of(actor_id)
        return info

    def actors(self, client: Client) -> list[dict[str, Any]]:
        """Return ``actor_info`` of every actor, without specs."""
        found = (self.actor_info(client, actor_id) for actor_id in self._node.actors.table.actor_ids())
        return [{k: v for k, v in info.items() if k != "spec"} for info in found if info is not None]

    # Node -----------------------------------------------------------------------------------------

    def nodes(self, client: Client) -> list[dict[str, Any]]:
        """Return the machines of the session."""
        return [
            {
                "NodeID": self._node.node_id.hex(),
                "Alive": True,
                "NodeManagerAddress": NODE_IP,
                "NodeManagerHostname": os.uname().nodename,
                "Resources": wildcards(self._node.leases.scheduler.total()),
                "Labels": dict(self._node.labels),
                "session_dir": self._node.session.path,
                "pid": self._node.info["pid"],
                "is_head": self._node.is_head,
                "start_unix_s": self._node.start_unix_s,
                "drivers": sum(c.is_driver for c in self._node.clients.registered()),
            }
        ]

    def job(self, client: Client, job_id: int) -> dict[str, Any] | None:
        """Return what a worker has to know of its job: namespace, ``sys_path``, ``cwd``; None for no job."""
        job = self._node.jobs.get(job_id)
        return None if job is None else job.facts()

    def workers(self, client: Client) -> list[dict[str, Any]]:
        """Return every worker process."""
        return [
            {
                "pid": worker.pid,
                "worker_id": worker.client.worker_id if worker.client is not None else b"",
                "stage": stage.name if stage is not None else "ENDING",
                "job_id": worker.job_id,
                "actor_id": worker.actor_id,
                "name": self._node.logs.label_of(worker),
            }
            for worker in self._node.workers.all()
            for stage in [self._node.leases.pool.stage_of(worker.number)]
        ]

    def assigned_resources(self, client: Client) -> dict[str, float]:
        """Return what the allocation that the calling worker serves holds."""
        if client.worker is None:
            raise ValueError("a driver holds no resources")
        return wildcards(self._node.leases.scheduler.held_by(client.worker.number))

    def object_store(self, client: Client) -> dict[str, int]:
        """Return bytes used, capacity and number of segments, and what was spilled and restored."""
        segments = self._node.objects.segments
        spills = self._node.objects.spills.machine
        on_disk_objects, on_disk_bytes = spills.stored()
        return {
            "used": segments.used_bytes,
            "capacity": segments.capacity_bytes,
            "segments": segments.count(),
            "on_disk_objects": on_disk_objects,
            "on_disk_bytes": on_disk_bytes,
            **spills.figures,
        }

    def lose_segment(self, client: Client, segment: int) -> bool:
        """Forget a segment of shared memory, as if the node had lost it; whether it was there. For tests."""
        before = self._node.objects.segments.count()
        self._node.objects.lose(segment)
        return self._node.objects.segments.count() < before

    def preload(self, client: Client, modules: list[str]) -> None:
        """Have workers that are made from now on share these modules."""
        if not all(isinstance(module, str) and module for module in modules):
            raise TypeError(f"modules is a list of module names, got {modules!r}")
        self._node.zygote.preload(list(modules))


def _pickled_error(error: Exception) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
