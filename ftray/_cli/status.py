"""``ftray status``: the node, its resources, and what waits for them."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click


def find_node(address: str | None) -> str:
    """Return the session directory that an ``--address`` means; without one, as ``ftray.init("auto")``.

    Raises
    ------
    click.ClickException
        There is no node.
    """
    import os

    from ftray._node import launch, session

    given = address or os.environ.get("FTRAY_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if given == "auto" and not session.live_sessions(session.base_directory()):
            raise click.ClickException(
                f"no ftray node of this user runs in {session.base_directory()}; start one with"
                " `ftray start --head`"
            )
        return launch.find_node(given)
    except session.SessionError as error:
        raise click.ClickException(str(error)) from None


def snapshot(session_dir: str) -> dict[str, Any]:
    """Return what a node says of itself, in a form that JSON has."""
    from ftray._node import client, running, session

    try:
        with running.observed(session_dir) as node:
            nodes = node.rpc("nodes")
            total, free = node.rpc("cluster_resources"), node.rpc("available_resources")
            waiting = node.rpc("waiting")
    except (client.RegistrationError, session.SessionError, OSError) as error:
        raise click.ClickException(f"the node does not answer: {error or type(error).__name__}") from None
    resources = {
        name: {"used": round(amount - free.get(name, 0.0), 4), "total": amount}
        for name, amount in sorted(total.items())
    }
    demands = [
        {
            "name": name,
            "resources": needed,
            "count": count,
            "feasible": all(amount <= total.get(kind, 0.0) for kind, amount in needed.items()),
        }
        for name, needed, count in waiting
    ]
    return {"nodes": [_node_row(row) for row in nodes], "resources": resources, "demands": demands}


def _node_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "node_id": row["NodeID"],
        "kind": "head" if row["is_head"] else "driver's own",
        "pid": row["pid"],
        "drivers": row["drivers"],
        "uptime_s": round(time.time() - row["start_unix_s"], 1),
        "session_dir": row["session_dir"],
    }


@click.command()
@click.option("--address", help='The session directory of a node; by default as ftray.init("auto") finds it.')
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True
)
def status(address: str | None, form: str) -> None:
    """Show the node, its resources and what waits; exit with 1 when no node runs."""
    found = snapshot(find_node(address))
    if form == "json":
        click.echo(json.dumps(found, indent=2))
    elif form == "yaml":
        import yaml

        click.echo(yaml.safe_dump(found, sort_keys=False), nl=False)
    else:
        _print_tables(found)


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.2f} GiB" if name in ("memory", "object_store_memory") else f"{amount:g}"


def _print_tables(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, width=1000, highlight=False)  # lines are cut by nobody

    def show(title: str, heads: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for head in heads:
            table.add_column(head, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    nodes = [[str(v)[:12] if key == "node_id" else str(v) for key, v in n.items()] for n in found["nodes"]]
    show("Node", ["id", "kind", "pid", "drivers", "uptime (s)", "session"], nodes)
    console.print()
    amounts = [
        [name, _amount(name, r["used"]), _amount(name, r["total"])] for name, r in found["resources"].items()
    ]
    show("Resources", ["resource", "used", "total"], amounts)
    console.print()
    if not found["demands"]:
        console.print("Nothing waits for resources")
        return
    rows = [
        [
            d["name"],
            str(d["count"]),
            ", ".join(f"{name}: {_amount(name, n)}" for name, n in d["resources"].items()) or "none",
            "" if d["feasible"] else "more than the node has",
        ]
        for d in found["demands"]
    ]
    show("Waiting", ["what", "count", "needs", ""], rows)
