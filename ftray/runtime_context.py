"""Where the current code runs."""

from __future__ import annotations

from ftray import _core, _lifecycle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ftray.actor import ActorHandle
    from ftray.runtime_env import RuntimeEnv


class RuntimeContext:
    """Facts about the process, task and actor that the calling code is part of; read when asked for."""

    def _context(self) -> dict[str, Any]:
        _lifecycle.current()
        return _core.current_context()

    def get_job_id(self) -> str:
        """Return the job's id in hexadecimal."""
        return str(self._context()["job_id"].to_bytes(4, "little").hex())

    def get_node_id(self) -> str:
        """Return the node's id in hexadecimal."""
        return str(self._context()["node_id"].hex())

    def get_worker_id(self) -> str:
        """Return this process's id in hexadecimal."""
        return str(self._context()["worker_id"].hex())

    def get_task_id(self) -> str | None:
        """Return the running task's id in hexadecimal, None outside a task."""
        context = self._context()
        return context["task_id"].hex() if context["in_task"] else None

    def get_actor_id(self) -> str | None:
        """Return the actor's id in hexadecimal, None outside an actor."""
        from ftray import _worker

        return _worker.actor_id().hex() if _worker.actor_id() else None

    def get_task_name(self) -> str | None:
        """Return the running task's (as in ``options(name=...)``) or method's name, None outside a task."""
        from ftray import _worker

        _lifecycle.current()
        executor = _worker.executor()
        return None if executor is None else executor.call_name()

    def get_task_function_name(self) -> str | None:
        """Return the running function's own name, with its module, None outside a task."""
        from ftray import _worker

        name = self.get_task_name()
        executor = _worker.executor()
        if name is None or executor is None:
            return None
        function = executor.function_named(name)
        return f"{getattr(function, '__module__', None) or '?'}.{getattr(function, '__qualname__', name)}"

    def get_call_id(self) -> str:
        """Return the identity of the running call, which a re-execution keeps, in hexadecimal."""
        return str(self._context()["call_id"].hex())

    def get_actor_name(self) -> str | None:
        """Return the current actor's name, "" when it has none, None outside an actor."""
        from ftray import _worker

        spec = _worker.actor_spec()
        return None if spec is None else spec["name"] or ""

    def get_placement_group_id(self) -> str | None:
        """Return the id of the placement group that the code runs in, in hexadecimal, or None."""
        here = _core.current_group()
        return None if here is None else here[:-1].hex()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what the code starts without a strategy runs in its placement group as well."""
        here = _core.current_group()
        return here is not None and here[-1] == 1

    def is_canceled(self) -> bool:
        """Return whether the running task or actor method was cancelled; long methods ask this now and then.

        Raises
        ------
        RuntimeError
            In a driver, and in an async actor, whose coroutines get a ``CancelledError``.
        """
        from ftray import _worker

        return _worker.is_cancelled()

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A handle of the actor that the code runs in.

        Raises
        ------
        RuntimeError
            Outside an actor.
        """
        import pickle

        from ftray import _worker
        from ftray.actor import ActorHandle

        spec = _worker.actor_spec()
        if spec is None:
            raise RuntimeError("current_actor is for code that runs in an actor's method")
        return ActorHandle._make(
            _core.foreign_actor_ref(spec["actor_id"], spec["owner"]), pickle.loads(spec["meta"])
        )

    def get_runtime_env_string(self) -> str:
        """Return the current runtime environment as JSON, "{}" when there is none."""
        return _lifecycle.current().runtime_env or "{}"

    @property
    def runtime_env(self) -> RuntimeEnv:
        """The current runtime environment: of this worker, or the job's; directories are snapshots."""
        from ftray._runtime_env import load
        from ftray.runtime_env import RuntimeEnv

        return RuntimeEnv(**load(_lifecycle.current().runtime_env))

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Return the ids of the GPUs that the current task or actor has, as ``{"GPU": [...]}``."""
        from ftray import _accelerators

        _lifecycle.current()
        return {_accelerators.GPU: _accelerators.gpu_ids()}

    def get_assigned_resources(self) -> dict[str, float]:
        """Return the amounts that the current task or actor holds, by resource name.

        Raises
        ------
        RuntimeError
            In a driver, which holds none.
        """
        if self._context()["is_driver"]:
            raise RuntimeError("get_assigned_resources() is for code that runs in a task or an actor")
        found: dict[str, float] = _lifecycle.ask("assigned_resources", {})
        return found

    @property
    def namespace(self) -> str:
        """The job's namespace."""
        return _lifecycle.current().namespace

    @property
    def attempt_number(self) -> int:
        """How often the running task was tried before."""
        return int(self._context()["attempt"])

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the current actor was restarted after a death."""
        from ftray import _worker

        return _worker.incarnation() > 1
