"""What ``init()`` takes.

Owns: the types and ranges of its own arguments; of those of Ray's that ftray has no use for, which values
ask for nothing (taken) and which for something that is not there (`NotSupportedError`); what is no argument
at all (`TypeError`). Leaves to others: `address` (``_lifecycle``), `runtime_env` (``_runtime_env``), what
this machine can offer (``_node.launch``).
"""

from __future__ import annotations

from ftray import _options
from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

OWN = (
    "address, num_cpus, num_gpus, resources, object_store_memory, labels, namespace,"
    " ignore_reinit_error, log_to_driver, runtime_env, object_spilling_directory, job_key, engine"
)
LEAST_STORE_BYTES = 1 << 20
_NO_DASHBOARD = "there is no dashboard. Leave it out, or give include_dashboard=False"
_ONE_MACHINE = "it is for clusters, and ftray runs on one machine. Leave it out"
_INTERNAL = "it is internal to Ray. Leave it out"

# name: (values that ask for nothing, why the others cannot be had and what to do)
OF_RAY: dict[str, tuple[tuple[Any, ...], str]] = {
    "_memory": ((None,), "give the tasks memory= instead; the machine's memory is found out"),
    "_metrics_export_port": ((None,), "metrics are not exported. Leave it out"),
    "_node_ip_address": ((None, "127.0.0.1"), _ONE_MACHINE),
    "_plasma_directory": ((None,), "large objects are in anonymous memory, not in files. Leave it out"),
    "_redis_password": ((None,), _ONE_MACHINE),
    "_redis_username": ((None,), _ONE_MACHINE),
    "_system_config": ((None, {}), _INTERNAL),
    "_temp_dir": ((None,), "set the environment variable FTRAY_TMPDIR instead"),
    "_tracing_startup_hook": ((None,), "there are no OpenTelemetry hooks. Leave it out"),
    "dashboard_host": ((None,), _NO_DASHBOARD),
    "dashboard_port": ((None,), _NO_DASHBOARD),
    "enable_resource_isolation": ((None, False), "ftray makes no cgroups. Leave it out"),
    "include_dashboard": ((None, False), _NO_DASHBOARD),
    "job_config": ((None,), "give namespace= and runtime_env= to init() itself"),
    "local_mode": ((None, False), "call the function itself: RemoteFunction._function(...)"),
    "logging_config": ((None,), "configure logging inside tasks and actors"),
}
# ftray logs nothing through `logging`, so that whatever these say of it holds.
OF_LOGGING = ("configure_logging", "logging_format", "logging_level")


def checked(**given: Any) -> dict[str, Any]:
    """Return ftray's own arguments in one form; None is "not given".

    Raises
    ------
    TypeError, ValueError
        Naming the first argument that is wrong, what was given and what is allowed.
    """
    return {name: None if value is None else _CHECKS[name](name, value) for name, value in given.items()}


def _gpus(name: str, value: Any) -> float:
    number = _options.amount(name, value)
    if not number.is_integer():
        raise ValueError(
            _options.wrong(name, value, "it must be whole (tasks and actors can ask for a part of one)")
        )
    return number


def _resources(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(isinstance(key, str) and key for key in value):
        raise TypeError(
            _options.wrong(name, value, "it must be a dict of resource name to amount, e.g. {'disk': 2}")
        )
    return {key: _options.amount(f"{name}[{key!r}]", amount) for key, amount in value.items()}


def _labels(name: str, value: Any) -> dict[str, str]:
    words = [word for pair in value.items() for word in pair] if isinstance(value, dict) else [None]
    if not all(isinstance(word, str) for word in words):
        raise TypeError(_options.wrong(name, value, "it must be a dict of strings, e.g. {'zone': 'a'}"))
    return dict(value)


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "num_cpus": _options.amount,
    "num_gpus": _gpus,
    "resources": _resources,
    "object_store_memory": _options.integer(LEAST_STORE_BYTES, " (bytes)", highest=2**63 - 1),
    "object_spilling_directory": _options.text,
    "labels": _labels,
    "namespace": _options.text,
    "job_key": _options.text,
    "ignore_reinit_error": _options.boolean,
    "log_to_driver": _options.boolean,
}


def check(given: Mapping[str, Any]) -> None:
    """Raise for the first argument, not one of ftray's own, that cannot be honoured.

    Raises
    ------
    TypeError
        No argument of ``init()``, neither Ray's nor ftray's.
    NotSupportedError
        An argument of Ray's, with a value that asks for something.
    """
    unknown = [name for name in given if name not in OF_RAY and name not in OF_LOGGING]
    if unknown:
        raise TypeError(f"init() does not take {', '.join(map(repr, unknown))}; it takes {OWN}")
    for name, value in given.items():
        if name in OF_LOGGING:
            continue
        harmless, why = OF_RAY[name]
        if not any(type(value) is type(other) and value == other for other in harmless):
            raise NotSupportedError(f"init({name}={value!r:.100}) is not supported by ftray: {why}.")
