"""What the core needs of a remote function before it is called: definition, scheduling class, environment."""

from __future__ import annotations

import struct

from ftray import _core, _lifecycle, _options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ftray._functions import RemoteFunction

_class_keys: dict[tuple[Any, ...], int] = {}


def lease_request(
    resources: Mapping[str, float],
    strategy: str,
    name: str,
    env: str = "",
    retriable: bool = True,
    max_calls: int = 0,
) -> tuple[int, bytes]:
    """Return key and LEASE_REQUEST payload of a scheduling class: tasks that can share a worker.

    Parameters
    ----------
    resources, strategy, name
        Of the task.
    env
        Text of its runtime environment.
    retriable
        Whether it may be run again; the memory monitor ends such tasks first.
    max_calls
        Bounds the calls that a worker is sent at a time.
    """
    identity = (tuple(sorted(resources.items())), strategy, env, retriable, max_calls)
    key = _class_keys.setdefault(identity, len(_class_keys) + 1)
    parts = [struct.pack("<QHH", key, 0, len(resources))]
    for resource, amount in sorted(resources.items()):
        raw = resource.encode()
        parts.append(struct.pack("<H", len(raw)) + raw + struct.pack("<d", amount))
    for word in (strategy.encode(), name.encode()[:200]):
        parts.append(struct.pack("<H", len(word)) + word)
    raw_env = env.encode()
    parts.append(struct.pack("<BI", retriable, len(raw_env)) + raw_env)
    return key, b"".join(parts)


_STRATEGY_OPTIONS = {
    "scheduling_strategy",
    "placement_group",
    "placement_group_bundle_index",
    "placement_group_capture_child_tasks",
}


def placed(
    explicit: Mapping[str, Any], held: Mapping[str, float], needed: Mapping[str, float], what: str
) -> tuple[str, bytes]:
    """Return the strategy as it travels, and the placement group that the code knows to run in, or b""."""
    if _core.current_group() is None and _STRATEGY_OPTIONS.isdisjoint(explicit):
        return "", b""
    from ftray._placement import strategy_of

    return strategy_of(explicit, held, needed, what)


def _env_text(function: RemoteFunction[..., Any]) -> str:
    """Return the environment that it runs in; directories are looked at once a session."""
    if not function._options.runtime_env:
        return _lifecycle.runtime_env_text(None)
    session = _lifecycle.current()
    if function._env_of is None or function._env_of[0] is not session:
        function._env_of = session, _lifecycle.runtime_env_text(function._options.runtime_env)
    return function._env_of[1]


def binding_of(function: RemoteFunction[..., Any]) -> tuple[bytes, int, bytes, int, int, int, bytes]:
    """Return what the core's caller of a function needs, see `FunctionCaller`."""
    from ftray._pickling import pickle_function

    shared = function._definition_of
    if "function" not in shared:
        refs: list[Any] = []
        shared["function"] = pickle_function(function._function, refs)
        shared["refs"] = refs  # what its closure refers to lives as long as the function
    options = function._options
    name = options.name or function._name()
    retry = pickle_function(options.retry_exceptions) if options.retry_exceptions else b""
    strategy, group = placed(function._explicit, options.resources, options.resources, f"{name}()")
    key, request = lease_request(
        options.resources,
        strategy,
        name,
        _env_text(function),
        options.max_retries != 0,
        options.max_calls,
    )
    return (
        _core.function_definition(name, retry, shared["function"], options.max_calls),
        key,
        request,
        _options.returns_code(options),
        options.max_retries,
        options.max_calls,
        group,
    )
