"""ftray: Python functions as tasks and classes as actors, whose state survives any crash.

``import ftray as ray`` runs programs written against Ray's public API on one machine. See
``docs/quickstart.md``.
"""

from __future__ import annotations

import sys as _sys

if not _sys.platform.startswith("linux"):
    raise ImportError(
        f"ftray runs on Linux only (this is {_sys.platform}): it needs memfd, pidfd and futexes"
    )

from ftray import exceptions
from ftray._api import (
    available_resources,
    cluster_resources,
    get_actor,
    get_gpu_ids,
    get_runtime_context,
    kill,
    nodes,
    remote,
    timeline,
)
from ftray._core import DynamicObjectRefGenerator, ObjectRef, ObjectRefGenerator, cancel, get, put, wait
from ftray._engine import is_initialized, shutdown
from ftray._init import init
from ftray._version import __version__
from ftray.actor import ActorHandle, exit_actor, method

__all__ = [
    "ActorHandle",
    "Checkpointable",
    "DynamicObjectRefGenerator",
    "ObjectRef",
    "ObjectRefGenerator",
    "__version__",
    "available_resources",
    "cancel",
    "checkpoint",
    "cluster_resources",
    "exceptions",
    "exit_actor",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "timeline",
    "wait",
]

_IDS = {"ActorID", "JobID", "NodeID", "PlacementGroupID", "TaskID", "WorkerID"}


def __getattr__(name: str) -> object:
    """Import the toolkits when they are first used, so that ``import ftray`` stays quick."""
    import importlib

    if name == "Checkpointable":
        return importlib.import_module("ftray.checkpoint").Checkpointable
    if name in _IDS:
        return getattr(importlib.import_module("ftray._ids"), name)
    if name == "ObjectID":
        return ObjectRef
    return importlib.import_module("ftray._absent").submodule("ftray", name)
