"""``kv://name``: small states in the internal key-value store of ftray's node, or of the Ray cluster.

One request to the node per object and no copy elsewhere: for states of some kilobytes that have to be there
again after the head was restarted. Keys are ``<path>`` in the namespace ``ftray-checkpoint/<name>``.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CheckpointStoreError
from . import cluster
from .objects import Bytes, Entry, Upload

LIMIT_BYTES = 1 << 20
_HEAD_BYTES = 1024


class KvObjects:
    """See `objects.Medium`."""

    limit_bytes: int | None = LIMIT_BYTES - _HEAD_BYTES
    inline_bytes = LIMIT_BYTES - _HEAD_BYTES

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self._namespace = f"ftray-checkpoint/{name}".encode()

    @functools.cached_property
    def survives(self) -> frozenset[str]:
        """With ``ftray start --head`` the store is on disk; else it ends with the node, or Ray's head."""
        return cluster.kv_survives()

    def _ask(self, what: str, *arguments: Any, **options: Any) -> Any:
        kv = cluster.kv()
        if not kv.initialized():  # to ask it would start ftray, in whatever thread a save comes late
            raise CheckpointStoreError(f"{self.url} is a store of the node: call ftray.init() first")
        try:
            return getattr(kv, what)(*arguments, namespace=self._namespace, **options)
        except cluster.kv_errors() as error:
            raise CheckpointStoreError(f"{what} in {self.url}: {type(error).__name__}: {error}") from error

    def _checked(self, data: bytes) -> bytes:
        if len(data) > LIMIT_BYTES:
            raise CheckpointStoreError(
                f"an object of {len(data)} bytes does not fit into {self.url}, which takes at most "
                f"{LIMIT_BYTES} bytes each"
            )
        return data

    def create(self, name: str, data: bytes) -> bool:
        """Create an object: the node decides, in one step."""
        return not self._ask("put", name, self._checked(data), overwrite=False)

    def write(self, name: str, data: bytes) -> None:
        """Create or replace an object."""
        self._ask("put", name, self._checked(data))

    def upload(self, name: str, parts: Sequence[Bytes], retry: Callable[[Callable[[], Any]], Any]) -> None:
        """Write an object, which is small here."""
        data = b"".join(parts)
        retry(lambda: self.write(name, data))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a range of an object."""
        data: bytes | None = self._ask("get", name)
        if data is None:
            raise FileNotFoundError(2, "not found", f"{self.url}/{name}")
        return data[start:end]

    def size(self, name: str) -> int | None:
        """Return the size of an object."""
        data = self._ask("get", name)
        return None if data is None else len(data)

    def _names(self, prefix: str) -> builtins.list[str]:
        return [name.decode() for name in self._ask("list_keys", prefix)]

    def list(self, directory: str, stem: str = "") -> list[Entry]:
        """Return the objects directly in a directory; sizes are not known."""
        start = len(directory) + 1
        found = [name[start:] for name in self._names(f"{directory}/{stem}")]
        return sorted(Entry(name, 0) for name in found if "/" not in name)

    def directories(self) -> builtins.list[str]:
        """Return the first level of directories."""
        return sorted({name.partition("/")[0] for name in self._names("")})

    def walk(self, directory: str) -> builtins.list[Entry]:
        """Return all objects below a directory."""
        return [Entry(name, self.size(name) or 0) for name in self._names(f"{directory}/")]

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, one by one in their order."""
        for name in names:
            self._ask("delete", name)

    def uploads(self, directory: str) -> builtins.list[Upload]:
        """Nothing is uploaded in parts."""
        return []

    def abort(self, upload: Upload) -> None:
        """There is none."""
