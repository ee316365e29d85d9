"""What the commands of ``ftray checkpoint`` have in common: how they are told of a store and of a key.

Owns their common options, the opening of the store, and how errors of the toolkit are told.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import click

if TYPE_CHECKING:
    from ftray.checkpoint import CheckpointReader

_OF_A_CLUSTER = ("kv://", "actor://")
"""Stores that live in a cluster, and are reached from inside of it."""


def told(command: Callable[..., None]) -> Callable[..., None]:
    """Errors of the toolkit are messages, not tracebacks."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from ftray.checkpoint.errors import CheckpointError

        try:
            command(*args, **kwargs)
        except (CheckpointError, OSError) as error:
            text = str(error).replace("takeover=True", "--takeover").replace("overwrite=True", "--overwrite")
            raise click.ClickException(text) from None

    return run


store = click.option(
    "--store",
    metavar="URL",
    help="Path or URL of the store; what actors use that name none, by default.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
address = click.option(
    "--address", envvar=["FTRAY_ADDRESS", "RAY_ADDRESS"], help="With --live: directory of a session."
)
live = click.option("--live", is_flag=True, help="Ask the actors, too: named ones of a node that runs.")
timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0.0, min_open=True),
    default=5.0,
    show_default=True,
    help="With --live: for each actor.",
)
yes = click.option("--yes", is_flag=True, help="Do not ask.")
takeover = click.option(
    "--takeover", is_flag=True, help="Also if somebody who lives holds the key: that actor ends."
)


def open_store(store: str | None, may_be_new: bool = False) -> CheckpointReader:
    """The store that was named, else the one of actors that name none."""
    from ftray.checkpoint import open as open_reader
    from ftray.checkpoint.options import default_store

    if store == "":  # an unset variable of a script, say: the default is not meant
        raise click.UsageError("--store is empty: give a path or a URL, or leave it out")
    url = store or default_store()
    if url.startswith(_OF_A_CLUSTER):
        _join(url)
    reader = open_reader(url)
    scheme, _, path = reader.url.partition("://")
    place = unquote(path)
    if not may_be_new and store is not None and scheme == "file" and not os.path.exists(place):
        raise click.ClickException(f"there is no store at {place}: no such directory")
    return reader


def _join(url: str) -> None:
    """Become part of the cluster that a store lives in: ftray's node, or with FTRAY_ENGINE=ray Ray's."""
    import ftray

    if ftray.is_initialized():
        return
    address = os.environ.get("FTRAY_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        ftray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, ftray.exceptions.RayError) as error:
        text = f"{url} is a store of a running cluster, and none was found: {error}"
        raise click.ClickException(text) from None


def keys_of(reader: CheckpointReader, only_orphans: bool) -> list[str]:
    """The keys of a store."""
    from ftray.checkpoint.keyinfo import orphans
    from ftray.checkpoint.stores import connect

    return orphans(connect(reader.url)) if only_orphans else reader.keys()


def resolve(reader: CheckpointReader, text: str) -> str:
    """A key, or the name of a named actor if only one namespace has it."""
    keys = reader.keys()
    if text in keys:
        return text
    named = [key for key in keys if key.rpartition("/")[2] == text]
    if len(named) == 1:
        return named[0]
    near = (
        f"; {', '.join(named)} have that name" if named else f"; there are: {', '.join(keys[:20]) or 'none'}"
    )
    raise click.ClickException(f"there is no checkpoint key {text!r} in {reader.url}{near}")


