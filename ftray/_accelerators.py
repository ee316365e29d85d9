"""The GPUs of the task or actor that runs in this process.

Owns: which GPUs ``ftrayd`` has assigned to this worker, and ``CUDA_VISIBLE_DEVICES``, which says so to
libraries before user code runs.  Leaves to others: choosing them (``_node/devices``).

As in Ray 2.60: a task without GPUs sees the variable as the worker was started with it, unless
``RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1`` (then it is empty); ``RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES=1``
leaves it alone altogether. Both names are read with ``FTRAY_`` in front as well. What a runtime environment
sets is the user's word: it stays.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

GPU = "GPU"
VARIABLE = "CUDA_VISIBLE_DEVICES"


class _State:
    """What this process was told."""

    assigned: tuple[str, ...] = ()
    original: str | None = None  # the variable as the process was started with it
    by_user: bool = False


def _wants(name: str) -> bool:
    """Whether a switch of Ray's is on, under its own or our name."""
    for prefix in ("FTRAY_", "RAY_"):
        text = os.environ.get(prefix + name)
        if text is not None:
            return text.lower() in ("1", "true")
    return False


def start(env_vars: Mapping[str, str]) -> None:
    """Note how this worker was started; ``env_vars`` are those of its runtime environment."""
    _State.original = os.environ.get(VARIABLE)
    _State.by_user = VARIABLE in env_vars
    if _wants("ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        _show()


def assign(data: bytes) -> None:
    """Take what ``ftrayd`` has assigned: JSON, GPU ids by resource name; b"" is no news."""
    if data:
        import json  # few processes have GPUs

        _State.assigned = tuple(json.loads(data)[GPU])
        _show()


def _show() -> None:
    if _State.by_user or _wants("EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"):
        return
    if _State.assigned or _wants("ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ[VARIABLE] = ",".join(_State.assigned)
    elif _State.original is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = _State.original


def gpu_ids() -> list[str]:
    """Return the ids of the GPUs that this task or actor has."""
    if _State.by_user and _State.assigned:
        return [part.strip() for part in (_State.original or "").split(",") if part.strip()]
    return list(_State.assigned)


def numbers_or_names() -> list[int] | list[str]:
    """Return the same as numbers, unless ``CUDA_VISIBLE_DEVICES`` gives them names."""
    found = gpu_ids()
    return [int(gpu) for gpu in found] if _State.original is None else found
