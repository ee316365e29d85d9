"""Checkpoints: actors whose state survives crashes.

    class Counter(ftray.Checkpointable, store="/var/lib/app/ckpt", every=100): ...

See docs/checkpoint-guide.md. The names below are the public interface; engines use
`ftray.checkpoint.engine`, tests `ftray.checkpoint.testing`. Importing this package loads next to nothing:
each name is loaded when first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which is not worth loading for it
_HOME = {
    "Checkpointable": "actor",
    "nondeterministic": "actor",
    "readonly": "actor",
    "CheckpointReader": "reader",
    "JournalInfo": "reader",
    "KeyInfo": "keyinfo",
    "Restored": "rollback",
    "SavepointInfo": "savepoint",
    "SnapshotInfo": "reader",
    "delete": "manage",
    "export": "savepoint",
    "open": "reader",
    "Outcome": "outcomes",
    "outcome": "outcomes",
    "prune": "manage",
    "restore": "rollback",
    "savepoint_info": "savepoint",
    "status": "manage",
    "ActorIdentity": "host",
    "Host": "host",
    "Incident": "host",
    "Store": "stores",
    "Controller": "controller",
    "CutInfo": "groups",
    "Group": "groups",
    "group": "groups",
    "CallCycleError": "errors",
    "CallError": "errors",
    "CallMismatchError": "errors",
    "CallerHeldBackError": "errors",
    "CheckpointKeyInUseError": "errors",
    "CheckpointParkedError": "errors",
    "CheckpointRolledBackError": "errors",
    "CodeVersionError": "errors",
    "PoisonCallError": "errors",
    "ReadonlyChangedError": "errors",
    "ReplayCrashedError": "errors",
    "ReplayDivergedError": "errors",
    "ReplyExpiredError": "errors",
    "StaleCallerError": "errors",
    "CheckpointCaptureError": "errors",
    "CheckpointCorruptedError": "errors",
    "CheckpointError": "errors",
    "CheckpointFormatError": "errors",
    "CheckpointLoadError": "errors",
    "CheckpointMismatchError": "errors",
    "CheckpointNotFoundError": "errors",
    "CheckpointOptionError": "errors",
    "CheckpointSaveError": "errors",
    "CheckpointStoreError": "errors",
    "CheckpointTimeoutError": "errors",
    "CheckpointVersionError": "errors",
    "FencedError": "errors",
    "NoSessionError": "errors",
    "UnsupportedOptionError": "errors",
    "UnsupportedStoreError": "errors",
    "UntrustedStoreError": "errors",
}
_OTHER_NAME = {"open": "open_reader"}
_SUBMODULES = frozenset({"engine", "errors", "faults", "host", "testing"})

__all__ = [
    "ActorIdentity",
    "CallCycleError",
    "CallError",
    "CallMismatchError",
    "CallerHeldBackError",
    "CheckpointCaptureError",
    "CheckpointCorruptedError",
    "CheckpointError",
    "CheckpointFormatError",
    "CheckpointKeyInUseError",
    "CheckpointLoadError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointOptionError",
    "CheckpointParkedError",
    "CheckpointReader",
    "CheckpointRolledBackError",
    "CheckpointSaveError",
    "CheckpointStoreError",
    "CheckpointTimeoutError",
    "CheckpointVersionError",
    "Checkpointable",
    "CodeVersionError",
    "Controller",
    "CutInfo",
    "FencedError",
    "Group",
    "Host",
    "Incident",
    "JournalInfo",
    "KeyInfo",
    "NoSessionError",
    "Outcome",
    "PoisonCallError",
    "ReadonlyChangedError",
    "ReplayCrashedError",
    "ReplayDivergedError",
    "ReplyExpiredError",
    "Restored",
    "SavepointInfo",
    "SnapshotInfo",
    "StaleCallerError",
    "Store",
    "UnsupportedOptionError",
    "UnsupportedStoreError",
    "UntrustedStoreError",
    "delete",
    "export",
    "group",
    "nondeterministic",
    "open",
    "outcome",
    "prune",
    "readonly",
    "restore",
    "savepoint_info",
    "status",
]

if TYPE_CHECKING:
    from .actor import Checkpointable as Checkpointable
    from .actor import nondeterministic as nondeterministic
    from .actor import readonly as readonly
    from .controller import Controller as Controller
    from .errors import CallCycleError as CallCycleError
    from .errors import CallerHeldBackError as CallerHeldBackError
    from .errors import CallError as CallError
    from .errors import CallMismatchError as CallMismatchError
    from .errors import CheckpointCaptureError as CheckpointCaptureError
    from .errors import CheckpointCorruptedError as CheckpointCorruptedError
    from .errors import CheckpointError as CheckpointError
    from .errors import CheckpointFormatError as CheckpointFormatError
    from .errors import CheckpointKeyInUseError as CheckpointKeyInUseError
    from .errors import CheckpointLoadError as CheckpointLoadError
    from .errors import CheckpointMismatchError as CheckpointMismatchError
    from .errors import CheckpointNotFoundError as CheckpointNotFoundError
    from .errors import CheckpointOptionError as CheckpointOptionError
    from .errors import CheckpointParkedError as CheckpointParkedError
    from .errors import CheckpointRolledBackError as CheckpointRolledBackError
    from .errors import CheckpointSaveError as CheckpointSaveError
    from .errors import CheckpointStoreError as CheckpointStoreError
    from .errors import CheckpointTimeoutError as CheckpointTimeoutError
    from .errors import CheckpointVersionError as CheckpointVersionError
    from .errors import CodeVersionError as CodeVersionError
    from .errors import FencedError as FencedError
    from .errors import NoSessionError as NoSessionError
    from .errors import PoisonCallError as PoisonCallError
    from .errors import ReadonlyChangedError as ReadonlyChangedError
    from .errors import ReplayCrashedError as ReplayCrashedError
    from .errors import ReplayDivergedError as ReplayDivergedError
    from .errors import ReplyExpiredError as ReplyExpiredError
    from .errors import StaleCallerError as StaleCallerError
    from .errors import UnsupportedOptionError as UnsupportedOptionError
    from .errors import UnsupportedStoreError as UnsupportedStoreError
    from .errors import UntrustedStoreError as UntrustedStoreError
    from .groups import CutInfo as CutInfo
    from .groups import Group as Group
    from .groups import group as group
    from .host import ActorIdentity as ActorIdentity
    from .host import Host as Host
    from .host import Incident as Incident
    from .keyinfo import KeyInfo as KeyInfo
    from .manage import delete as delete
    from .manage import prune as prune
    from .manage import status as status
    from .outcomes import Outcome as Outcome
    from .outcomes import outcome as outcome
    from .reader import CheckpointReader as CheckpointReader
    from .reader import JournalInfo as JournalInfo
    from .reader import SnapshotInfo as SnapshotInfo
    from .reader import open_reader as open
    from .rollback import Restored as Restored
    from .rollback import restore as restore
    from .savepoint import SavepointInfo as SavepointInfo
    from .savepoint import export as export
    from .savepoint import savepoint_info as savepoint_info
    from .stores import Store as Store


def __getattr__(name: str) -> object:
    import importlib

    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), _OTHER_NAME.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_SUBMODULES])
