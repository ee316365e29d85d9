"""Running a program as ``python`` itself would, with ``import ray`` giving ftray.

Owns: ``__main__``, ``sys.argv`` and ``sys.path[0]`` of the program, and what its tracebacks show.
Invariants: an exception, ``SystemExit`` and ``KeyboardInterrupt`` included, leaves through the interpreter's
own top level, so that exit status, atexit functions and signals are as usual.
"""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType, TracebackType

from ftray import compat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]

USAGE = """usage: python -m ftray.compat script.py [args...]
       python -m ftray.compat -m module [args...]
Runs a program written for Ray: `import ray` gives ftray."""
_USAGE_STATUS = 2


def main() -> None:
    """Run what the command line names."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "-m") or arguments == ["-m"]:
        _give_up(USAGE)
    try:
        compat.install()
    except RuntimeError as error:
        _give_up(f"{sys.executable}: {error}")
    try:
        if arguments[0] == "-m":
            _run_module(arguments[1], arguments[2:])
        else:
            _run_script(arguments[0], arguments[1:])
    except BaseException:
        sys.excepthook = _without_us(sys.excepthook)
        raise


def _give_up(text: str, status: int = _USAGE_STATUS) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(status)


def _run_script(path: str, arguments: list[str]) -> None:
    file = os.path.abspath(path)
    try:
        with io.open_code(file) as stream:
            source = stream.read()
    except OSError as error:
        _give_up(f"{sys.executable}: can't open file {file!r}: [Errno {error.errno}] {error.strerror}")
    sys.argv[:] = [path, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(file))
    loader = SourceFileLoader("__main__", file)
    code = compile(source, file, "exec", dont_inherit=True)
    _run_as_main(code, {"__file__": file, "__loader__": loader, "__package__": None, "__spec__": None})


def _run_module(name: str, arguments: list[str]) -> None:
    sys.argv[:] = ["-m", *arguments]  # what a package sees while it is imported to find the module
    spec, code = _module_code(name)
    sys.argv[0] = str(spec.origin)
    _run_as_main(
        code,
        {
            "__file__": spec.origin,
            "__cached__": spec.cached,
            "__loader__": spec.loader,
            "__package__": spec.parent,
            "__spec__": spec,
        },
    )


def _module_code(name: str) -> tuple[ModuleSpec, CodeType]:
    """Find a module, or the ``__main__`` of a package."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError) as error:
        _give_up(f"{sys.executable}: Error while finding module specification for {name!r} ({error})", 1)
    if spec is None:
        _give_up(f"{sys.executable}: No module named {name}", 1)
    code = getattr(spec.loader, "get_code", lambda name: None)(spec.name)
    if code is None:
        _give_up(f"{sys.executable}: No code object available for {name}", 1)
    return spec, code


def _run_as_main(code: CodeType, names: dict[str, Any]) -> None:
    module = ModuleType("__main__")
    module.__dict__.update({"__builtins__": builtins, "__cached__": None, **names})
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _without_us(hook: Hook) -> Hook:
    """Wrap an excepthook: the frames that lead to the program's first are none of its business."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
        ours = trace
        while ours is not None and ours.tb_frame.f_globals is not globals():
            ours = ours.tb_next  # runpy's
        while ours is not None and ours.tb_frame.f_globals is globals():
            ours = ours.tb_next
        error.__traceback__ = ours
        return hook(kind, error, ours)

    return show
