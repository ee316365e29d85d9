"""The engine's side of the toolkit: three functions and one object.

* `spec_of(cls, overrides)` where the actor is created: what to put into the actor's record.
* `open(instance, host, spec)` in the actor's process, after ``__init__``: restores, and returns the
  `ActorSession`.
* `discard(spec, identity)` when an actor is gone for good: removes the snapshots of an unnamed one.

Around each method the engine calls `ActorSession.before_call` (only if ``max_concurrency > 1``) and
`ActorSession.after_call`; methods named in `ActorSession.entry_points` run from there; a planned end is
`ActorSession.close`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import actor, capture, faults, format, parking
from .background import Background
from .errors import (
    CheckpointError,
    CheckpointLoadError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointOptionError,
)
from .holders import look, start_ticks
from .host import ActorIdentity, Host, Incident
from .keys import key_of
from .membership import enter_group
from .options import Options, restart_defaults, validate
from .requirements import check_class, check_host, check_store
from .session import OUT_OF_SCOPE, SESSION_OVER, ActorSession
from .snapshots import Loaded, Past, SnapshotLog
from .state import attribute_names, drop_attributes
from .stores import connect, resolve_url
from .stores.protocol import Store

if TYPE_CHECKING:
    from .ahead import Ahead
    from .codec import Codec
    from .exactly_once import ExactlyOnce

__all__ = [
    "OUT_OF_SCOPE",
    "SESSION_OVER",
    "ActorSession",
    "discard",
    "open",
    "open_async",
    "restart_defaults",
    "spec_of",
]


def spec_of(cls: type, overrides: Mapping[str, object] | None = None) -> dict[str, object] | None:
    """Return what all incarnations of an actor must know, as a plain dict; None if `cls` is not
    `Checkpointable`.

    Parameters
    ----------
    cls : type
    overrides : mapping, optional
        Options given to this actor alone, such as ``{"checkpoint_key": "shard-3"}``.

    Raises
    ------
    CheckpointOptionError
        An option is wrong, or overrides are given for a class that is not `Checkpointable`.
    """
    if not issubclass(cls, actor.Checkpointable):
        if overrides:
            raise CheckpointOptionError(
                f"{', '.join(sorted(overrides))} given for {cls.__name__}, which is not Checkpointable: "
                "derive it from ftray.Checkpointable"
            )
        return None
    given = {**actor.given_options(cls), **(overrides or {})}
    options = validate(given)
    check_class(cls, options)
    return {**given, "store": resolve_url(options.store)}


def open(
    instance: actor.Checkpointable,
    host: Host,
    spec: Mapping[str, object] | None = None,
    *,
    store: Store | None = None,
    codec: Codec | None = None,
    background: Callable[..., Background] = Background,
    prepare: Callable[[ExactlyOnce], None] | None = None,
    ahead: Ahead | None = None,
) -> ActorSession:
    """Restore an actor's state and begin its session. Call after ``__init__`` and before the first method.

    Parameters
    ----------
    instance : Checkpointable
    host : Host
    spec : mapping, optional
        What `spec_of` returned; computed here if not given.
    store : Store, optional
        Use this store object in place of the one that the specification names.
    codec : Codec, optional
        How the engine writes arguments and replies of exactly-once calls. Default: the toolkit's own way.
    background : callable, optional
        Makes what saves snapshots; `ftray.checkpoint.testing` has one without a thread.
    prepare : callable, optional
        Called with the exactly-once session before anything is replayed.
    ahead : Ahead, optional
        What `ahead.read_ahead` began, for this actor.

    Raises
    ------
    CheckpointCaptureError
        The state as ``__init__`` left it cannot be saved; raised before anything is touched.
    CheckpointCorruptedError, CheckpointLoadError, CheckpointNotFoundError, CheckpointMismatchError,
    CheckpointVersionError
        There is nothing fit to restore, or it does not fit the class.
    CheckpointParkedError
        Recovery has failed three times: see `parking`, and `parking.may_pass` for what the engine does.
    CheckpointKeyInUseError, CodeVersionError, ReplayCrashedError, ReplayDivergedError
        Exactly-once only: somebody else holds the key; or the journal cannot be replayed.
    """
    from .drive import drive

    opening = open_async(
        instance, host, spec, store=store, codec=codec, background=background, prepare=prepare, ahead=ahead
    )
    return drive(opening)


async def open_async(
    instance: actor.Checkpointable,
    host: Host,
    spec: Mapping[str, object] | None = None,
    *,
    store: Store | None = None,
    codec: Codec | None = None,
    background: Callable[..., Background] = Background,
    prepare: Callable[[ExactlyOnce], None] | None = None,
    ahead: Ahead | None = None,
) -> ActorSession:
    """`open` for an actor with async methods: replay awaits them on the running loop."""
    options = validate(spec if spec is not None else spec_of(type(instance)) or {})
    if store is None:
        store = connect(options.store)
    check_host(type(instance), host, options)
    check_store(options, store)
    key = key_of(host.identity, options.checkpoint_key)
    log = SnapshotLog(store, key.text, options.keep)
    log.ahead = ahead
    session = ActorSession(instance, host, options, key, log, background)
    if options.exactly_once:
        from .codec import ToolkitCodec
        from .replay import open_exactly_once

        return await open_exactly_once(session, host, options, codec or ToolkitCodec(), prepare)
    code_version = functools.partial(code_version_of, instance, options)
    before_claim(session, host, code_version)
    names_after_init = attribute_names(instance)
    log.claim(holder(host), functools.partial(check_past, host, log))
    with parking.counted(log, host, code_version):
        _open_snapshots(session, host, options, names_after_init)
    actor.sessions[id(instance)] = session
    return session


def code_version_of(instance: actor.Checkpointable, options: Options) -> int:
    """Return what names the code of an actor."""
    from .code import class_code_version

    return class_code_version(type(instance)) if options.code_version is None else options.code_version


def before_claim(session: ActorSession, host: Host, code_version: Callable[[], int]) -> None:
    """Nothing has been touched yet: is it worth it?

    A state that cannot be saved is told to the maker of the actor; in later processes that is one of the
    failures that are counted, after the claim. A parked actor claims nothing.
    """
    if not host.is_reconstructed:
        session.trial_capture()
        return
    log = session.log
    parking.check(log.store, log.key, host.identity.unique_id, code_version)


def check_past(host: Host, log: SnapshotLog, epoch: int) -> None:
    """Refuse to begin empty when the past is gone; `epoch`: the newest that was claimed, 0 if none was."""
    if not epoch and host.is_reconstructed and host.has_served():
        raise CheckpointNotFoundError(
            f"{host.identity.class_name} has served before, and checkpoint key {log.key!r} in "
            f"{log.store.url}, where its state was, has nothing now: somebody has removed it, or this "
            "process is on another machine and the store is a disk of one. Put it back, or give a store that "
            "all nodes reach; an actor that is made anew begins from __init__"
        )


def _open_snapshots(
    session: ActorSession, host: Host, options: Options, names_after_init: frozenset[str]
) -> None:
    """Restore and begin the session of an actor in snapshot mode, whose key was claimed."""
    log = session.log
    if host.is_reconstructed:
        session.trial_capture()
    blobs = log.store.list_blobs(log.key)
    session.member = enter_group(session, blobs)
    past = session.member.load() if session.member is not None else None
    if past is None:
        past = restore(session.instance, host, options, log)
        whole = {"whole": True} if past.history else None  # else it begins anew
        log.seal(past.newest.name if past.newest else None, past.history, recovered=whole)
    else:
        # What the actor has saved by itself is not its past any more.
        cut = past.newest.name.id if past.newest else None
        log.seal(None, "", recovered={"snapshot": cut, "whole": True})
    session.start(names_after_init, past)
    log.recovered()
    if parking.among(blobs):
        session.in_background(lambda: _forget_failures(log, host))


def _forget_failures(log: SnapshotLog, host: Host) -> None:
    try:
        parking.forget(log.store, log.key, log.epoch)
    except (CheckpointError, OSError) as error:
        what = f"checkpoint key {log.key!r}: recoveries that failed before this one stay noted: {error}"
        host.report_incident(Incident("save_failed", what, error))


def discard(spec: Mapping[str, object], identity: ActorIdentity) -> bool:
    """Remove the snapshots of an unnamed actor that is gone for good, whose last process has ended.

    Returns
    -------
    bool
        False if the key outlives the actor, or somebody else works on it, whose it is then.
    """
    options = validate(spec)
    key = key_of(identity, options.checkpoint_key)
    if not key.ephemeral:
        return False
    store = connect(options.store)
    claims = store.scan(key.text).claims
    holder = look(store, key.text, claims[-1]) if claims else None
    if holder is not None and holder.record.get("actor") != identity.unique_id:
        return False
    store.remove(key.text)
    return True


def holder(host: Host) -> dict[str, Any]:
    """Return what a claim says of its holder."""
    session_pid = getattr(host, "session_pid", None)
    session = {"session_pid": session_pid, "session_ticks": start_ticks(session_pid)} if session_pid else {}
    driver_pid = getattr(host, "driver_pid", None)
    driver = {"driver_pid": driver_pid, "driver_ticks": start_ticks(driver_pid)} if driver_pid else {}
    return {
        **session,
        **driver,
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "started_ticks": start_ticks(os.getpid()),
        "incarnation": host.incarnation,
        "actor": host.identity.unique_id,
        "class": host.identity.class_name,
    }


def begins_anew(host: Host, options: Options, log: SnapshotLog) -> bool:
    """Whether the actor does not want what is there. Its restarts do, once one of them has begun anew."""
    return options.restore == "never" and not (
        host.is_reconstructed and log.sealed_by(host.identity.unique_id)
    )


def restore(instance: actor.Checkpointable, host: Host, options: Options, log: SnapshotLog) -> Past:
    """Give the instance its newest saved state, and return what was found."""
    if begins_anew(host, options, log):
        return Past(None, [], [], [], "")
    past = log.find_past()
    for line in [*past.skipped, *past.notes]:
        host.report_incident(
            Incident("snapshot_skipped", f"checkpoint key {log.key!r} in {log.store.url}: {line}")
        )
    if past.newest is None:
        if options.restore == "require":
            raise CheckpointNotFoundError(
                f"restore='require', and there is no snapshot under checkpoint key {log.key!r} "
                f"in {log.store.url}; use restore='auto' for the first start"
            )
        if past.ignored:
            ids = ", ".join(name.id for name in past.ignored)
            host.report_incident(
                Incident("history_ignored", f"checkpoint key {log.key!r}: {ids} belong to an earlier history")
            )
        return past
    load_into(instance, host, options, log, past.newest)
    if faults.active:
        faults.hit("restore.loaded")
    return past


def load_into(
    instance: actor.Checkpointable, host: Host, options: Options, log: SnapshotLog, loaded: Loaded
) -> None:
    """Give the instance the state of a snapshot that has been read."""
    fields = loaded.header.fields
    _check_class(instance, host, options, log, fields)
    if fields.get("ledger") and not options.exactly_once:
        raise CheckpointMismatchError(
            f"checkpoint key {log.key!r} in {log.store.url} is that of an exactly-once actor: calls that its "
            "journal has "
            "would be lost without exactly_once=True. Give that or, to start from __init__, restore='never'"
        )
    what = f"snapshot {loaded.name.id} of checkpoint key {log.key!r} (written by {fields['class']})"
    try:
        state = capture.load(format.split_ledger(loaded.header, loaded.segments)[0])
        if fields["state_version"] != options.checkpoint_version:
            state = instance.migrate_checkpoint(state, fields["state_version"])
        instance.load_checkpoint(state)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointLoadError(
            f"{what} is whole, but loading it raised {type(error).__name__}: {error}. Fix the class "
            "(load_checkpoint, migrate_checkpoint, imports) and start again; the snapshot is untouched"
        ) from error
    if fields["state_version"] == options.checkpoint_version:
        drop_attributes(instance, fields["deleted"])
    host.report_incident(
        Incident(
            "restored",
            f"{host.identity.class_name} restored from {what}",
            details={"snapshot": loaded.name.id},
        )
    )


def _check_class(
    instance: actor.Checkpointable, host: Host, options: Options, log: SnapshotLog, fields: Mapping[str, Any]
) -> None:
    known = {c.__name__ for c in type(instance).__mro__ if issubclass(c, actor.Checkpointable)}
    known |= {host.identity.class_name, *options.formerly}
    if fields["class"] not in known:
        raise CheckpointMismatchError(
            f"checkpoint key {log.key!r} in {log.store.url} holds the state of class {fields['class']!r}, "
            f"and this actor is a {host.identity.class_name!r}. Use another checkpoint_key or actor name or, "
            f"if the class was renamed, formerly={fields['class']!r}"
        )
