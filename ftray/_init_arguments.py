"""Arguments of Ray's ``init()`` that ftray's has no use for.

Owns: which values of them ask for nothing (taken), which for something that is not there
(`NotSupportedError`), and what is no argument at all (`TypeError`). Looked at only when a program gives one
of them.
"""

from __future__ import annotations

from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OWN = (
    "address, num_cpus, num_gpus, resources, object_store_memory, labels, namespace,"
    " ignore_reinit_error, log_to_driver, runtime_env"
)
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


def check(given: Mapping[str, Any]) -> None:
    """Raise for the first argument that ftray cannot honour.

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
