"""Objects through any fsspec file system: ``memory://``, ``gs://``, ``abfs://``, ``fsspec+NAME://``.

Uses what every fsspec file system has, so it can assume little: no conditional requests but ``pipe_file(...,
mode="create")``, which not all of them honour (see `ObjectStore.fencing`), no upload ids, and errors of any
kind.
"""

from __future__ import annotations

import builtins
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from .. import transfers
from ..errors import CheckpointStoreError, UnsupportedStoreError
from .objects import Bytes, Entry, TransientStoreError, Upload

_PIECE = 8 << 20

_memory_lock = threading.Lock()  # fsspec's own creation in memory looks first and creates then


class FsspecObjects:
    """See `objects.Medium`.

    Parameters
    ----------
    url : str
    protocol : str
        Name of the file system in fsspec's registry.
    path : str
        Where the store begins in it.
    survives : frozenset of str
    """

    limit_bytes: int | None = None
    inline_bytes = 256 << 10

    def __init__(self, url: str, protocol: str, path: str, survives: frozenset[str]) -> None:
        self.url, self.survives = url, survives
        self._fs = _file_system(url, protocol)
        self._root = path.rstrip("/")
        self._in_memory = protocol == "memory"
        self._has_directories = protocol in ("file", "local")  # which stay when their last object goes
        self._creates = self._in_memory or _has_own_creation(self._fs)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _translate(self, error: Exception, what: str, name: str) -> NoReturn:
        text = f"{what} of {self._path(name)}: {type(error).__name__}: {error}"
        status = getattr(error, "code", None) or getattr(error, "status", None)
        if isinstance(error, (FileNotFoundError, FileExistsError, NotImplementedError)):
            raise error
        if isinstance(error, PermissionError) or (isinstance(status, int) and 400 <= status < 429):
            raise CheckpointStoreError(text) from error
        transient = isinstance(
            error, (OSError, importlib.import_module("asyncio").TimeoutError)
        ) or isinstance(status, int)
        raise (TransientStoreError if transient else CheckpointStoreError)(text) from error

    def _with_parents(self, name: str, write: Callable[[], Any]) -> None:
        """Write; where directories are needed and missing, make them first."""
        try:
            write()
        except FileNotFoundError:
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            write()

    def create(self, name: str, data: bytes) -> bool:
        """Create an object where the file system can."""
        if not self._creates:
            raise NotImplementedError(f"{self.url} has no exclusive creation")
        if self._in_memory:
            with _memory_lock:
                return self._create(name, data)
        return self._create(name, data)

    def _create(self, name: str, data: bytes) -> bool:
        try:
            self._with_parents(name, lambda: self._fs.pipe_file(self._path(name), data, mode="create"))
        except FileExistsError:
            return False
        except TypeError as error:
            raise NotImplementedError(f"{self.url} has no exclusive creation") from error
        except Exception as error:
            self._translate(error, "creation", name)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Create or replace an object."""
        try:
            self._with_parents(name, lambda: self._fs.pipe_file(self._path(name), data))
        except Exception as error:
            self._translate(error, "write", name)

    def upload(self, name: str, parts: Sequence[Bytes], retry: Callable[[Callable[[], Any]], Any]) -> None:
        """Write a large object as a stream; it is there when the file has been closed."""

        def stream() -> None:
            with self._fs.open(self._path(name), "wb") as file:
                for part in parts:
                    for piece in _pieces(part):
                        file.write(piece)
                        transfers.moved(len(piece))

        def attempt() -> None:
            try:
                self._with_parents(name, stream)
            except Exception as error:
                self._translate(error, "upload", name)

        retry(attempt)

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a range of an object."""
        try:
            return bytes(self._fs.cat_file(self._path(name), start=start or None, end=end))
        except Exception as error:
            self._translate(error, "read", name)

    def size(self, name: str) -> int | None:
        """Return the size of an object."""
        self._fs.invalidate_cache()
        try:
            info = self._fs.info(self._path(name))
        except FileNotFoundError:
            return None
        except Exception as error:
            self._translate(error, "look", name)
        return int(info["size"]) if info["type"] == "file" else None

    def _listed(self, directory: str) -> builtins.list[dict[str, Any]]:
        self._fs.invalidate_cache()
        try:
            found: list[dict[str, Any]] = self._fs.ls(self._path(directory), detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            self._translate(error, "listing", directory)
        return found

    def list(self, directory: str, stem: str = "") -> list[Entry]:
        """Return the objects directly in a directory."""
        entries = [
            Entry(e["name"].rpartition("/")[2], int(e["size"] or 0))
            for e in self._listed(directory)
            if e["type"] == "file"
        ]
        return sorted(e for e in entries if e.name.startswith(stem))

    def directories(self) -> builtins.list[str]:
        """Return the first level of directories, without empty ones."""
        names = [
            e["name"].rstrip("/").rpartition("/")[2] for e in self._listed("") if e["type"] == "directory"
        ]
        return [name for name in names if not self._has_directories or self.walk(name)]

    def walk(self, directory: str) -> builtins.list[Entry]:
        """Return all objects below a directory."""
        found: list[Entry] = []
        for entry in self._listed(directory):
            name = f"{directory}/{entry['name'].rstrip('/').rpartition('/')[2]}"
            found += (
                self.walk(name) if entry["type"] == "directory" else [Entry(name, int(entry["size"] or 0))]
            )
        return found

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects."""
        for name in names:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                pass
            except Exception as error:
                self._translate(error, "deletion", name)

    def uploads(self, directory: str) -> builtins.list[Upload]:
        """Nothing that fsspec would tell."""
        return []

    def abort(self, upload: Upload) -> None:
        """There is none."""


def _pieces(part: Bytes) -> Iterator[Bytes]:
    """Cut a part only where somebody watches how far it is."""
    if not transfers.watched():
        yield part
        return
    view = memoryview(part).cast("B")
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]


def _has_own_creation(fs: Any) -> bool:
    """Whether `mode="create"` is more than fsspec's own way, which looks first and writes then.

    That passes a probe when nobody is quick enough, and lets two in when somebody is.
    """
    spec = importlib.import_module("fsspec.spec").AbstractFileSystem
    local = importlib.import_module("fsspec.implementations.local").LocalFileSystem
    inherited = {spec.pipe_file, local.pipe_file}
    return getattr(type(fs), "_pipe_file", None) is not None or type(fs).pipe_file not in inherited


def _file_system(url: str, protocol: str) -> Any:
    try:
        fsspec = importlib.import_module("fsspec")
    except ImportError as error:
        raise UnsupportedStoreError(
            f"store {url!r} needs fsspec, which is not installed here: pip install 'ftray[storage]'"
        ) from error
    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        raise UnsupportedStoreError(
            f"store {url!r} needs a package that is not installed here: {error}"
        ) from error
    except ValueError as error:
        raise UnsupportedStoreError(f"store {url!r}: fsspec knows no {protocol!r}: {error}") from error
