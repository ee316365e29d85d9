"""``ftray stop``: end this user's nodes."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill at once; actors do not save their state.")
@click.option(
    "-g",
    "--grace-period",
    type=click.FloatRange(min=0),
    default=16.0,
    show_default=True,
    help="Seconds that a node may take to end before it is killed.",
)
@click.option("--temp-dir", help="Where the sessions are; FTRAY_TMPDIR or the system's directory by default.")
def stop(force: bool, grace_period: float, temp_dir: str | None) -> None:
    """End all nodes of this user: the head, and those that drivers have started for themselves."""
    from ftray._node import running, session

    try:
        base = session.base_directory(temp_dir)
        nodes = running.running_nodes(base)
    except session.SessionError as error:
        raise click.ClickException(str(error)) from None
    if not nodes:
        click.echo("no node of this user runs")
    failed = False
    for node in nodes:
        what = "the head" if node.is_head else "a driver's node"
        try:
            how = running.end_node(node, 0.0 if force else grace_period)
        except (running.NotEndedError, OSError) as error:
            click.echo(f"{what}, process {node.pid}: {error}", err=True)
            failed = True
        else:
            after = f" after {grace_period:g} s" if how == "killed" and not force else ""
            said = "had ended already" if how == "gone" else f"{how}{after}"
            click.echo(f"{what}, process {node.pid}: {said} ({node.session_dir})")
    sys.exit(failed)
