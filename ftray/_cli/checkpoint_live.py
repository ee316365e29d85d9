"""What actors that live say of their checkpoints, for ``ftray checkpoint ls --live`` and ``show --live``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ftray.checkpoint.keyinfo import KeyInfo


def ask(key: str, address: str | None, timeout: float) -> dict[str, Any]:
    """Figures of the named actor with this key."""
    import ftray

    try:
        with ftray.init(address=address or "auto", log_to_driver=False, ignore_reinit_error=True):
            return _figures(key, timeout)
    except (ConnectionError, ValueError, ftray.exceptions.RayError) as error:
        raise click.ClickException(f"the actor {key!r} cannot be asked: {error}") from None


def ask_holders(infos: list[KeyInfo], address: str | None, timeout: float) -> dict[str, dict[str, Any]]:
    """Figures of the named actors that hold keys; of one that cannot be asked, why."""
    import ftray
    from ftray.checkpoint.errors import CheckpointError
    from ftray.checkpoint.keys import EPHEMERAL_PREFIX

    found: dict[str, dict[str, Any]] = {}
    held = [info.key for info in infos if info.state in ("held", "unknown") and info.mode != "group"]
    try:
        with ftray.init(address=address or "auto", log_to_driver=False, ignore_reinit_error=True):
            for key in held:
                if key.startswith(EPHEMERAL_PREFIX):
                    continue
                try:
                    found[key] = _figures(key, timeout)
                except (ValueError, ftray.exceptions.RayError, CheckpointError) as error:
                    found[key] = {"state": "not asked", "last_error": f"it cannot be asked: {error}"}
    except (ConnectionError, ValueError, ftray.exceptions.RayError) as error:
        raise click.ClickException(f"the actors cannot be asked: {error}") from None
    return found


def _figures(key: str, timeout: float) -> dict[str, Any]:
    import ftray
    from ftray.checkpoint import status

    namespace, _, name = key.rpartition("/")
    places = [namespace]
    if not namespace:  # that of a driver which has named none: it has a name of its own
        named = ftray.util.list_named_actors(all_namespaces=True)
        places = [entry["namespace"] for entry in named if entry["name"] == name]
    for place in places:
        found = status(ftray.get_actor(name, namespace=place), timeout_s=timeout)
        if found["key"] == key:
            return found
    raise ValueError(f"no named actor has the checkpoint key {key!r}")
