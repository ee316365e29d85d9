"""Every error that the checkpoint toolkit raises.

Each message says what was given, what is allowed and what to do. All of them pickle with one argument, so
that an engine can carry them to the caller unchanged.
"""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of all errors of the checkpoint toolkit."""


class CheckpointOptionError(CheckpointError, ValueError):
    """A class keyword, a specification or a key is wrong."""


class UnsupportedOptionError(CheckpointOptionError):
    """The option exists in the design but this version does not offer it; the message names the option."""


class UnsupportedStoreError(CheckpointOptionError):
    """No store is known for this URL, or the store gives less than was asked for."""


class NoSessionError(CheckpointError, RuntimeError):
    """`checkpoint()` was called on an object that no engine runs as an actor, or after its session ended."""


class CheckpointCaptureError(CheckpointError, TypeError):
    """The state cannot be pickled; ``attribute`` names the part that cannot.

    Attributes
    ----------
    attribute : str
        Path of the smallest part that fails, such as ``Counter.pool.lock``.
    """

    attribute: str = ""


class CheckpointSaveError(CheckpointError):
    """A snapshot could not be made durable. The snapshots saved before it are untouched."""


class CheckpointStoreError(CheckpointError):
    """The store cannot be listed: no permission, not a directory, a medium that fails."""


class CheckpointTimeoutError(CheckpointSaveError, TimeoutError):
    """A save did not become durable within the given bound. It may still finish."""


class FencedError(CheckpointSaveError):
    """A newer incarnation holds this key: what this one saves no longer counts."""


class CheckpointNotFoundError(CheckpointError, LookupError):
    """There is no snapshot where one is required."""


class CheckpointFormatError(CheckpointError):
    """One file is not a whole, unchanged snapshot; the message says what is wrong with it."""


class CheckpointCorruptedError(CheckpointError):
    """Snapshots exist and none of them verifies. The toolkit never starts empty in their place.

    Attributes
    ----------
    skipped : list of str
        One line per snapshot: its id and why it does not verify.
    """

    skipped: list[str] = []


class CheckpointMismatchError(CheckpointError):
    """The snapshot under this key was written by another class."""


class CheckpointVersionError(CheckpointError):
    """The snapshot has another `checkpoint_version` and the class does not say how to migrate it."""


class CheckpointLoadError(CheckpointError):
    """A snapshot verified, but unpickling it or `load_checkpoint` raised; the cause is chained."""


class UntrustedStoreError(CheckpointError):
    """Others than the present user could have written these files, so they are not unpickled."""


class CallError(CheckpointError):
    """Base of the errors of one call to an exactly-once actor: the call did not run because of them."""


class CallMismatchError(CallError, ValueError):
    """A call came again under its identity with another method or other arguments; nothing was changed.

    A caller that is executed again has to make the same calls in the same order.
    """


class StaleCallerError(CallError):
    """The call comes from an attempt of its caller (or of one of its ancestors) that a newer one replaced."""


class ReplyExpiredError(CallError):
    """The call has run, its reply was acknowledged, and the reply bound made room for others since."""


class CheckpointRolledBackError(CallError):
    """The actor was taken back to an earlier state since the caller's last call: a new history began."""


class CallCycleError(CallError):
    """A chain of calls comes back to an exactly-once actor whose own method waits for it."""


class PoisonCallError(CallError):
    """The actor died three times in a row while it ran this call, which is therefore not run again."""


class ReplayDivergedError(CheckpointError):
    """A call that is run again for recovery does not do what its record says it did.

    The message names the call and the first difference. The records and snapshots are untouched.
    """


class ReadonlyChangedError(CheckpointError):
    """A method marked ``@readonly`` has changed the state (found by ``verify=True``)."""


class CodeVersionError(CheckpointError):
    """The journal holds calls that other code has run, and `migrate_call` does not say how to run them."""


class CheckpointKeyInUseError(CheckpointError):
    """Somebody who lives holds this checkpoint key; the message says who and since when."""


class ReplayCrashedError(CheckpointError):
    """The actor's process died each time that it ran one recorded call again; the message names the call."""


class CheckpointParkedError(CheckpointError):
    """Recovery failed three times: the actor stays down until something about it is changed.

    ``__cause__`` is the error of the last time, where it is not only known from the store.

    Attributes
    ----------
    parked : bool
        True: an engine must not restart the actor.
    key, store : str
        Under which checkpoint key the failures are noted, and the URL of its store.
    cause : str
        The last one, in words.
    """

    parked = True
    key: str = ""
    store: str = ""
    cause: str = ""


class CallerHeldBackError(CallError, TimeoutError):
    """The bound on unacknowledged replies was reached and no room was made within the time given."""


def ended_by(error: BaseException) -> CheckpointError:
    """Return what callers are told of a process that `error` has ended: a `FencedError` if it was one.

    When the fence is noticed is left to chance (by a call, or by what the journal writes on its own): what
    is said of it is not.
    """
    cause = f"{type(error).__name__}: {error}"
    why = f"the actor's process has ended: {cause}. Ask its successor, with the same call"
    return FencedError(why) if isinstance(error, FencedError) else NoSessionError(why)


def lighten(error: BaseException | None) -> None:
    """Drop tracebacks: an error is kept for those who ask, the state that its frames refer to is not."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
