"""A key-value store of the node, for small states that drivers, tasks and actors share.

With ``ftray start --head`` it is on disk and survives the node; otherwise it ends with the node. Every
function is there under Ray's name too, with the prefix ``_internal_kv_``. Each starts ftray when nothing did
yet, and raises ``TypeError`` for what is neither bytes nor text, ``ValueError`` for what is too large,
``InternalKVError`` when the store cannot be used, ``OutOfDiskError`` when it has no room.

Keys and namespaces have at most 64 KiB, values 64 MiB. Texts are taken as UTF-8. A namespace that is None is
the empty one; these namespaces have nothing to do with those of actors.
"""

from __future__ import annotations

from ftray import _engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "_internal_kv_del",
    "_internal_kv_exists",
    "_internal_kv_get",
    "_internal_kv_initialized",
    "_internal_kv_list",
    "_internal_kv_put",
    "delete",
    "exists",
    "get",
    "initialized",
    "list_keys",
    "put",
]


def initialized() -> bool:
    """Whether ftray runs in this process, so that the store can be reached."""
    return _engine.is_initialized()


def put(
    key: str | bytes, value: str | bytes, overwrite: bool = True, *, namespace: str | bytes | None = None
) -> bool:
    """Store a value.

    Parameters
    ----------
    key : str or bytes
        At most 64 KiB.
    value : str or bytes
        At most 64 MiB; larger values belong into objects or files.
    overwrite : bool, default True
        False: keep the value of a key that is there. Of several that put the same key at the same time only
        one is then told that it was not there.
    namespace : str or bytes, optional
        Keys of different namespaces are different keys.

    Returns
    -------
    bool
        Whether the key was there already.
    """
    if not isinstance(overwrite, bool):
        raise TypeError(f"overwrite must be a bool, not {type(overwrite).__name__}")
    from ftray._node.storage import MAX_VALUE_BYTES

    found: bool = _ask(
        "kv_put",
        namespace,
        key=_key(key),
        value=_bytes("value", value, MAX_VALUE_BYTES),
        overwrite=overwrite,
    )
    return found


def get(key: str | bytes, *, namespace: str | bytes | None = None) -> bytes | None:
    """Return the value of a key as bytes, None when it is not there."""
    found: bytes | None = _ask("kv_get", namespace, key=_key(key))
    return found


def exists(key: str | bytes, *, namespace: str | bytes | None = None) -> bool:
    """Return whether a key is there."""
    found: bool = _ask("kv_exists", namespace, key=_key(key))
    return found


def delete(key: str | bytes, *, del_by_prefix: bool = False, namespace: str | bytes | None = None) -> int:
    """Remove a key, or with ``del_by_prefix`` all keys that begin with it; return how many went."""
    if not isinstance(del_by_prefix, bool):
        raise TypeError(f"del_by_prefix must be a bool, not {type(del_by_prefix).__name__}")
    count: int = _ask("kv_del", namespace, key=_key(key), del_by_prefix=del_by_prefix)
    return count


def list_keys(prefix: str | bytes, *, namespace: str | bytes | None = None) -> list[bytes]:
    """Return all keys that begin with ``prefix`` (b"" for all), sorted."""
    found: list[bytes] = _ask("kv_keys", namespace, prefix=_key(prefix))
    return found


def _key(key: str | bytes) -> bytes:
    from ftray._node.storage import MAX_KEY_BYTES

    return _bytes("key", key, MAX_KEY_BYTES)


def _bytes(what: str, value: str | bytes, limit_bytes: int) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise TypeError(f"the {what} must be bytes or a string, not {type(value).__name__}: {value!r:.100}")
    if len(value) > limit_bytes:
        raise ValueError(
            f"the {what} has {len(value)} bytes; the key-value store takes at most {limit_bytes}"
        )
    return value


def _ask(method: str, namespace: str | bytes | None, **arguments: Any) -> Any:
    from ftray._api import node_rpc
    from ftray._node.storage import MAX_KEY_BYTES, StorageError, StorageFullError
    from ftray.exceptions import InternalKVError, OutOfDiskError

    table = b"" if namespace is None else _bytes("namespace", namespace, MAX_KEY_BYTES)
    _engine.ensure()
    try:
        return node_rpc(method, namespace=table, **arguments)
    except StorageFullError as error:
        raise OutOfDiskError(str(error)) from None
    except StorageError as error:
        raise InternalKVError(str(error)) from None


_internal_kv_initialized = initialized
_internal_kv_put = put
_internal_kv_get = get
_internal_kv_exists = exists
_internal_kv_del = delete
_internal_kv_list = list_keys
