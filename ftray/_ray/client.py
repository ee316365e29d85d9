"""Drivers that reach their cluster through Ray's client (``ray://host:port``): what is different there.

Ray's client hands each call to a process on the cluster, which makes it. Refs and handles here are tokens of
those there, and what Ray keeps in a driver's own process (tables of states, streams) is not here.

Owns: whether this process is such a driver, what is refused there, and what is known of an actor by its
handle. Invariants: what does not work through the client is refused by name, before anything is sent.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import ray
from ray._private import client_mode_hook

from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import inspect

SCHEME = "ray://"


def in_use() -> bool:
    """Whether this process is a driver that has joined a cluster through the client."""
    return bool(client_mode_hook.client_mode_should_convert())


def check_address(address: str | None) -> None:
    """Raise ImportError if `address` is one of the client, which needs what Ray alone does not install."""
    if address is None or not address.startswith(SCHEME):
        return
    try:
        importlib.import_module("grpc")
    except ModuleNotFoundError:
        text = (
            f"init(address={address!r}): Ray's client needs grpc, which is not installed:"
            f" pip install 'ray[client]=={ray.__version__}'"
        )
    else:
        return
    raise ImportError(text, name="grpc")


def joined(given: dict[str, Any]) -> Any:
    """Call ``ray.init``, whose client does not tell why it cannot connect."""
    try:
        return ray.init(**given)
    except ConnectionError as error:
        if "client" not in str(error):
            raise
        text = f"{error}. Is there a server for clients at that address (ray start --head" \
            " --ray-client-server-port=...)? If the cluster asks for a token, RAY_AUTH_MODE=token" \
            " and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH say which"
    raise ConnectionError(text)


def refuse(what: str) -> None:
    """Raise NotSupportedError if this process is a driver of the client."""
    if in_use():
        raise NotSupportedError(
            f'{what} is not supported through Ray\'s client (address="ray://..."): run the program on a'
            ' machine of the cluster, with address="auto" (`ray job submit` does so)'
        )


class Facts(NamedTuple):
    """What a handle of Ray's tells of its actor; methods by name."""

    class_name: str
    signatures: dict[str, list[inspect.Parameter]]
    generators: dict[str, bool]
    returns: dict[str, Any]


def facts_of(handle: Any) -> Facts:
    """Return what is known of an actor by its handle, which may be one of the client."""
    if isinstance(handle, ray.actor.ActorHandle):
        return Facts(
            handle._ray_actor_creation_function_descriptor.class_name.rpartition(".")[2],
            handle._ray_method_signatures,
            handle._ray_method_is_generator,
            handle._ray_method_num_returns,
        )
    found: Facts | None = handle.__dict__.get(_FACTS)
    if found is None:  # the cluster is asked
        ask = ray.remote(num_cpus=0, max_calls=0)(facts_of)
        found = handle.__dict__[_FACTS] = ray.get(ask.remote(handle))
    return found


_FACTS = "_ftray_facts"  # where a handle of the client keeps them
