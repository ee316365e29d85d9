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
