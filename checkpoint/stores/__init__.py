"""Stores by URL. `connect` turns what the user gave into a `Store`; backends are imported when asked for."""

from __future__ import annotations

import os

from ..errors import UnsupportedStoreError
from .protocol import Listing, Store

__all__ = ["Listing", "Store", "connect", "resolve_url"]

ALLOWED = "file:///absolute/path, or a plain path"


def resolve_url(text: str) -> str:
    """Return the absolute form of a store's path or URL, without touching the store.

    Parameters
    ----------
    text : str
        ``file:///path`` (percent-encoded) or a plain path (``~`` is expanded, relative to the working
        directory).

    Raises
    ------
    UnsupportedStoreError
        For any other URL, naming what is allowed.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _file_url(os.path.abspath(os.path.expanduser(text)))
    if scheme != "file":
        raise UnsupportedStoreError(
            f"store {text!r}: no store for {scheme}:// in this version; allowed: {ALLOWED}"
        )
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash or "?" in path or "#" in path:
        raise UnsupportedStoreError(f"store {text!r} is not a local file URL; allowed: {ALLOWED}")
    return _file_url(os.path.abspath("/" + _unquote(path)))


def connect(text: str) -> Store:
    """Return the store that a path or URL names. Nothing is created yet."""
    from .local import LocalStore

    return LocalStore(_unquote(resolve_url(text)[len("file://") :]))


def _file_url(path: str) -> str:
    raw = os.fsencode(path)
    return "file://" + "".join(chr(b) if 32 < b < 127 and b not in b"%?#" else f"%{b:02X}" for b in raw)


def _unquote(text: str) -> str:
    raw = bytearray()
    parts = os.fsencode(text).split(b"%")
    raw += parts[0]
    for part in parts[1:]:
        try:
            raw.append(int(part[:2], 16))
        except ValueError:
            raise UnsupportedStoreError(
                f"store path {text!r} has a '%' that is not followed by two digits"
            ) from None
        raw += part[2:]
    return os.fsdecode(bytes(raw))
