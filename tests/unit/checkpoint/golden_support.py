"""Golden stores: what an actor, or a group, left in a store, as one archive each; and on which machine.

A store is held as a zip file: of a local store its files, of an object store its objects. Segments of
journals are mostly zeros, so that they take next to nothing in it, and are unpacked as they were.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import struct
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ftray._core.callargs import register_ref_type, serialize_args
from ftray._core.identity import call_id, derive_callee_key
from ftray._core.records import encode_head
from ftray._core.serial import serialize
from ftray.checkpoint import Checkpointable, faults, nondeterministic, outcomes, readonly, replay
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.checkpoint.testing import Call, Caller, LocalHost

from .once_support import Lives
from .test_leases import Loose

GOLDEN = Path(__file__).parent / "golden"
KEY = "golden/zähler"
DIRECTORY = "golden%2Fz%C3%A4hler"
SAVED, BACK = "golden/saved", "golden/taken-back"
PAIR, ONCE = "pair", "once"
"""Names of groups."""
HOST, PID, TICKS = "golden-host", 1 << 23, 123_456
BOOT, LATER_BOOT = "0601de20-0000-4000-8000-000000000001", "0601de20-0000-4000-8000-000000000002"
SEED = {"PYTHONHASHSEED": "1729", "fingerprint": 42}
ROOT, JOB = b"driver-of-golden", b"a-job-of-golden-"
TASK, FORMER_TASK, LATER_TASK, METHOD = (
    b"a-task-of-golden",
    b"a-former-task---",
    b"a-later-task----",
    b"method-of-golden",
)
LARGE = bytes(range(256)) * 300
"""More than the 64 KiB from which on arguments and replies are blobs."""

traps: set[int] = set()
"""Numbers in whose `step` the process dies."""
world: dict[str, int] = {"next": 100}
"""What is outside of the actor: another number each time that it is asked."""


def ask_world() -> int:
    world["next"] += 1
    return world["next"]


class Golden(Checkpointable, exactly_once=True, checkpoint_key=KEY, code_version=7, every=None, keep=8):
    def __init__(self) -> None:
        self.n = 0
        self.seen: list[int] = []
        self.large = bytearray()

    def incr(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def step(self, k: int) -> int:
        if k in traps:
            raise faults.SimulatedCrash(f"in step {k}")
        self.n += k
        return self.n

    def fail(self, text: str) -> None:
        self.n += 1
        raise ValueError(text)

    def ask(self, times: int) -> list[int]:
        self.seen += [self.record(ask_world) for _ in range(times)]
        return self.seen

    def keep(self, data: bytes) -> bytes:
        self.large = bytearray(data)
        return data[::-1]

    @nondeterministic
    def roll(self) -> int:
        self.n += ask_world()
        return self.n

    @readonly
    def value(self) -> int:
        return self.n


class Saved(Checkpointable, checkpoint_key=SAVED, every=1):
    """In snapshot mode."""

    def __init__(self) -> None:
        self.n = 0
        self.gone = "this attribute is deleted"

    def incr(self) -> int:
        self.n += 1
        self.__dict__.pop("gone", None)
        return self.n


class Broken(Golden, formerly="Golden"):
    """A version that cannot load what is there."""

    def load_checkpoint(self, state: Any) -> None:
        raise ValueError("this version cannot load that")


# -- calls


class _Ref:
    """Stands for a ref among arguments."""


def _head(parent: bytes, n: int, retry: int = 0, *, key: str = KEY, **fields: Any) -> bytes:
    callee = derive_callee_key(key)
    given = {"root_kind": 0, "root": ROOT, "attempts": (0,), **fields}
    return encode_head(parent=parent, call_id=call_id(parent, callee, n, retry), n=n, retry=retry, **given)


def _made(head: bytes, method: str, args: bytes) -> Call:
    return Call(Caller(ROOT), KEY, 0, head, method, args)


def driver_call(n: int, method: str, *args: Any, acked: int = 1, key: str = KEY, history: int = 0) -> Call:
    """The n-th call of the driver, who has the replies of those below `acked`, to the actor with a key."""
    return _made(_head(ROOT, n, key=key, acked=acked, history=history), method, _plain(args))


def task_call(n: int, method: str, *args: Any, attempt: int = 0, acked: int = 1, task: bytes = TASK) -> Call:
    """The n-th call of a task, in one of its attempts."""
    return _made(_head(task, n, acked=acked, attempts=(0, attempt)), method, _plain(args))


def job_call(n: int, method: str, *args: Any) -> Call:
    """A call of a driver that may be run again."""
    return _made(_head(JOB, n, root=JOB, root_kind=1), method, _plain(args))


def method_call(n: int, method: str, *args: Any) -> Call:
    """A call of a method of another exactly-once actor, made again after an error, in a process."""
    chain = (derive_callee_key("golden/other"),)
    fields = {"root_kind": 2, "root": b"another-process-", "attempts": (0, 3), "history": 1, "chain": chain}
    return _made(_head(METHOD, n, 2, **fields), method, _plain(args))


def keyed_call(name: str, method: str, *args: Any) -> Call:
    """A call that its caller has named."""
    return _made(outcomes.keyed_head(name, derive_callee_key(KEY)), method, _plain(args))


def ref_call(n: int, method: str, value: object) -> Call:
    """A call of the driver whose one argument was a ref to a value."""
    before = register_ref_type(_Ref)
    try:
        args = serialize_args((_Ref(),), None, [])
    finally:
        register_ref_type(before)
    data = serialize(value)
    return _made(_head(ROOT, n), method, struct.pack("<HQ", 1, len(data)) + data + args)


def _plain(args: tuple[Any, ...]) -> bytes:
    return struct.pack("<H", 0) + serialize_args(args, None, [])


# -- the machine


def on_machine(patch: pytest.MonkeyPatch, boot: str = BOOT) -> None:
    """What asks now is told that it runs on the machine of the golden stores, since this boot."""
    names = os.uname()
    there = os.uname_result((names.sysname, HOST, names.release, names.version, names.machine))
    patch.setattr(os, "uname", lambda: there)
    for module in ("snapshots", "holders", "generations", "members", "eligible", "rollback"):
        patch.setattr(importlib.import_module(f"ftray.checkpoint.{module}"), "boot_id", lambda: boot)


def as_golden_process(patch: pytest.MonkeyPatch) -> None:
    """What is written now is written by a process with a number that no real one has."""
    patch.setattr(os, "getpid", lambda: PID)
    for module in ("holders", "engine", "generations"):
        patch.setattr(
            importlib.import_module(f"ftray.checkpoint.{module}"), "start_ticks", lambda _pid: TICKS
        )
    patch.setattr(replay, "hash_seed", lambda _host: SEED)
    for what in ("session_pid", "driver_pid"):
        patch.setattr(LocalHost, what, PID, raising=False)
    patch.setattr(os, "urandom", random.Random(7).randbytes)
    times = itertools.count(1_700_000_000)
    patch.setattr(time, "time", lambda: float(next(times)))


class GoldenLives(Lives):
    """Incarnations of `Golden` in processes of an engine."""

    def __init__(self, store: Any, **options: Any) -> None:
        super().__init__(store, **{"cls": Golden, **options})
        self.actor = "golden-actor"

    def send_all(self, *calls: Call) -> list[Any]:
        """Send calls; their values, or their errors."""
        return [self.value_of(call) for call in calls]

    def value_of(self, call: Call) -> Any:
        try:
            return self.send(call)
        except Exception as error:
            return error


# -- archives


def pack(path: Path, files: Mapping[str, bytes]) -> None:
    """Write an archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            archive.writestr(
                zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED, 9
            )


def unpacked(name: str) -> dict[str, bytes]:
    """Read a golden archive: the bytes of each file by its name."""
    with zipfile.ZipFile(GOLDEN / name) as archive:
        return {entry: archive.read(entry) for entry in archive.namelist()}


def local_files(root: Path) -> dict[str, bytes]:
    """What lies in a local store."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def local_store(name: str, root: Path, only: Callable[[str], bool] = lambda _name: True) -> LocalStore:
    """Put a golden local store, or the files that are wanted, under a directory."""
    for entry, data in unpacked(name).items():
        if only(entry):
            path = root / entry
            for directory in (root, path.parent):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o600)
    return LocalStore(str(root))


def objects_of(medium: Any) -> dict[str, bytes]:
    """What lies in an object store."""
    names = [entry.name for place in medium.directories() for entry in medium.walk(place)]
    return {name: bytes(medium.read(name)) for name in names}


def object_medium(
    name: str, only: Callable[[str], bool] = lambda _name: True, exclusive: bool = True
) -> Loose:
    """Put golden objects, or those that are wanted, into a store in memory."""
    medium = Loose(exclusive)
    for entry, data in unpacked(name).items():
        if only(entry):
            medium.write(entry, data)
    return medium


def object_store(name: str, only: Callable[[str], bool] = lambda _name: True) -> ObjectStore:
    """The same as a store."""
    return ObjectStore(object_medium(name, only))
