"""`Checkpointable`: the base class that users see, and `readonly`.

Owns where the options of a class are kept: what a class statement gave lies in its own ``__dict__``, and
the options of a class are those of its bases overlaid by its own. A class statement without keywords gives
nothing and so inherits everything: cloudpickle re-creates classes without their keywords, and then sets the
attribute.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .errors import CheckpointOptionError, CheckpointVersionError, CodeVersionError, NoSessionError
from .options import DEFAULTS, Options, plain, validate

if TYPE_CHECKING:
    from .session import ActorSession

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_READONLY = "__checkpoint_readonly__"
_NONDETERMINISTIC = "__checkpoint_nondeterministic__"
_OPTIONS = "__checkpoint_options__"
_ENGINE_MARKS = {"__ray_actor_class__": "ftray._ray.host_class"}
"""Engines that derive a class of their own from the user's: what they put into it, and who is told of it."""


class _Unset:
    def __repr__(self) -> str:
        return "inherited"


_UNSET: Any = _Unset()

sessions: dict[int, ActorSession] = {}
"""The open session of each actor object of this process, by ``id``; the session keeps the object alive."""


def readonly(method: F) -> F:
    """Mark a method that changes nothing: it does not count for ``every=``, and is not journalled.

    In an exactly-once actor it may run beside other such methods, never beside one that changes the state.

    Examples
    --------
    >>> class Counter(Checkpointable):
    ...     @readonly
    ...     def value(self): return self.n
    """
    return _marked(method, _READONLY, "readonly")


def nondeterministic(method: F) -> F:
    """Mark a method of an exactly-once actor that would do something else if it ran again.

    Its effect is kept as a snapshot instead of a journal record, and no later reply leaves the actor before
    that snapshot is durable: for methods that are called rarely. Prefer ``self.record`` for single values.
    """
    return _marked(method, _NONDETERMINISTIC, "nondeterministic")


def _marked(method: F, mark: str, name: str) -> F:
    target = getattr(method, "__func__", method)
    if not callable(target):
        raise CheckpointOptionError(f"@{name} marks methods, not {method!r}")
    setattr(target, mark, True)
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
        while a save waited for `save_share` or was still being written.
    interval_s : float or None
        Save when this many seconds have passed and calls have changed the state since.
    save_share : float
        Where calls come faster than saving is cheap: the share of a CPU that saves by `every` may take, more
        than 0, at most 1. A save that would take more waits, for 0.2 s at most. 1: none does. Default 0.005.
    keep : int
        Newest snapshots to keep, at least 2: the one before is what a damaged file is replaced by.
    checkpoint_key : str or None
        What the snapshots are found under. Default: ``namespace/name`` of a named actor; an unnamed actor's
        snapshots serve its own restarts and go with it.
    restore : {"auto", "never", "require"}
        Restore if there is a snapshot; start from ``__init__``, though the actor's own restarts restore what
        it has saved; refuse to start without one.
    checkpoint_version : int
        Version of the state's meaning. A snapshot of another version goes through `migrate_checkpoint`.
    durability : {"process", "power"} or None
        What a snapshot must survive; a store that gives less is refused. Every snapshot is fsynced in any
        case.
    formerly : str or tuple of str
        Earlier names of this class whose snapshots it may restore.
    after : str or tuple of str
        Methods after each call of which the state is saved.
    exactly_once : bool
        Journal each call: after a crash the actor has the state, and gives the replies, of one that never
        crashed. A reply means that the effect is durable. ``every`` is then 1000 by default, and
        ``durability`` ``"process"``: what a reply survives.
    code_version : int or None
        With ``exactly_once``: names the code that runs the calls. Default: a hash over the class (see
        `ftray.checkpoint.code`). Records of another version are not replayed without `migrate_call`.
    takeover : bool
        With ``exactly_once``: take the key from a holder that still lives, which is fenced by this.
    verify : bool
        Check that read-only methods change nothing; with ``exactly_once`` also run each call twice and check
        that it does the same. Slow, for tests; also ``FTRAY_CHECKPOINT_VERIFY=1``.
    fencing : {"exclusive", "lease"}
        With ``exactly_once``, for a store without conditional writes: ``"lease"`` allows to hold the key for
        a time only, renewed again and again. Where the store has them they are used, whatever is given.
    lease_s : float
        Term of such a lease, 1 to 3600 seconds. An actor that cannot renew it for 0.7 of that ends; who takes
        over waits 1.1 of it, and each start a fifth.
    reply_bound_bytes, reply_bound_calls : int
        With ``exactly_once``: replies kept for callers that may ask again. Default 64 MiB, 100,000.
    journal_bound_bytes : int
        With ``exactly_once``: save also when the journal, with large arguments and replies, has grown by so
        many bytes. Default 256 MiB.

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
        save_share: float = _UNSET,
        keep: int = _UNSET,
        checkpoint_key: str | None = _UNSET,
        restore: str = _UNSET,
        checkpoint_version: int = _UNSET,
        durability: str | None = _UNSET,
        formerly: str | tuple[str, ...] = _UNSET,
        after: str | tuple[str, ...] = _UNSET,
        exactly_once: bool = _UNSET,
        code_version: int | None = _UNSET,
        takeover: bool = _UNSET,
        verify: bool = _UNSET,
        fencing: str = _UNSET,
        lease_s: float = _UNSET,
        reply_bound_bytes: int = _UNSET,
        reply_bound_calls: int = _UNSET,
        journal_bound_bytes: int = _UNSET,
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
        from .requirements import check_class

        check_class(cls, options_of(cls))
        for mark, adapter in _ENGINE_MARKS.items():
            if hasattr(cls, mark):
                importlib.import_module(adapter).adapt(cls)

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
        if session.exactly_once is not None:  # its number is from outside: the same when the call runs again
            return str(session.exactly_once.recorded_or_plain(session.request))
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

    def record(self, produce: Callable[[], T]) -> T:
        """Call `produce` once and return its value; give the same value whenever this call runs again.

        For what comes from outside of the actor: time, random numbers, answers of services. Where the
        actor is not exactly-once this just calls `produce`.

        Parameters
        ----------
        produce : callable
            Takes nothing. Runs at least once until its value is durable, and never again after that. The
            exception that it raises is recorded like a value.

        Raises
        ------
        ReplayDivergedError
            The call runs again and records something in another order than the first time.
        """
        session = sessions.get(id(self))
        if session is None or session.exactly_once is None:
            return produce()
        recorded: T = session.exactly_once.record(produce)
        return recorded

    def migrate_call(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], from_code_version: int
    ) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return how to run, in this code, a call that the journal has from code `from_code_version`.

        Returns
        -------
        tuple of str, tuple, dict
            Method, arguments and keyword arguments to run in its place. The recorded reply stands.
        """
        raise CodeVersionError(
            f"the journal has a call of {method!r} by code version {from_code_version}, and "
            f"{type(self).__name__} has other code now: define migrate_call(self, method, args, kwargs, "
            "from_code_version), go back to that code and end the actor with exit_actor() (which leaves no "
            f"calls to replay), or, if both do the same, give code_version={from_code_version}"
        )

    def _checkpoint_group(self, what: str, fields: dict[str, Any]) -> dict[str, Any]:
        """A step of a cut over a group; called by `ftray.checkpoint.group`."""
        from .members import steer

        return steer(self, what, fields)

    def on_checkpoint_error(self, error: Exception) -> None:
        """Called between two methods after a save has failed, and when the store of an exactly-once actor has
        stopped answering its journal: once, however long that takes. Both are tried again by themselves.
        """


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
    return _names_with(cls, _READONLY)


def nondeterministic_names(cls: type) -> frozenset[str]:
    """Return the names of the methods marked `nondeterministic`."""
    return _names_with(cls, _NONDETERMINISTIC)


def _names_with(cls: type, mark: str) -> frozenset[str]:
    found: dict[str, bool] = {}
    for base in cls.__mro__:
        for name, value in base.__dict__.items():
            found.setdefault(name, getattr(getattr(value, "__func__", value), mark, False) is True)
    return frozenset(name for name, marked in found.items() if marked)
