"""Savepoints: one snapshot as one file that retention never deletes and that anybody can start from.

Owns the file (docs/storage-format.md), and where it may lie: a path, or a URL of fsspec. A savepoint is the
snapshot's own file, byte for byte, between a header that says what it is and a footer. Invariants: nothing is
overwritten unless that is asked for; a savepoint has its name only when all of it is durable; a file that is
not whole is never started from.

Layout (little-endian): prefix (magic 8s, format version u16, zero u16, header length u32, length of the
snapshot's file u64, CRC-32 of the header u32, CRC-32 of the 28 bytes before u32); header (JSON); the
snapshot's file; footer (length of the whole file u64, end magic 8s).
"""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

from . import format, transfers
from .errors import (
    CheckpointCorruptedError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    CheckpointSaveError,
    UnsupportedStoreError,
)
from .lineage import SnapshotName, parse_id
from .membership import group_name
from .snapshots import of_newest
from .stores import connect, resolve_url
from .stores.local_files import CREATE, fsync_directory, remove_file
from .stores.protocol import Store
from .stores.urls import parse
from .transfers import Progress

MAGIC = b"\x89FTSVP\r\n"
END_MAGIC = b"FTSVPEND"
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sHHIQI")
_CRC = struct.Struct("<I")
_FOOTER = struct.Struct("<Q8s")
_START = _PREFIX.size + _CRC.size
_CHUNK = 1 << 20
_MOST_HEADER = 1 << 20


class SavepointInfo(NamedTuple):
    """What a savepoint says of itself.

    Attributes
    ----------
    url, name : str
        Where it lies, and what it was called.
    key, snapshot, store : str
        What it is a copy of.
    class_name : str
    state_version : int
        ``checkpoint_version`` of the class.
    exactly_once : bool
        Whether it has a ledger: the calls that its state contains.
    journal_position : int or None
        Up to where it contains the journal.
    journal_behind : int
        Records that the journal had after that: calls that are not in the savepoint.
    created_unix_s, exported_unix_s : float
    size_bytes : int
    """

    url: str
    name: str
    key: str
    snapshot: str
    store: str
    class_name: str
    state_version: int
    exactly_once: bool
    journal_position: int | None
    journal_behind: int
    created_unix_s: float
    exported_unix_s: float
    size_bytes: int


class Savepoint(NamedTuple):
    """A savepoint that verified, read whole."""

    info: SavepointInfo
    header: format.Header
    segments: list[bytearray]


def export(
    store: str | os.PathLike[str] | Store,
    key: str,
    target: str | os.PathLike[str],
    *,
    snapshot: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SavepointInfo:
    """Copy a snapshot into one portable file, a savepoint. Disturbs no actor.

    Calls after the snapshot are not in it (``journal_behind`` tells how many an exactly-once actor has made):
    ``ray.get(handle.checkpoint.remote())`` first, or end the actor, whose last snapshot has them all.

    Parameters
    ----------
    store : path, URL or Store
    key : str
    target : path or URL
        A file that does not exist: a path, ``file:///path``, or a URL of fsspec, which must be installed.
    snapshot : str, optional
        Default: the newest one that counts.
    name : str, optional
        For people. Default: the name of the file without its suffix.
    overwrite : bool
        Replace a file that exists.
    progress : callable, optional
        ``progress(done_bytes, total_bytes)``.

    Raises
    ------
    CheckpointNotFoundError, CheckpointCorruptedError
        There is no such snapshot, or it is not whole: nothing was written.
    CheckpointSaveError
        The target exists, or cannot be written.
    """
    held = connect(os.fspath(store)) if isinstance(store, (str, os.PathLike)) else store
    if group_name(key) is not None:
        raise CheckpointOptionError(
            f"{key!r} is the key of a group, whose cuts are not those of one actor: a savepoint is made of "
            "an actor's key"
        )
    url = os.fspath(target)

    def copy(found: SnapshotName) -> SavepointInfo:
        try:
            with held.read(key, found) as file:
                header = format.verify(file)
                fields = _fields(held, key, found, header, name or _stem(url))
                file.seek(0)
                size_bytes = _write(url, fields, file, header.file_length, overwrite, progress)
        except FileNotFoundError:
            raise CheckpointNotFoundError(
                f"there is no snapshot {found.id} under checkpoint key {key!r} in {held.url}"
            ) from None
        except CheckpointFormatError as error:
            raise CheckpointCorruptedError(
                f"snapshot {found.id} of checkpoint key {key!r} in {held.url}: {error}. Choose another one"
            ) from error
        return _info(url, fields, size_bytes)

    if snapshot is not None:
        return copy(parse_id(snapshot))
    return of_newest(held, key, copy, lambda: _nothing(held, key))


def savepoint_info(target: str | os.PathLike[str]) -> SavepointInfo:
    """Verify every byte of a savepoint, in constant memory, and say what it is. Unpickles nothing.

    Raises
    ------
    CheckpointNotFoundError, CheckpointCorruptedError
    """
    with _opened(os.fspath(target)) as (file, fields, size_bytes):
        transfers.expect(size_bytes)
        format.verify(transfers.counted(file))
    return _info(os.fspath(target), fields, size_bytes)


def read_savepoint(target: str | os.PathLike[str], progress: Progress | None = None) -> Savepoint:
    """Read a savepoint whole; raises as `savepoint_info`."""
    with _opened(os.fspath(target), progress) as (file, fields, size_bytes):
        header, segments = format.read(file)
    return Savepoint(_info(os.fspath(target), fields, size_bytes), header, segments)


def _nothing(store: Store, key: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        f"there is no snapshot under checkpoint key {key!r} in {store.url}; keys there: "
        f"{', '.join(map(repr, store.keys()[:20])) or 'none'}"
    )


def _fields(store: Store, key: str, found: SnapshotName, header: format.Header, name: str) -> dict[str, Any]:
    said = header.fields
    position = said.get("journal_position")
    behind = 0
    if position is not None:
        behind = max(0, store.read_journal(key, int(position)).last_position - int(position))
    return {
        "name": name,
        "key": key,
        "snapshot": found.id,
        "store": store.url,
        "class_name": said["class"],
        "state_version": said["state_version"],
        "exactly_once": bool(said.get("ledger")),
        "journal_position": position,
        "journal_behind": behind,
        "created_unix_s": said["created_unix_s"],
        "exported_unix_s": time.time(),
    }


def _info(url: str, fields: dict[str, Any], size_bytes: int) -> SavepointInfo:
    known = {name: fields[name] for name in SavepointInfo._fields if name in fields}
    return SavepointInfo(url=url, size_bytes=size_bytes, **known)


# -- writing


def _write(
    target: str, fields: dict[str, Any], file: BinaryIO, size: int, overwrite: bool, progress: Progress | None
) -> int:
    text = json.dumps(fields, sort_keys=True).encode()
    start = _PREFIX.pack(MAGIC, FORMAT_VERSION, 0, len(text), size, zlib.crc32(text))
    head = start + _CRC.pack(zlib.crc32(start)) + text
    total = len(head) + size + _FOOTER.size
    with _created(target, overwrite) as out:
        out.write(head)
        left = size
        while left:
            try:
                chunk = file.read(min(left, _CHUNK))
            except OSError as error:  # not the target's, as those of `out` are
                raise CheckpointFormatError(f"it cannot be read any more: {error}") from error
            if not chunk:
                raise CheckpointFormatError(f"truncated: {left} bytes are missing")
            out.write(chunk)
            left -= len(chunk)
            if progress is not None:
                progress(total - _FOOTER.size - left, total)
        out.write(_FOOTER.pack(total, END_MAGIC))
    if progress is not None:
        progress(total, total)
    return total


def _stem(target: str) -> str:
    return os.path.splitext(os.path.basename(target.rstrip("/")))[0] or "savepoint"


def _local_path(target: str) -> str | None:
    """Return the path of a local target, None for other URLs."""
    from urllib.parse import unquote_to_bytes

    if target.startswith("local://"):  # so does fsspec call it
        target = f"file://{target.removeprefix('local://')}"
    if "://" in target and not target.startswith("file://"):
        return None
    return os.fsdecode(unquote_to_bytes(resolve_url(target)[len("file://") :]))


@contextmanager
def _created(target: str, overwrite: bool) -> Iterator[BinaryIO]:
    path = _local_path(target)
    try:
        if path is None:
            with _created_remotely(target, overwrite) as out:
                yield out
        else:
            with _created_locally(path, overwrite) as out:
                yield out
    except OSError as error:
        raise CheckpointSaveError(f"savepoint {target} cannot be written: {error}") from error


def _exists(target: str) -> CheckpointSaveError:
    return CheckpointSaveError(f"{target} exists already; choose another name, or overwrite=True")


@contextmanager
def _created_locally(path: str, overwrite: bool) -> Iterator[BinaryIO]:
    """A temporary file beside it, fsync, then the name, then fsync of the directory."""
    directory = os.path.dirname(path)
    if os.path.isdir(path):
        raise CheckpointSaveError(f"{path} is a directory; give the name of a file in it")
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    temp = os.path.join(directory, f".tmp-savepoint-{os.getpid()}-{os.urandom(6).hex()}")
    fd = os.open(temp, CREATE, 0o600)
    try:
        with open(fd, "wb") as out:
            yield out
            out.flush()
            os.fsync(fd)
        if overwrite:
            os.rename(temp, path)
        else:
            try:
                os.link(temp, path)  # unlike a rename it replaces nothing
            except FileExistsError:
                raise _exists(path) from None
        fsync_directory(directory)
    finally:
        remove_file(temp)


def _file_system(target: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise UnsupportedStoreError(
            f"savepoint {target!r}: URLs other than file:// need fsspec (pip install fsspec, and what it "
            "needs for that URL); without it give a path"
        ) from None
    url, options = _for_fsspec(target)
    try:
        found = url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise UnsupportedStoreError(f"savepoint {target!r}: {error}") from None
    return found[0], str(found[1])


def _for_fsspec(target: str) -> tuple[str, dict[str, Any]]:
    """A URL of S3 as stores have it, with a query: fsspec would make that a part of the object's name."""
    if not target.startswith(("s3://", "s3a://")) or "?" not in target:
        return target, {}
    from .stores.s3 import client_arguments

    url = parse(target)
    return f"s3://{url.place}/{url.path}", client_arguments(url.options)


@contextmanager
def _created_remotely(target: str, overwrite: bool) -> Iterator[BinaryIO]:
    file_system, path = _file_system(target)
    if not overwrite and file_system.exists(path):
        raise _exists(target)
    out = _opened_remotely(file_system, path, target, overwrite)
    try:
        yield out
    except BaseException:
        _discard(file_system, path, out)
        raise
    try:
        out.close()
    except FileExistsError:
        raise _exists(target) from None


def _discard(file_system: Any, path: str, out: Any) -> None:
    """Leave nothing of a file that was being written."""
    try:
        out.discard()  # a multipart upload that closing would complete
    except (AttributeError, RuntimeError):  # a file that has its name from the beginning
        with suppress(OSError):
            out.close()
        file_system.rm_file(path)
    else:
        out.closed = True  # it has nothing that it could write when it is collected


def _opened_remotely(file_system: Any, path: str, target: str, overwrite: bool) -> Any:
    try:
        if not overwrite:
            with suppress(NotImplementedError, ValueError):  # else it can only look first
                return file_system.open(path, "xb")
        return file_system.open(path, "wb")
    except FileExistsError:
        raise _exists(target) from None
    except (NotImplementedError, ValueError) as error:
        why = f": {error}" if str(error) else ""
        raise UnsupportedStoreError(f"savepoint {target!r}: nothing can be written there{why}") from None


# -- reading


class _Body(io.RawIOBase):
    """The snapshot's file inside of a savepoint."""

    def __init__(self, file: BinaryIO, start: int, length: int, progress: Progress | None) -> None:
        self._file, self._start, self._length, self._progress = file, start, length, progress
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._length}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        view = memoryview(buffer)[: max(0, min(len(buffer), self._length - self._at, _CHUNK))]
        data = self._file.read(len(view))
        view[: len(data)] = data
        self._at += len(data)
        if self._progress is not None and data:
            self._progress(self._at, self._length)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        out = bytearray()
        while size < 0 or len(out) < size:
            piece = super().read(_CHUNK if size < 0 else min(_CHUNK, size - len(out)))
            if not piece:
                break
            out += piece
        return bytes(out)


@contextmanager
def _opened(target: str, progress: Progress | None = None) -> Iterator[tuple[BinaryIO, dict[str, Any], int]]:
    """Open a savepoint, verify all but the snapshot in it, and give that as a file."""
    try:
        with _open(target) as file:
            body, fields, total = _sections(file, progress)
            yield body, fields, total
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"there is no savepoint {target}") from None
    except (CheckpointFormatError, OSError) as error:
        raise CheckpointCorruptedError(f"savepoint {target}: {error}. Nothing was changed") from error


def _open(target: str) -> BinaryIO:
    path = _local_path(target)
    if path is not None:
        return open(path, "rb")
    file_system, remote = _file_system(target)
    opened: BinaryIO = file_system.open(remote, "rb")
    return opened


def _sections(file: BinaryIO, progress: Progress | None) -> tuple[BinaryIO, dict[str, Any], int]:
    total = file.seek(0, 2)
    file.seek(0)
    start = file.read(_START)
    if start[: len(MAGIC)] != MAGIC:
        raise CheckpointFormatError(f"not a savepoint: begins with {start[:8]!r}")
    if len(start) < _START or zlib.crc32(start[: _PREFIX.size]) != _CRC.unpack_from(start, _PREFIX.size)[0]:
        raise CheckpointFormatError("the prefix does not match its checksum")
    _, version, _, header_length, size, header_crc = _PREFIX.unpack_from(start)
    if version != FORMAT_VERSION:
        raise CheckpointFormatError(f"format version {version}; this release reads version {FORMAT_VERSION}")
    if header_length > _MOST_HEADER or _START + header_length + size + _FOOTER.size != total:
        raise CheckpointFormatError(
            f"{total} bytes long where {_START + header_length + size + _FOOTER.size} were written"
        )
    text = file.read(header_length)
    if zlib.crc32(text) != header_crc:
        raise CheckpointFormatError("the header does not match its checksum")
    file.seek(total - _FOOTER.size)
    if file.read(_FOOTER.size) != _FOOTER.pack(total, END_MAGIC):
        raise CheckpointFormatError("the footer does not match the file")
    body: Any = _Body(file, _START + header_length, size, progress)
    return body, json.loads(text), total
