"""``init`` on the engine "ray": what its arguments mean to ``ray.init``, and which it cannot honour.

Owns: the versions of Ray that this engine knows, and the arguments. Invariants: an argument is passed on, or
refused by name. Leaves to others: the cluster.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import ray

from ftray import _init_arguments
from ftray._lifecycle import RayContext
from ftray._ray import client
from ftray.exceptions import NotSupportedError

SUPPORTED_VERSIONS = ("2.60",)
_RAYS_OWN_NAMES = {
    "_enable_object_reconstruction",
    "_memory",
    "_metrics_export_port",
    "_node_ip_address",
    "_node_name",
    "_plasma_directory",
    "_redis_password",
    "_redis_username",
    "_system_config",
    "_temp_dir",
    "_tracing_startup_hook",
}
_NOT_ON_RAY = {
    "local_mode": "call the function itself: RemoteFunction._function(...)",
}
_OF_A_NEW_CLUSTER = (
    "num_cpus",
    "num_gpus",
    "resources",
    "object_store_memory",
    "labels",
    "object_spilling_directory",
)


def check_version(version: str) -> None:
    """Raise NotSupportedError unless this engine knows the version of Ray."""
    if ".".join(version.split(".")[:2]) not in SUPPORTED_VERSIONS:
        known = ", ".join(f"{one}.*" for one in SUPPORTED_VERSIONS)
        raise NotSupportedError(
            f"Ray {version} is installed; ftray's engine 'ray' supports {known}:"
            f" pip install 'ray=={SUPPORTED_VERSIONS[-1]}.*'"
        )


class ClusterContext(RayContext):
    """What ``init(engine="ray")`` returns; also a context manager that shuts down at its end."""

    def __init__(self, found: Any) -> None:
        address = getattr(found, "address_info", None) or {}
        self.address_info = {name: str(value) for name, value in address.items() if value is not None}
        self.dashboard_url = getattr(found, "dashboard_url", "") or ""

    def __exit__(self, *exc_info: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Let go of the cluster."""
        from ftray import _engine

        _engine.shutdown()


def arguments_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``ray.init`` for those of ``ftray.init``.

    Raises
    ------
    TypeError, ValueError
        One that does not exist, or with a value that is not allowed.
    NotSupportedError
        One that Ray cannot honour.
    """
    rays = set(inspect.signature(ray.init).parameters) | _RAYS_OWN_NAMES
    own = {name: given[name] for name in _OWN if given.get(name) is not None}
    others = {name: value for name, value in given.items() if name not in _OWN}
    unknown = [name for name in others if name not in rays]
    if unknown:
        raise TypeError(
            f"init() does not take {', '.join(map(repr, unknown))}; it takes {_init_arguments.OWN}"
        )
    for name, why in _NOT_ON_RAY.items():
        if given.get(name):
            raise NotSupportedError(
                f"init({name}={given[name]!r:.100}) is not supported on the engine 'ray': {why}."
            )
    return {**_checked(own), **others}


_OWN = (
    "address",
    "num_cpus",
    "num_gpus",
    "resources",
    "object_store_memory",
    "labels",
    "namespace",
    "ignore_reinit_error",
    "log_to_driver",
    "runtime_env",
    "job_key",
    "object_spilling_directory",
)


def _checked(own: dict[str, Any]) -> dict[str, Any]:
    address = own.pop("address", None)
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address must be a string or None, not {address!r}")
    client.check_address(os.environ.get("RAY_ADDRESS") if address is None else address)
    env = own.pop("runtime_env", None)
    checked = _init_arguments.checked(**own)
    for name in ("num_cpus", "num_gpus"):
        if checked.get(name) is not None:
            if not float(checked[name]).is_integer():
                raise NotSupportedError(
                    f"init({name}={own[name]!r}) is not supported on the engine 'ray': it takes whole ones."
                )
            checked[name] = int(checked[name])
    if env is not None:
        from ftray import _runtime_env

        checked["runtime_env"] = _runtime_env.check(env)
    wrong = [name for name in _OF_A_NEW_CLUSTER if checked.get(name) is not None]
    if address not in (None, "local") and wrong:
        raise ValueError(
            f"{', '.join(wrong)} cannot be given when attaching to a running cluster (address={address!r});"
            ' address="local" starts one of this process\'s own'
        )
    if "object_spilling_directory" in checked:
        checked["_object_spilling_directory"] = checked.pop("object_spilling_directory")
    if address is not None:
        checked["address"] = address
    return checked
