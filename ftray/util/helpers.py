"""Small functions of ``ftray.util``."""

from __future__ import annotations

from itertools import islice

import ftray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from ftray.remote_function import RemoteFunction

_CHUNK_SIZE = 10
_IN_FLIGHT_MAX = 100


def as_completed(
    refs: Sequence[ftray.ObjectRef[Any]],
    *,
    chunk_size: int = _CHUNK_SIZE,
    yield_obj_refs: bool = False,
    timeout: float | None = None,
) -> Iterator[Any]:
    """Yield results as they come in.

    Parameters
    ----------
    refs : list of ObjectRef
        Distinct refs.
    chunk_size : int, default 10
        How many to wait for at a time; 1 yields each as soon as it is there.
    yield_obj_refs : bool, default False
        Yield the refs instead of their values.
    timeout : float, optional
        Seconds for each chunk; what of it is there by then is yielded, and waiting goes on only if that is
        something.

    Raises
    ------
    TimeoutError
        Nothing came in within `timeout`.
    """
    _check_chunk_size(chunk_size)
    waiting = list(refs)
    while waiting:
        ready, waiting = ftray.wait(waiting, num_returns=min(chunk_size, len(waiting)), timeout=timeout)
        if not ready:
            raise TimeoutError(f"none of {len(waiting)} results was there within {timeout} s")
        yield from ready if yield_obj_refs else ftray.get(ready)


def map_unordered(
    fn: RemoteFunction[..., Any],
    items: Iterable[Any],
    *,
    backpressure_size: int | None = _IN_FLIGHT_MAX,
    chunk_size: int = _CHUNK_SIZE,
    yield_obj_refs: bool = False,
) -> Iterator[Any]:
    """Call a remote function for every item; yield results as they come in.

    Parameters
    ----------
    fn : RemoteFunction
        Takes one argument.
    items : iterable
        May be endless when `backpressure_size` is given.
    backpressure_size : int, optional
        At most so many tasks are under way, 100 by default; None: all at once.
    chunk_size, yield_obj_refs
        As for `as_completed`.
    """
    _check_chunk_size(chunk_size)
    if backpressure_size is not None and backpressure_size < 1:
        raise ValueError(
            f"backpressure_size={backpressure_size} is not valid: it must be at least 1, or None"
        )
    source = iter(items)
    waiting = [fn.remote(item) for item in islice(source, backpressure_size)]
    while waiting:
        ready, waiting = ftray.wait(waiting, num_returns=min(chunk_size, len(waiting)))
        waiting += [fn.remote(item) for item in islice(source, len(ready))]
        yield from ready if yield_obj_refs else ftray.get(ready)


def _check_chunk_size(chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is not valid: it must be at least 1")


def get_node_ip_address() -> str:
    """Return an address at which the session's other processes reach this one: loopback, on one machine."""
    return "127.0.0.1"


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Return the names of living named actors.

    Parameters
    ----------
    all_namespaces : bool, default False
        Those of every namespace, each as ``{"name": ..., "namespace": ...}``.
    """
    from ftray import _lifecycle
    from ftray._api import node_rpc

    if not isinstance(all_namespaces, bool):
        raise TypeError(f"all_namespaces must be True or False, not {all_namespaces!r}")
    _lifecycle.ensure()
    found: list[dict[str, str]] = node_rpc("list_named_actors", all_namespaces=all_namespaces)
    return found if all_namespaces else [actor["name"] for actor in found]
