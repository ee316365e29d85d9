"""Store URLs: what is allowed, and one spelling for each. Pure: loads no backend and touches no store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import UnsupportedStoreError

ALLOWED = (
    "file:///absolute/path, or a plain path; s3://bucket/prefix (pip install 'ftray[s3]'); "
    "gs://, gcs://, abfs:// and az:// (pip install 'ftray[storage]', and gcsfs or adlfs), "
    "fsspec+NAME://path for another file system of fsspec; kv://name, actor://name; memory://name"
)
FSSPEC_SCHEMES = frozenset({"gs", "gcs", "abfs", "abfss", "az"})
FSSPEC_PREFIX = "fsspec+"
_S3_OPTIONS = frozenset({"endpoint_url", "region", "profile", "commit_interval_ms"})
_ACTOR_OPTIONS = frozenset({"spill"})
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")
_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")


class StoreUrl(NamedTuple):
    """A URL in its parts.

    ``place`` is what comes first after the scheme (bucket, name; empty for files), ``path`` the rest without
    slashes at its ends (for files: the absolute path), ``options`` the query.
    """

    scheme: str
    place: str
    path: str
    options: Mapping[str, str]

    @property
    def text(self) -> str:
        """The one spelling of this URL."""
        if self.scheme == "file":
            return "file://" + quote(self.path)
        query = "&".join(f"{name}={_quote_value(value)}" for name, value in sorted(self.options.items()))
        path = f"{self.place}/{quote(self.path)}" if self.path else self.place
        return f"{self.scheme}://{path}" + (f"?{query}" if query else "")


def parse(text: str) -> StoreUrl:
    """Take a path or URL apart.

    Raises
    ------
    UnsupportedStoreError
        Naming what is wrong and what is allowed.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return StoreUrl("file", "", os.path.abspath(os.path.expanduser(text)), {})
    if scheme == "file":
        return _parse_file(text, rest)
    if scheme in ("s3", "s3a"):
        return _checked_interval(text, _parse_named(text, "s3", rest, _S3_OPTIONS))
    if scheme in ("memory", "kv"):
        return _parse_named(text, scheme, rest, frozenset())
    if scheme == "actor":
        return _parse_actor(text, rest)
    if scheme in FSSPEC_SCHEMES or (
        scheme.startswith(FSSPEC_PREFIX) and _SCHEME.match(scheme.removeprefix(FSSPEC_PREFIX))
    ):
        return _parse_named(text, scheme, rest, frozenset())
    raise UnsupportedStoreError(f"store {text!r}: no store for {scheme}://; allowed: {ALLOWED}")


def _parse_file(text: str, rest: str) -> StoreUrl:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash or "?" in path or "#" in path:
        raise UnsupportedStoreError(f"store {text!r} is not a local file URL; allowed: {ALLOWED}")
    return StoreUrl("file", "", os.path.abspath("/" + unquote(path)), {})


def _parse_named(text: str, scheme: str, rest: str, allowed: frozenset[str]) -> StoreUrl:
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    if "#" in rest or "@" in place:
        raise UnsupportedStoreError(
            f"store {text!r}: a store URL has neither '#' nor credentials; give those by the environment"
        )
    if not place and not scheme.startswith(FSSPEC_PREFIX):
        raise UnsupportedStoreError(f"store {text!r} names nothing after {scheme}://; allowed: {ALLOWED}")
    pieces = [unquote(piece) for piece in path.split("/") if piece]
    if any(piece in (".", "..") for piece in pieces):
        raise UnsupportedStoreError(f"store {text!r} has '.' or '..' in its path; give the path itself")
    return StoreUrl(scheme, place, "/".join(pieces), _parse_query(text, query, allowed))


def _parse_actor(text: str, rest: str) -> StoreUrl:
    url = _parse_named(text, "actor", rest, _ACTOR_OPTIONS)
    if url.path or not _NAME.match(url.place):
        raise UnsupportedStoreError(
            f"store {text!r} does not name a store actor: actor://name, of letters, digits, '_', '-' and '.'"
        )
    spill = url.options.get("spill")
    if spill is not None and not os.path.isabs(spill):
        raise UnsupportedStoreError(f"store {text!r}: spill={spill!r} is not an absolute path")
    return url


def _checked_interval(text: str, url: StoreUrl) -> StoreUrl:
    given = url.options.get("commit_interval_ms", "0")
    if not (given.isascii() and given.isdigit() and int(given) <= 60_000):
        raise UnsupportedStoreError(
            f"store {text!r}: commit_interval_ms={given!r} is not a number of milliseconds from 0 to 60000"
        )
    return url


def _parse_query(text: str, query: str, allowed: frozenset[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if name not in allowed or not equals or not value or name in options:
            raise UnsupportedStoreError(
                f"store {text!r}: {item!r} is not allowed in its query; allowed, once each: "
                f"{', '.join(f'{n}=...' for n in sorted(allowed)) or 'nothing'}"
            )
        options[name] = unquote(value)
    return options


def quote(path: str) -> str:
    """Percent-encode what may not stand in a URL's path."""
    return "".join(chr(b) if 32 < b < 127 and b not in b"%?#" else f"%{b:02X}" for b in os.fsencode(path))


def _quote_value(value: str) -> str:
    return "".join(chr(b) if 32 < b < 127 and b not in b"%&#+" else f"%{b:02X}" for b in os.fsencode(value))


def unquote(text: str) -> str:
    """Undo `quote`."""
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
