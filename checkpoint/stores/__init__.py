"""Stores by URL. `connect` turns what the user gave into a `Store`; backends are imported when asked for."""

from __future__ import annotations

from . import urls
from .protocol import Listing, Store
from .urls import ALLOWED

__all__ = ["ALLOWED", "Listing", "Store", "connect", "resolve_url"]

_NETWORK = frozenset({"process", "power", "node", "head"})
_SURVIVES: dict[str, frozenset[str]] = {
    "memory": frozenset(),
    # fsspec fsyncs nothing: `file://` is the store for disks.
    "file": frozenset({"process"}),
    "local": frozenset({"process"}),
}


def resolve_url(text: str) -> str:
    """Return the absolute form of a store's path or URL, without touching the store.

    Parameters
    ----------
    text : str
        A plain path (``~`` is expanded, relative to the working directory), ``file:///path``
        (percent-encoded), ``s3://bucket/prefix``, ``kv://name``, ``actor://name``, ``memory://name``,
        ``gs://bucket/prefix`` and others of fsspec; docs/checkpoint-guide.md says what each is good for.

    Raises
    ------
    UnsupportedStoreError
        For any other URL, naming what is allowed.
    """
    return urls.parse(text).text


def connect(text: str) -> Store:
    """Return the store that a path or URL names. Nothing is created yet.

    Raises
    ------
    UnsupportedStoreError
        The URL is none of a store, or what it needs is not installed here.
    """
    url = urls.parse(text)
    if url.scheme == "file":
        from .local import LocalStore

        return LocalStore(url.path)
    from .object_store import ObjectStore

    if url.scheme == "s3":
        from .s3 import S3Objects

        options = dict(url.options)
        interval_s = int(options.pop("commit_interval_ms", "0")) / 1000
        return ObjectStore(S3Objects(url.text, url.place, url.path, options), commit_interval_s=interval_s)
    if url.scheme == "kv":
        from .kv import KvObjects

        return ObjectStore(KvObjects(url.text, "/".join(filter(None, (url.place, url.path)))))
    if url.scheme == "actor":
        from .actor_objects import ActorObjects

        return ObjectStore(ActorObjects(url.text, url.place, url.options.get("spill")))
    from .fsspec_objects import FsspecObjects

    protocol = url.scheme.removeprefix(urls.FSSPEC_PREFIX)
    survives = _SURVIVES.get(protocol, _NETWORK)
    path = f"{url.place}/{url.path}" if url.path else url.place
    return ObjectStore(FsspecObjects(url.text, protocol, path, survives))


def _file_url(path: str) -> str:
    return urls.StoreUrl("file", "", path, {}).text
