"""Public names of Ray that ftray does not have, and what to do instead.

Owns: the lists, and the wording. Invariants: a name in a list does not exist here, so that ``hasattr`` tells
the truth; asking for it says what it is in Ray and what to do, instead of a bare "no attribute".
Leaves to others: raising at an import (`ftray.compat`). ``docs/compatibility.md`` has the whole table, and a
test holds both to what is there: a feature that lands deletes its line here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

_LIBRARY = (
    "one of Ray's libraries; ftray has tasks, actors and objects only. Run programs that need it on Ray"
)
_CLUSTER = "for clusters, and ftray runs on one machine. Leave it out"
_OTHER_LANGUAGE = "for other languages, and ftray runs Python only. Call the code through a Python binding"
_GRAPHS = "for lazy or compiled task graphs. Call .remote() and pass the refs on"
_IDS = "an id that ftray does not hand out. Use the hexadecimal ids of ftray.get_runtime_context()"
_DEBUGGER = "a debugger for remote code. Call the function itself: RemoteFunction._function(...)"
_INTERNAL = "internal to Ray. Use the public API"
_GROUPS = "for scheduling that ftray does not have. Use num_cpus= and resources="

# By module of Ray: name -> what it is. and what to do instead.
ABSENT: dict[str, dict[str, str]] = {
    "ray": {
        "ActorClassID": _IDS,
        "ClientBuilder": _CLUSTER,
        "FunctionID": _IDS,
        "Language": _OTHER_LANGUAGE,
        "LoggingConfig": "Ray's logging set-up. Configure logging inside tasks and actors",
        "SCRIPT_MODE": _INTERNAL,
        "UniqueID": _IDS,
        "WORKER_MODE": _INTERNAL,
        "air": _LIBRARY,
        "autoscaler": _CLUSTER,
        "client": "Ray Client. Run the driver on the machine of the session, with ftray.init(address=...)",
        "client_builder": _CLUSTER,
        "cpp_function": _OTHER_LANGUAGE,
        "cross_language": _OTHER_LANGUAGE,
        "dag": _GRAPHS,
        "data": _LIBRARY,
        "cluster_utils": _CLUSTER,
        "internal": _INTERNAL,
        "java_actor_class": _OTHER_LANGUAGE,
        "java_function": _OTHER_LANGUAGE,
        "job_submission": _CLUSTER,
        "llm": _LIBRARY,
        "rllib": _LIBRARY,
        "serve": _LIBRARY,
        "train": _LIBRARY,
        "tune": _LIBRARY,
        "widgets": "Ray's notebook widgets. ftray.nodes() and ftray.cluster_resources() have the facts",
        "workflow": _LIBRARY,
        "worker": _INTERNAL,
    },
    "ray.util": {
        "accelerators": _GROUPS,
        "client": _CLUSTER,
        "collective": "collective communication. Use the library underneath (NCCL, Gloo, MPI) in actors",
        "connect": _CLUSTER,
        "dask": _LIBRARY,
        "debugpy": _DEBUGGER,
        "disable_log_once_globally": _INTERNAL,
        "disconnect": _CLUSTER,
        "enable_periodic_logging": _INTERNAL,
        "get_node_instance_id": _CLUSTER,
        "iter": "Ray's parallel iterators (deprecated there). Use ftray.util.ActorPool",
        "log_once": "a helper of Ray's own logging. Use a set of what was logged",
        "metrics": "for exporting metrics. Use a metrics library in the actor",
        "pdb": _DEBUGGER,
        "ray_debugpy": _DEBUGGER,
        "rpdb": _DEBUGGER,
        "sgd": _LIBRARY,
        "spark": _CLUSTER,
        "tracing": "OpenTelemetry hooks. Open spans inside tasks and methods",
    },
    "ray.exceptions": {
        "ActorAlreadyExistsError": "raised for a name that is taken. ftray raises ValueError",
        "ActorHandleNotFoundError": "raised for a handle of another cluster. ftray raises RaySystemError",
        "AuthenticationError": _CLUSTER,
        "CrossLanguageError": _OTHER_LANGUAGE,
        "ObjectRefStreamEndOfStreamError": _INTERNAL,
        "OufOfBandObjectRefSerializationException": "for refs pickled elsewhere. ftray raises TypeError",
        "PlasmaObjectNotAvailable": _INTERNAL,
        "RayCgraphCapacityExceeded": _GRAPHS,
        "RayChannelError": _GRAPHS,
        "RayChannelTimeoutError": _GRAPHS,
        "RayDirectTransportError": "for moving tensors between GPUs. Use the library underneath (NCCL)",
        "RpcError": "for messages between machines, and ftray runs on one. Catch RaySystemError",
        "UserCodeException": _INTERNAL,
    },
}


def is_private(path: str) -> bool:
    """Whether a dotted path goes through a name that begins with an underscore."""
    return any(part.startswith("_") for part in path.split("."))


def text_of(module: str, name: str) -> str | None:
    """Return why ``module.name`` of Ray is not here, None when nothing is known of it.

    Parameters
    ----------
    module, name
        As Ray calls them, for example ``ray.util`` and ``metrics``.
    """
    known = ABSENT.get(module, {}).get(name)
    if known is None:
        return None
    return f"{module}.{name} is not part of ftray: it is {known}. docs/compatibility.md has what there is."


def module_text(fullname: str) -> str:
    """Return why a module of Ray (``ray.tune.schedulers``) cannot be imported."""
    parts = fullname.split(".")
    for end in range(2, len(parts) + 1):
        text = text_of(".".join(parts[: end - 1]), parts[end - 1])
        if text is not None:
            return text if end == len(parts) else f"{fullname} cannot be imported: {text}"
    what = "internal to Ray" if is_private(fullname) else "not one of the modules of Ray that ftray has"
    return f"{fullname} is not part of ftray: it is {what}. docs/compatibility.md has what there is."


def submodule(package: str, name: str) -> ModuleType:
    """Do the rest of a package's ``__getattr__``: import a module at its first use, or raise.

    Raises
    ------
    AbsentNameError
        The name is one of Ray's.
    AttributeError
        Nobody knows the name.
    """
    import importlib
    from importlib.machinery import PathFinder

    where = importlib.import_module(package).__path__
    if not is_private(name) and PathFinder.find_spec(f"{package}.{name}", where) is not None:
        return importlib.import_module(f"{package}.{name}")
    raise absent(package, name)


def absent(module: str, name: str) -> AttributeError:
    """Make the error for a name that a module of ftray does not have."""
    text = text_of(module.replace("ftray", "ray", 1), name)
    if text is None:
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    from ftray.exceptions import AbsentNameError

    return AbsentNameError(text)
