"""``import ray`` gives ftray: runs programs written for Ray without changing them.

``python -m ftray.compat script.py args...`` and ``python -m ftray.compat -m module args...`` run a program,
``pytest -p ftray.compat`` a test suite, ``ftray.compat.install()`` does it for the calling process.

Owns: the alias, and how it reaches workers. Invariants: ``ray.x`` and ``ftray.x`` are one module object,
under the name ``ftray.x`` (so that ``isinstance`` works across both, and what is pickled names ftray);
nothing is aliased while the real Ray is in the process, or wanted; a module that ftray lacks is not found,
and importing it says why. Every function and actor class that an aliased process sends brings the alias
along, and a worker has it before it unpickles them, in whichever session it is. Leaves to others: running a
program (`_run`), what is missing (`ftray._absent`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec

import ftray
from ftray import _absent
from ftray.exceptions import AbsentModuleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

__all__ = ["install", "is_installed"]

_OTHER, _OURS = "ray", "ftray"


class _Loader:
    """Puts the module of ftray where the import system expects the one of Ray."""

    def __init__(self, ours: str) -> None:
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system make an empty module: it is thrown away (its attributes are set by name)."""

    def exec_module(self, module: ModuleType) -> None:
        """A module may replace itself while it is loaded; what is there afterwards is imported."""
        name = module.__name__
        sys.modules[name] = importlib.import_module(self._ours)
        # What the package itself has loaded is found from now on without this loader, after which the import
        # system would set the package's attribute: that may be a function of the same name (placement_group).
        for loaded in [other for other in sys.modules if other.startswith(f"{self._ours}.")]:
            if not _absent.is_private(loaded):
                sys.modules.setdefault(_OTHER + loaded.removeprefix(_OURS), sys.modules[loaded])


class _Finder:
    """The one entry of ``sys.meta_path``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _dot, rest = fullname.partition(".")
        if root == _OTHER:
            ours = f"{_OURS}.{rest}" if rest else _OURS
            if not _absent.is_private(rest) and _exists(ours):
                return ModuleSpec(fullname, _Loader(ours), is_package=True)  # type: ignore[arg-type]
        elif root != _OURS or _absent.text_of(*f"{_OTHER}.{rest}".rpartition(".")[::2]) is None:
            return None
        # `from ray import tune` looks for ftray.tune, since that is the module's name.
        if _only_asks():
            return None
        wanted = f"{_OTHER}.{rest}"
        raise AbsentModuleError(_absent.module_text(wanted), name=wanted)


def _exists(ours: str) -> bool:
    if ours in sys.modules:
        return True
    try:
        return importlib.util.find_spec(ours) is not None
    except ModuleNotFoundError:
        return False  # its parent does not exist, or is no package


def _only_asks() -> bool:
    """Is it ``importlib.util.find_spec``, which wants to hear None for what cannot be imported?

    Libraries look there before they enable what they have for Ray. Frames: this, `find_spec`, the walk over
    ``sys.meta_path``, and who wanted it.
    """
    return sys._getframe(3).f_globals.get("__name__") == "importlib.util"


_finder = _Finder()


def is_installed() -> bool:
    """Whether ``import ray`` gives ftray in this process."""
    return _finder in sys.meta_path


def install() -> None:
    """Have ``import ray`` give ftray, in this process and in all workers that run what it sends.

    Does nothing the second time. There is no way back: modules that imported it keep it.

    Raises
    ------
    RuntimeError
        The real Ray is in this process, or ``FTRAY_ENGINE`` asks for it.
    """
    if is_installed():
        return
    engine = os.environ.get("FTRAY_ENGINE", "")
    if engine == _OTHER:
        raise RuntimeError(
            f"ftray.compat makes `import ray` mean ftray, but FTRAY_ENGINE={engine} asks for the real Ray:"
            " unset it, or run the program without ftray.compat"
        )
    loaded = sys.modules.get(_OTHER)
    if loaded is not None and loaded is not ftray:
        where = getattr(loaded, "__file__", None) or "unknown place"
        raise RuntimeError(
            f"ftray.compat makes `import ray` mean ftray, but the real Ray is in this process already"
            f" ({where}): import ftray.compat before anything that imports ray, or run the program without it"
        )
    sys.meta_path.insert(0, _finder)


def pytest_addoption(parser: object) -> None:
    """Called as soon as pytest has registered the plugin: before it looks at any conftest.py."""
    install()


# --- the alias travels with functions and classes -----------------------------------------------------------


class _Alias:
    """Unpickled, installs the alias."""

    def __reduce__(self) -> tuple[Any, ...]:
        return install, ()


class Aliased:
    """What an aliased process pickles in place of a function or class; comes out as that itself.

    The parts of a tuple are unpickled in their order, so the alias is there before the function's modules are
    imported.
    """

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return _second, (_Alias(), self.function)


def _second(first: object, second: Any) -> Any:
    return second
