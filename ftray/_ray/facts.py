"""Where the current code runs, on a Ray cluster."""

from __future__ import annotations

from typing import Any

import ray

from ftray import _core
from ftray._ray import host_flow
from ftray._ray.actors import RayActorHandle
from ftray.exceptions import NotInitializedError, NotSupportedError
from ftray.runtime_context import RuntimeContext
from ftray.runtime_env import RuntimeEnv


class RayRuntimeContext(RuntimeContext):
    """Facts about the process, task and actor that the calling code is part of; asked of Ray."""

    def _theirs(self) -> Any:
        if not ray.is_initialized():
            raise NotInitializedError()
        return ray.get_runtime_context()

    def _in_worker(self) -> bool:
        self._theirs()
        worker = ray._private.worker
        return bool(worker.global_worker.mode == worker.WORKER_MODE)

    def get_job_id(self) -> str:
        return str(self._theirs().get_job_id())

    def get_node_id(self) -> str:
        return str(self._theirs().get_node_id())

    def get_worker_id(self) -> str:
        return str(self._theirs().get_worker_id())

    def get_task_id(self) -> str | None:
        return _text(self._theirs().get_task_id()) if self._in_worker() else None

    def get_actor_id(self) -> str | None:
        return _text(self._theirs().get_actor_id()) if self._in_worker() else None

    def get_task_name(self) -> str | None:
        return _text(self._theirs().get_task_name()) if self._in_worker() else None

    def get_task_function_name(self) -> str | None:
        return _text(self._theirs().get_task_function_name()) if self._in_worker() else None

    def get_call_id(self) -> str:
        self._theirs()
        flow = host_flow.current.get()
        if flow is None:
            raise NotSupportedError(
                "get_call_id() is not supported here: on the engine 'ray' methods of exactly-once actors have"
                " such an identity, and tasks and methods that were called from where there is one"
            )
        return str(flow.parent.hex())

    def get_actor_name(self) -> str | None:
        return _text(self._theirs().get_actor_name()) if self.get_actor_id() is not None else None

    def get_placement_group_id(self) -> str | None:
        return _text(self._theirs().get_placement_group_id())

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        return bool(self._theirs().should_capture_child_tasks_in_placement_group)

    def is_canceled(self) -> bool:
        if not self._in_worker():
            raise RuntimeError("is_canceled() is for code that runs in a task or an actor's method")
        guard = _core.the_guard()
        asked = self._theirs().is_canceled
        return bool(asked() if guard is None else guard.is_cancelled(asked))

    @property
    def current_actor(self) -> RayActorHandle:
        if self.get_actor_id() is None:
            raise RuntimeError("current_actor is for code that runs in an actor's method")
        return RayActorHandle(self._theirs().current_actor)

    def get_runtime_env_string(self) -> str:
        return str(self._theirs().get_runtime_env_string())

    @property
    def runtime_env(self) -> RuntimeEnv:
        known = dict(self._theirs().runtime_env)
        return RuntimeEnv(**{k: known[k] for k in ("env_vars", "working_dir", "py_modules") if known.get(k)})

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        found = self._theirs().get_accelerator_ids()
        return {"GPU": [str(number) for number in found.get("GPU", [])]}

    def get_assigned_resources(self) -> dict[str, float]:
        if not self._in_worker():
            raise RuntimeError("get_assigned_resources() is for code that runs in a task or an actor")
        return dict(self._theirs().get_assigned_resources())

    @property
    def namespace(self) -> str:
        return str(self._theirs().namespace)

    @property
    def attempt_number(self) -> int:
        if not self._in_worker():
            return 0
        return int(ray._private.worker.global_worker.core_worker.get_current_task_attempt_number())

    @property
    def was_current_actor_reconstructed(self) -> bool:
        return self.get_actor_id() is not None and bool(self._theirs().was_current_actor_reconstructed)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
