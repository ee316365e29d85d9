"""What a class, an engine and a store must be for the options that were chosen; refusals say why.

Pure but for one look at a store's file system. Owns the refused combinations of exactly-once.
"""

from __future__ import annotations

from types import FunctionType

from . import actor
from .errors import CheckpointOptionError, UnsupportedStoreError
from .host import Host
from .options import Options
from .stores.protocol import Store

_GENERATOR = 0x20 | 0x200  # inspect.CO_GENERATOR, inspect.CO_ASYNC_GENERATOR


def methods_of(cls: type) -> dict[str, FunctionType]:
    """Return the public methods that callers may name, without those of `Checkpointable` itself."""
    found: dict[str, FunctionType] = {}
    for base in cls.__mro__:
        if base in (object, actor.Checkpointable):
            continue
        for name, value in base.__dict__.items():
            function = getattr(value, "__func__", value)
            if not name.startswith("_") and isinstance(function, FunctionType):
                found.setdefault(name, function)
    reserved = {name for name in vars(actor.Checkpointable) if not name.startswith("_")} - {"checkpoint"}
    return {name: function for name, function in found.items() if name not in reserved}


def mutating_methods(cls: type) -> dict[str, FunctionType]:
    """Return the public methods that are not marked `readonly`."""
    unchanged = actor.readonly_names(cls)
    return {name: function for name, function in methods_of(cls).items() if name not in unchanged}


def check_class(cls: type, options: Options) -> None:
    """Refuse what no engine could run.

    Raises
    ------
    CheckpointOptionError
        ``after`` names what is not a method that changes the state; or, with ``exactly_once``, a method
        that changes the state is a generator, or one is both `readonly` and `nondeterministic`.
    """
    methods, changing = methods_of(cls), mutating_methods(cls)
    for name in options.after:
        if name not in changing:
            why = "is marked readonly, so there is nothing new to save" if name in methods else "is not one"
            raise CheckpointOptionError(
                f"after={options.after!r}: {name!r} {why}; methods of {cls.__name__} that change its state: "
                f"{', '.join(sorted(changing)) or 'none'}"
            )
    if options.exactly_once:
        _check_exactly_once(cls, changing)


def _check_exactly_once(cls: type, changing: dict[str, FunctionType]) -> None:
    for name, function in sorted(changing.items()):
        if function.__code__.co_flags & _GENERATOR:
            raise CheckpointOptionError(
                f"exactly_once=True: {cls.__name__}.{name} is a generator that is not marked readonly. Its "
                "caller would decide how far it runs, which no journal can repeat: return a list, or mark it "
                "@readonly if it changes nothing"
            )
    both = actor.readonly_names(cls) & actor.nondeterministic_names(cls)
    if both:
        raise CheckpointOptionError(
            f"{cls.__name__}: {', '.join(sorted(both))} cannot be both @readonly and @nondeterministic; "
            "what changes nothing needs no snapshot"
        )


def check_host(cls: type, host: Host, options: Options) -> None:
    """Refuse, for exactly-once, an engine's threads that would run several changing methods at once."""
    if not options.exactly_once or host.is_async or host.max_concurrency <= 1:
        return
    changing = sorted(mutating_methods(cls))
    if changing:
        raise CheckpointOptionError(
            f"exactly_once=True and max_concurrency={host.max_concurrency}: {', '.join(changing)} of "
            f"{cls.__name__} would run on several threads at once, in an order that no journal can repeat. "
            "Use max_concurrency=1, async methods, or mark what changes nothing as @readonly"
        )


def check_store(options: Options, store: Store) -> None:
    """Refuse a store that gives less than was asked for."""
    if options.durability is not None and options.durability not in store.survives:
        raise UnsupportedStoreError(
            f"durability={options.durability!r} was asked for, and {store.url} survives only: "
            f"{', '.join(sorted(store.survives)) or 'nothing'}. Choose another store, or a lower durability"
        )
    if not options.exactly_once:
        return
    if not hasattr(store, "open_journal"):
        raise UnsupportedStoreError(
            f"exactly_once=True: {store.url} keeps snapshots but no journal. Choose a store that does"
        )
    allow_lease = getattr(store, "allow_lease", None)
    if options.fencing == "lease" and allow_lease is not None:
        allow_lease(options.lease_s)
    probe = getattr(store, "check_exactly_once", None)
    if probe is not None:  # network file systems, and what fails at exclusive creation
        probe()
