"""Runtime environments as objects."""

from __future__ import annotations

from ftray import _runtime_env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class RuntimeEnv(dict[str, "Any"]):
    """A runtime environment: a dict that is checked when it is made.

    Parameters
    ----------
    env_vars : dict of str to str, optional
        Environment variables; ``${NAME}`` stands for what the node has.
    working_dir : str, optional
        A directory or a ``.zip`` file of this machine.
    py_modules : list, optional
        Directories, ``.py`` and ``.zip`` files, or modules.
    excludes : list of str, optional
        What to leave out of directories, in the syntax of ``.gitignore``.

    Raises
    ------
    TypeError, ValueError, NotSupportedError
        As ``@ftray.remote(runtime_env=...)`` raises them.
    """

    def __init__(
        self,
        *,
        env_vars: dict[str, str] | None = None,
        working_dir: str | None = None,
        py_modules: Sequence[Any] | None = None,
        excludes: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        given = {
            "env_vars": env_vars,
            "working_dir": working_dir,
            "py_modules": py_modules,
            "excludes": excludes,
            **others,
        }
        super().__init__(
            _runtime_env.check({name: value for name, value in given.items() if value is not None})
        )
