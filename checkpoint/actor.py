"""`Checkpointable`: the base class that users see, and `readonly`.

Owns where the options of a class are kept: what a class statement gave lies in its own ``__dict__``, and
the options of a class are those of its bases overlaid by its own. A class statement without keywords gives
nothing and so inherits everything: cloudpickle re-creates classes without their keywords, and then sets the
attribute.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .errors import CheckpointOptionError, CheckpointVersionError, NoSessionError
from .options import DEFAULTS, Options, plain, validate

if TYPE_CHECKING:
    from .session import ActorSession

F = TypeVar("F", bound=Callable[..., Any])
_READONLY = "__checkpoint_readonly__"
_OPTIONS = "__checkpoint_options__"


class _Unset:
    def __repr__(self) -> str:
        return "inherited"


_UNSET: Any = _Unset()

sessions: dict[int, ActorSession] = {}
"""The open session of each actor object of this process, by ``id``; the session keeps the object alive."""


def readonly(method: F) -> F:
    """Mark a method that changes nothing: it does not count for ``every=``.

    Examples
    --------
    >>> class Counter(Checkpointable):
    ...     @readonly
    ...     def value(self): return self.n
    """
    target = getattr(method, "__func__", method)
    if not callable(target):
        raise CheckpointOptionError(f"@readonly marks methods, not {method!r}")
    setattr(target, _READONLY, True)
    return method


class Checkpointable:
    """An actor whose state survives crashes. All keywords of the class statement are optional and inherited.

    Parameters
    ----------
    store : str or path, optional
        ``file:///path`` or a plain path. Default: ``$FTRAY_CHECKPOINT_STORE``, else
        ``$XDG_STATE_HOME/ftray/checkpoints`` (``~/.local/state/ftray/checkpoints``).
    every : int or None
        Save after this many calls of methods that are not `readonly`. Default 100, or None when only
        `interval_s` is given. A crash loses the effects of at most this many calls, and of those that ran
        while the last save was still being written.
    interval_s : float or None
        Save when this many seconds have passed and calls have changed the state since.
    keep : int
        Newest snapshots to keep, at least 2: the one before is what a damaged file is replaced by.
    checkpoint_key : str or None
        What the snapshots are found under. Default: ``namespace/name`` of a named actor; an unnamed actor's
        snapshots serve its own restarts and go with it.
    restore : {"auto", "never", "require"}
        Restore if there is a snapshot; start from ``__init__`` in any case; refuse to start without one.
    checkpoint_version : int
        Version of the state's meaning. A snapshot of another version goes through `migrate_checkpoint`.
    durability : {"process", "power"} or None
        What a snapshot must survive; a store that gives less is refused. Every snapshot is fsynced in any
        case.
    formerly : str or tuple of str
        Earlier names of this class whose snapshots it may restore.

    Notes
    -----
    A restart runs ``__init__`` with its original arguments, then `load_checkpoint`, then the first call.
    The state is captured between methods only, so that no snapshot ever shows half of one.
    """

    __checkpoint_options__: ClassVar[dict[str, object]] = {}

    def __init_subclass__(
        cls,
        *,
        store: str | os.PathLike[str] | None = _UNSET,
        every: int | None = _UNSET,
        interval_s: float | None = _UNSET,
        keep: int = _UNSET,
        checkpoint_key: str | None = _UNSET,
        restore: str = _UNSET,
        checkpoint_version: int = _UNSET,
        durability: str | None = _UNSET,
        formerly: str | tuple[str, ...] = _UNSET,
        exactly_once: bool = _UNSET,
        **other: object,
    ) -> None:
        arguments = dict(locals())
        given = {name: arguments[name] for name in DEFAULTS if arguments[name] is not _UNSET}
        if other and not hasattr(super().__init_subclass__, "__func__"):  # only object is left to take them
            raise CheckpointOptionError(
                f"{cls.__name__}: {', '.join(sorted(other))} is not an option of Checkpointable; "
                f"allowed: {', '.join(sorted(DEFAULTS))}"
            )
        super().__init_subclass__(**other)
        if given:
            cls.__checkpoint_options__ = plain(given)
        options_of(cls)

    def checkpoint(self) -> str:
        """Save soon, and return the id that the snapshot will have.

        Inside a method of the actor this schedules the save for the end of the method, since the state may
        be half changed now; it does not wait. Called as an actor method, ``handle.checkpoint.remote()``, it
        captures at once, and its reply means that the snapshot is durable.

        Returns
        -------
        str
            Snapshot id, ``epoch-sequence``. No other snapshot ever has it, also if this save fails.

        Raises
        ------
        NoSessionError
            The object is not run by an engine, or is still in ``__init__``.
        """
        session = sessions.get(id(self))
        if session is None:
            raise NoSessionError(
                f"this {type(self).__name__} is not a running actor (in __init__ it is not one yet): "
                "checkpoint() works in methods that an engine runs. "
                "To read snapshots use ftray.checkpoint.open(store)"
            )
        return session.request()

    def save_checkpoint(self) -> object:
        """Return the state to save. Default: ``__getstate__()`` if defined, else a new dict of all
        attributes.

        Runs between two methods. What it returns is pickled before the next one starts.
        """
        from .state import default_save

        return default_save(self)

    def load_checkpoint(self, state: Any) -> None:
        """Take over a saved state, after ``__init__``. Default: ``__setstate__``, else set the attributes."""
        from .state import default_load

        default_load(self, state)

    def migrate_checkpoint(self, state: Any, from_version: int) -> Any:
        """Return `state`, saved by ``checkpoint_version=from_version``, in today's form."""
        raise CheckpointVersionError(
            f"the snapshot has checkpoint_version={from_version}, {type(self).__name__} has "
            f"{options_of(type(self)).checkpoint_version}: "
            "define migrate_checkpoint(self, state, from_version)"
        )

    def on_checkpoint_error(self, error: Exception) -> None:
        """Called between two methods after a save has failed. The save is tried again by itself."""


def given_options(cls: type) -> dict[str, object]:
    """Return the options given to `cls` and its bases, the nearest winning."""
    merged: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        merged.update(base.__dict__.get(_OPTIONS, {}))
    return merged


def options_of(cls: type) -> Options:
    """Return the validated options of a `Checkpointable` class."""
    from .stores import resolve_url

    options = validate(given_options(cls))
    resolve_url(options.store)
    return options


def readonly_names(cls: type) -> frozenset[str]:
    """Return the names of the methods marked `readonly`; an override without the mark is not."""
    found: dict[str, bool] = {}
    for base in cls.__mro__:
        for name, value in base.__dict__.items():
            found.setdefault(name, getattr(getattr(value, "__func__", value), _READONLY, False) is True)
    return frozenset(name for name, marked in found.items() if marked)
