"""Small functions of ``ftray.util``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import ftray
from ftray import _engine, _options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
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
    TypeError, ValueError
        At once: an argument that is not allowed.
    """
    _options.integer(1, "")("chunk_size", chunk_size)
    _options.boolean("yield_obj_refs", yield_obj_refs)
    _check_timeout(timeout)
    if isinstance(refs, ftray.ObjectRef) or not isinstance(refs, Iterable):
        raise TypeError(f"as_completed() takes a list of ObjectRefs, not {refs!r:.100}")
    waiting = list(refs)
    for item in waiting:
        if not isinstance(item, ftray.ObjectRef):
            raise TypeError(f"as_completed() takes a list of ObjectRefs; {item!r:.100} is none")
    if len(set(waiting)) < len(waiting):
        raise ValueError("as_completed() takes a list of distinct ObjectRefs; one stands in it twice")
    return _completed(waiting, chunk_size, yield_obj_refs, timeout)


def _completed(
    waiting: list[ftray.ObjectRef[Any]], chunk_size: int, yield_obj_refs: bool, timeout: float | None
) -> Iterator[Any]:
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

    Raises
    ------
    TypeError, ValueError
        At once: an argument that is not allowed.
    """
    _options.integer(1, "")("chunk_size", chunk_size)
    _options.boolean("yield_obj_refs", yield_obj_refs)
    if backpressure_size is not None:
        _options.integer(1, ", or None")("backpressure_size", backpressure_size)
    if not callable(getattr(fn, "remote", None)):
        raise TypeError(
            f"map_unordered() takes a remote function, not {fn!r:.100}: decorate it with @ftray.remote"
        )
    if not isinstance(items, Iterable):
        raise TypeError(f"map_unordered() takes an iterable of items, not {items!r:.100}")
    return _mapped(fn, iter(items), backpressure_size, chunk_size, yield_obj_refs)


def _mapped(
    fn: RemoteFunction[..., Any],
    source: Iterator[Any],
    backpressure_size: int | None,
    chunk_size: int,
    yield_obj_refs: bool,
) -> Iterator[Any]:
    waiting = [fn.remote(item) for item in islice(source, backpressure_size)]
    while waiting:
        ready, waiting = ftray.wait(waiting, num_returns=min(chunk_size, len(waiting)))
        waiting += [fn.remote(item) for item in islice(source, len(ready))]
        yield from ready if yield_obj_refs else ftray.get(ready)


def _check_timeout(timeout: float | None) -> None:
    if timeout is None:
        return
    kind = TypeError if isinstance(timeout, bool) or not isinstance(timeout, int | float) else ValueError
    if kind is TypeError or not timeout >= 0:
        raise kind(_options.wrong("timeout", timeout, "it must be a number of seconds >= 0, or None"))


def get_node_ip_address() -> str:
    """Return an address at which the session's other processes reach this one: loopback, on one machine."""
    return _engine.current().node_ip()


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Return the names of living named actors.

    Parameters
    ----------
    all_namespaces : bool, default False
        Those of every namespace, each as ``{"name": ..., "namespace": ...}``.
    """
    from ftray._api import node_rpc

    if not isinstance(all_namespaces, bool):
        raise TypeError(f"all_namespaces must be True or False, not {all_namespaces!r}")
    _engine.ensure()
    found: list[dict[str, str]] = node_rpc("list_named_actors", all_namespaces=all_namespaces)
    return found if all_namespaces else [actor["name"] for actor in found]
