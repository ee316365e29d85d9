"""Runtime environments: what users may ask for, how a child combines with its parent, the canonical form.

Owns: the fields that exist, their checks, merging, and the text that names an environment on its way to
``ftrayd`` (JSON with sorted keys: equal environments have equal texts, and share workers).  Invariants: the
text holds no path of the driver: directories are in it as snapshots.  Leaves to others: making snapshots
(``_env_snapshots``), starting workers (``_node/environments``).

Loaded only where an environment is used.
"""

from __future__ import annotations

import json
import os
from types import ModuleType

from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FIELDS = ("env_vars", "excludes", "py_modules", "working_dir")
# What Ray has beyond that, and what would be needed for it.
_UNSUPPORTED = {
    "pip": "installing packages",
    "uv": "installing packages",
    "conda": "conda environments",
    "container": "containers",
    "image_uri": "containers",
    "java_jars": "Java",
    "py_executable": "another interpreter",
    "nsight": "profilers",
    "rocprof_sys": "profilers",
    "mpi": "MPI",
    "worker_process_setup_hook": "set-up hooks",
    "config": "settings of the set-up",
}
SNAPSHOT = "snapshot://"


def check(value: Any) -> dict[str, Any]:
    """Check what a user gave as ``runtime_env``; directories become absolute, and are looked at later.

    Returns
    -------
    dict
        Only fields that are set.

    Raises
    ------
    TypeError, ValueError
        Not a dict, a field that does not exist, or a value that is not allowed.
    NotSupportedError
        A field of Ray's, or a place, that this version cannot serve.
    """
    if not isinstance(value, dict):
        raise TypeError(
            f"runtime_env={value!r:.200} ({type(value).__name__}) is not valid: it must be a dict,"
            " e.g. {'env_vars': {'A': '1'}}"
        )
    for field in value:
        _check_field(field)
    given = {field: item for field, item in value.items() if item is not None}
    checks = {
        "env_vars": _env_vars,
        "working_dir": lambda item: _place("working_dir", item),
        "py_modules": _py_modules,
        "excludes": _excludes,
    }
    checked = {field: checks[field](item) for field, item in given.items()}
    if "excludes" in checked and not {"working_dir", "py_modules"} & checked.keys():
        raise ValueError(
            "runtime_env['excludes'] is of no use without 'working_dir' or 'py_modules' beside it"
        )
    return checked


def _check_field(field: object) -> None:
    if field in FIELDS:
        return
    if field in _UNSUPPORTED:
        raise NotSupportedError(
            f"runtime_env[{field!r}] is not supported by this version of ftray: {_UNSUPPORTED[str(field)]}. "
            f"Leave it out; supported are {', '.join(FIELDS)}."
        )
    import difflib

    near = difflib.get_close_matches(str(field), [*FIELDS, *_UNSUPPORTED], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{field!r} is no field of runtime_env{hint} Allowed: {', '.join(FIELDS)}.")


def _env_vars(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(
            f"runtime_env['env_vars']={value!r:.200} is not valid: it must be a dict of strings to strings"
        )
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(
                f"runtime_env['env_vars'][{name!r}]={text!r:.200} is not valid:"
                " names and values must be strings"
            )
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(
                f"runtime_env['env_vars'][{name!r}] is not valid: a name is not empty and has no '=',"
                " and there is no NUL in names and values"
            )
    return dict(value)


def _place(field: str, value: Any) -> str:
    """A directory, a ``.zip`` or a snapshot: absolute, so that it means the same in every process."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise TypeError(f"runtime_env[{field!r}]={value!r:.200} is not valid: it must be a path")
    if value.startswith(SNAPSHOT):
        return value
    if "://" in value:
        raise NotSupportedError(
            f"runtime_env[{field!r}]={value!r}: remote URIs are not supported by this version of ftray;"
            " give a local path"
        )
    if not value:
        raise ValueError(f"runtime_env[{field!r}] is not valid: the path is empty")
    return os.path.abspath(os.path.expanduser(value))


def _py_modules(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"runtime_env['py_modules']={value!r:.200} is not valid: it must be a list of paths or modules"
        )
    return [_place("py_modules", _path_of(item) if isinstance(item, ModuleType) else item) for item in value]


def _path_of(module: ModuleType) -> str:
    """The directory of a package, the file of a module."""
    places = list(getattr(module, "__path__", ()))
    if len(places) == 1:
        return str(places[0])
    file = getattr(module, "__file__", None)
    if places or not file or not file.endswith(".py"):
        raise ValueError(
            f"runtime_env['py_modules']: the module {module.__name__!r} is no single directory or .py file;"
            " give paths instead"
        )
    return str(file)


def _excludes(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise TypeError(
            f"runtime_env['excludes']={value!r:.200} is not valid: it must be a list of patterns,"
            " as in a .gitignore"
        )
    return list(value)


def merged(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """Combine environments as Ray documents it: ``env_vars`` one by one, other fields as a whole."""
    both = {**parent, **child}
    variables = {**parent.get("env_vars", {}), **child.get("env_vars", {})}
    if variables:
        both["env_vars"] = variables
    return both


def text_of(given: Mapping[str, Any], parent_text: str, session_dir: str) -> str:
    """Return the text of the environment that ``given`` (checked) is for a child of ``parent_text``.

    Raises
    ------
    ValueError, OSError
        A directory or file that does not exist, cannot be read, or is too large.
    """
    parent = json.loads(parent_text) if parent_text else {}
    resolved = dict(given)
    excludes = resolved.pop("excludes", [])
    if "working_dir" in resolved or "py_modules" in resolved:
        from ftray import _env_snapshots

        if "working_dir" in resolved:
            resolved["working_dir"] = _env_snapshots.of_working_dir(
                session_dir, resolved["working_dir"], excludes
            )
        if "py_modules" in resolved:
            resolved["py_modules"] = [
                _env_snapshots.of_module(session_dir, path, excludes) for path in resolved["py_modules"]
            ]
    both = {field: item for field, item in merged(parent, resolved).items() if item}
    return json.dumps(both, sort_keys=True) if both else ""


def load(text: str) -> dict[str, Any]:
    """Return the environment that a text names."""
    found: dict[str, Any] = json.loads(text) if text else {}
    return found
