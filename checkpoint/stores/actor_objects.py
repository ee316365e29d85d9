"""``actor://name``: objects in the memory of a named actor, or with ``?spill=/directory`` in its files.

The store actor is detached and needs no CPU; whoever uses the store first starts it. Without a directory its
objects end with its process: it then says so to everybody, and holds nothing new, because a store that is
empty all of a sudden would let actors start from nothing in silence.
"""

from __future__ import annotations

import builtins
import importlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ftray._core.context import Apart

from ..errors import CheckpointStoreError
from ..keys import from_file_name
from . import cluster
from .objects import Bytes, Entry, TransientStoreError, Upload

NAMESPACE = "_ftray_checkpoint"
_TIMEOUT_S = 60.0


class MemoryHolder:
    """What the store actor is without a directory. Methods run one by one: creation is exclusive by that."""

    def __init__(self, name: str) -> None:
        kv = cluster.kv()
        self._name = name
        self._lost: bool = kv.put(f"actor-store/{name}", b"1", False, namespace=NAMESPACE)
        self._objects: dict[str, bytes] = {}

    def _held(self) -> dict[str, bytes]:
        if self._lost:
            raise CheckpointStoreError(
                f"the process of actor://{self._name} has died, and with it what it held in memory. "
                "Use another name, or actor://...?spill=/directory, which survives that. To begin anew under "
                "this name: kill the actor, and ftray.experimental.internal_kv.delete("
                f'"actor-store/{self._name}", namespace="{NAMESPACE}")'
            )
        return self._objects

    def create(self, name: str, data: bytes) -> bool:
        """Keep an object unless there is one."""
        held = self._held()
        if name in held:
            return False
        held[name] = data
        return True

    def write(self, name: str, data: bytes) -> None:
        """Keep an object."""
        self._held()[name] = data

    def read(self, name: str, start: int, end: int | None) -> bytes | None:
        """Return a range of an object, None if there is none."""
        data = self._held().get(name)
        return None if data is None else data[start:end]

    def sizes(self, prefix: str) -> list[tuple[str, int]]:
        """Return names and sizes."""
        return [(name, len(data)) for name, data in self._held().items() if name.startswith(prefix)]

    def delete(self, names: Sequence[str]) -> None:
        """Forget objects."""
        held = self._held()
        for name in names:
            held.pop(name, None)


class FileHolder:
    """What the store actor is with a directory: each object is a file there, written whole and fsynced."""

    def __init__(self, name: str, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._sizes: dict[str, int] = {}
        for file_name in os.listdir(directory):
            path = os.path.join(directory, file_name)
            if file_name.startswith(".tmp-"):
                os.unlink(path)
            elif (found := self._name_of(file_name)) is not None:
                self._sizes[found] = os.path.getsize(path)

    def _path(self, name: str) -> str:
        """Names have percent signs and slashes; each piece is a file name already but for these."""
        return os.path.join(self._directory, "~".join(name.split("/")))

    @staticmethod
    def _name_of(file_name: str) -> str | None:
        first, tilde, rest = file_name.partition("~")
        return f"{first}/{rest.replace('~', '/')}" if tilde and from_file_name(first) is not None else None

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one."""
        if name in self._sizes:
            return False
        self.write(name, data)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        temporary = os.path.join(self._directory, ".tmp-" + os.urandom(8).hex())
        try:
            with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, self._path(name))
            self._sync()
        except OSError as error:
            raise CheckpointStoreError(f"cannot write below {self._directory}: {error}") from error
        self._sizes[name] = len(data)

    def _sync(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, name: str, start: int, end: int | None) -> bytes | None:
        """Return a range of an object, None if there is none."""
        if name not in self._sizes:
            return None
        with open(self._path(name), "rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else max(0, end - start))

    def sizes(self, prefix: str) -> list[tuple[str, int]]:
        """Return names and sizes."""
        return [(name, size) for name, size in self._sizes.items() if name.startswith(prefix)]

    def delete(self, names: Sequence[str]) -> None:
        """Remove files."""
        for name in names:
            if self._sizes.pop(name, None) is not None:
                os.unlink(self._path(name))
        self._sync()


class ActorObjects:
    """See `objects.Medium`."""

    limit_bytes: int | None = None
    inline_bytes = 16 << 20

    def __init__(self, url: str, name: str, spill: str | None) -> None:
        self.url, self._name, self._spill = url, name, spill
        self.survives = frozenset({"process", "power"} if spill else ())
        self._lock = threading.Lock()
        self._handle: Any = None

    def _holder(self) -> Any:
        with self._lock:
            if self._handle is None:
                try:
                    ray = cluster.actors()
                except CheckpointStoreError as error:
                    raise CheckpointStoreError(f"{self.url} is a store of the node: {error}") from None
                cls, arguments = (
                    (FileHolder, (self._name, self._spill)) if self._spill else (MemoryHolder, (self._name,))
                )
                options = {"name": self._name, "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0}
                options |= {"lifetime": "detached", "max_restarts": -1, "max_task_retries": -1}
                options |= cluster.on_head(ray)
                self._handle = ray.remote(cls).options(**options).remote(*arguments)
            return self._handle

    def _ask(self, method: str, *arguments: Any) -> Any:
        ray = cluster.actors()
        exceptions = importlib.import_module(f"{ray.__name__}.exceptions")
        try:
            with Apart():  # an exactly-once actor's outputs wait for what is stored here
                return ray.get(getattr(self._holder(), method).remote(*arguments), timeout=_TIMEOUT_S)
        except CheckpointStoreError as error:
            raise CheckpointStoreError(f"{method} in {self.url}: {error}") from error
        except exceptions.GetTimeoutError as error:
            raise TransientStoreError(f"{method} in {self.url}: no answer within {_TIMEOUT_S} s") from error
        except exceptions.RayError as error:
            with self._lock:
                self._handle = None
            raise CheckpointStoreError(f"{method} in {self.url}: {type(error).__name__}: {error}") from error

    def create(self, name: str, data: bytes) -> bool:
        """Create an object: the actor decides."""
        return bool(self._ask("create", name, data))

    def write(self, name: str, data: bytes) -> None:
        """Create or replace an object."""
        self._ask("write", name, data)

    def upload(self, name: str, parts: Sequence[Bytes], retry: Callable[[Callable[[], Any]], Any]) -> None:
        """Write a large object."""
        data = b"".join(parts)
        retry(lambda: self.write(name, data))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a range of an object."""
        data: bytes | None = self._ask("read", name, start, end)
        if data is None:
            raise FileNotFoundError(2, "not found", f"{self.url}/{name}")
        return data

    def size(self, name: str) -> int | None:
        """Return the size of an object."""
        return dict(self._ask("sizes", name)).get(name)

    def list(self, directory: str, stem: str = "") -> list[Entry]:
        """Return the objects directly in a directory."""
        start = len(directory) + 1
        found = [Entry(name[start:], size) for name, size in self._ask("sizes", f"{directory}/{stem}")]
        return sorted(entry for entry in found if "/" not in entry.name)

    def directories(self) -> builtins.list[str]:
        """Return the first level of directories."""
        return sorted({name.partition("/")[0] for name, _ in self._ask("sizes", "")})

    def walk(self, directory: str) -> builtins.list[Entry]:
        """Return all objects below a directory."""
        return [Entry(name, size) for name, size in self._ask("sizes", f"{directory}/")]

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects."""
        self._ask("delete", [*names])

    def uploads(self, directory: str) -> builtins.list[Upload]:
        """Nothing is uploaded in parts."""
        return []

    def abort(self, upload: Upload) -> None:
        """There is none."""
