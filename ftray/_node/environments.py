"""Runtime environments on the node: from the text that names one to a worker that runs in it.

Owns: where snapshots are, which variables need a fresh interpreter, and applying an environment in a worker.
Invariants: what can be found wrong before a process is made is (``EnvironmentSetupError``); a worker never
runs user code in half an environment: one that cannot apply it ends before it registers.
Leaves to others: the text itself (``ftray/_runtime_env``), pooling (``pool``), making processes (``zygote``).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_SNAPSHOT = "snapshot://"
_DIRECTORY = "envs"
# Read by the interpreter, the loader, the C library or a library's initialiser: they count only for a process
# that starts with them. Prefixes.
_AT_START = (
    "CUDA_",
    "GLIBC_",
    "GOMP_",
    "GOTO_",
    "KMP_",
    "LANG",
    "LC_",
    "LD_",
    "MALLOC_",
    "MKL_",
    "NCCL_",
    "NUMEXPR_",
    "NVIDIA_",
    "OMP_",
    "OPENBLAS_",
    "PYTHON",
    "TCMALLOC_",
    "VECLIB_",
)
_REFERENCE = re.compile(r"\$\{(\w+)\}")


class EnvironmentSetupError(Exception):
    """A runtime environment that this node cannot provide."""


class Plan(Record):
    """What a worker does to be in an environment.

    Attributes
    ----------
    text
        The environment itself.
    variables
        As the user wrote them.
    directory
        Where the worker runs, "" for the node's own.
    paths
        What goes in front of ``sys.path``.
    fresh
        The interpreter has to start with the variables.
    hash_seed
        The interpreter has to start with this seed, "" for that of the session.
    """

    text: str
    variables: dict[str, str]
    directory: str
    paths: list[str]
    fresh: bool
    hash_seed: str = ""


_HASH_SEED = "ftray.hash_seed"  # no field of anybody's environment: added by the node alone


def with_hash_seed(text: str, seed: str) -> str:
    """Return the text of the same environment in an interpreter with another hash seed."""
    return json.dumps({**json.loads(text or "{}"), _HASH_SEED: seed})


def plan(text: str, session_dir: str) -> Plan:
    """Read an environment's text, and look whether everything is there.

    Raises
    ------
    EnvironmentSetupError
        It is malformed, or a snapshot is missing.
    """
    seed = ""
    try:
        env = json.loads(text)
        if _HASH_SEED in env:
            seed = env.pop(_HASH_SEED)
            text = json.dumps(env) if env else ""
        variables: dict[str, str] = dict(env.get("env_vars", {}))
        working_dir = env.get("working_dir", "")
        modules = list(env.get("py_modules", []))
        if not all(isinstance(word, str) for pair in variables.items() for word in pair):
            raise ValueError("variables are strings")
    except (ValueError, TypeError, AttributeError) as error:
        raise EnvironmentSetupError(f"the runtime environment {text!r:.300} is malformed: {error}") from None
    directory = _directory(working_dir, session_dir) if working_dir else ""
    paths = [directory] if directory else []
    paths += [_directory(module, session_dir) for module in modules]
    fresh = bool(seed) or any(name.startswith(_AT_START) for name in variables)
    return Plan(text, variables, directory, paths, fresh, seed)


def _directory(uri: object, session_dir: str) -> str:
    if not isinstance(uri, str) or not uri.startswith(_SNAPSHOT):
        raise EnvironmentSetupError(f"the runtime environment names {uri!r}, which is no snapshot")
    name = uri[len(_SNAPSHOT) :]
    path = os.path.join(session_dir, _DIRECTORY, name)
    if not re.fullmatch(r"[0-9a-f]{40}", name) or not os.path.isdir(path):
        raise EnvironmentSetupError(
            f"the snapshot {uri} of the runtime environment is not on this node (it belongs to another"
            f" session, or somebody removed it from {session_dir})"
        )
    return path


def expanded(variables: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """Replace each ``${NAME}`` by what ``base`` has, "" for what it has not."""
    return {
        name: _REFERENCE.sub(lambda match: base.get(match[1], ""), text) for name, text in variables.items()
    }


class _Entered:
    """What a worker has of its environment."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.directory = ""


_entered = _Entered()


def paths_first(paths: Sequence[str]) -> list[str]:
    """Return a search path in which those of this worker's environment come first."""
    return [*_entered.paths, *(path for path in paths if path not in _entered.paths)]


def has_directory() -> bool:
    """Whether this worker runs in the directory of its environment."""
    return bool(_entered.directory)


def enter(plan_: Mapping[str, Any]) -> None:
    """Put this process into an environment whose variables are set."""
    paths = list(plan_["paths"])
    if plan_["fresh"] and not sys.flags.ignore_environment:
        paths += [
            os.path.abspath(path)
            for path in plan_["variables"].get("PYTHONPATH", "").split(os.pathsep)
            if path
        ]
    sys.path[:0] = _entered.paths = paths
    _entered.directory = plan_["directory"]
    if "TZ" in plan_["variables"]:
        time.tzset()
    if plan_["directory"]:
        os.chdir(plan_["directory"])
