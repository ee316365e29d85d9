"""``ftray.init``: the choice of an engine, and its start."""

from __future__ import annotations

from ftray import _engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ftray._lifecycle import RayContext


def init(
    address: str | None = None,
    *,
    engine: str | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    object_store_memory: int | None = None,
    labels: dict[str, str] | None = None,
    namespace: str | None = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool = True,
    runtime_env: dict[str, Any] | None = None,
    job_key: str | None = None,
    object_spilling_directory: str | None = None,
    **unsupported: Any,
) -> RayContext:
    """Start ftray in this process, or attach to a running one.

    Parameters
    ----------
    address : str, optional
        "local": start a node of one's own, which ends with this process. "auto": attach to the node of
        ``ftray start --head``, else to the newest session of this user. Otherwise the directory of a session
        (``ctx.address_info["address"]``). None: what ``FTRAY_ADDRESS`` or ``RAY_ADDRESS`` says, else the node
        of ``ftray start --head`` if one runs, else "local".
    engine : str, optional
        What runs tasks and actors: "native", ftray's own processes on this machine, or "ray", a Ray cluster
        (``docs/ray-engine.md``, where the other arguments' meanings on Ray are). By default what
        ``FTRAY_ENGINE`` says, else "native".
    num_cpus, num_gpus : float, optional
        What tasks and actors can ask for; by default the CPUs that this process may use (affinity, cgroup
        quota).
    resources : dict, optional
        Custom resources.
    object_store_memory : int, optional
        Bytes for large objects; 30 % of the memory by default.
    labels : dict, optional
        Names and values, both strings, that `NodeLabelSchedulingStrategy` can choose the node by.
    namespace : str, optional
        Where named actors are found; by default one that no other driver has.
    ignore_reinit_error : bool, default False
        Return instead of raising when ftray runs already.
    log_to_driver : bool, default True
        Print what workers print.
    runtime_env : dict, optional
        The environment of tasks and actors that name none, see ``docs/api.md``; this process itself is not
        changed by it.
    job_key : str, optional
        A name for the work of this driver, unique in its namespace. A driver that is run again under the same
        key makes the same exactly-once calls again: those that were applied give the replies recorded then.
        By default each run's calls are its own. Two living drivers cannot have the same key.
    object_spilling_directory : str, optional
        Where large objects go when shared memory is short: a directory, or a URL that fsspec knows. By
        default ``FTRAY_object_spilling_directory`` in the environment, or a place in the session's directory.

    Returns
    -------
    RayContext

    Raises
    ------
    ImportError
        The engine needs a package that is not installed.
    RuntimeError
        ftray runs already in this process; there is no directory for sessions.
    TypeError
        An unknown argument, or one of the wrong type.
    ValueError
        An argument has a value that is not allowed, or is not allowed when attaching; the same for fields of
        `runtime_env`, and for environment variables.
    ConnectionError
        There is no node at the address, or it refuses this process.
    VersionMismatchError
        The node runs another version.
    NotSupportedError
        One of Ray's arguments, or a field of `runtime_env`, that asks for something the engine does not have;
        a version of Ray that the engine does not know.
    """
    try:
        started: RayContext = _engine.use(engine).init(
            {
                "address": address,
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
                "resources": resources,
                "object_store_memory": object_store_memory,
                "labels": labels,
                "namespace": namespace,
                "ignore_reinit_error": ignore_reinit_error,
                "log_to_driver": log_to_driver,
                "runtime_env": runtime_env,
                "job_key": job_key,
                "object_spilling_directory": object_spilling_directory,
                **unsupported,
            }
        )
    except BaseException:
        _engine.forget()
        raise
    return started
