"""The group of all commands.

Owns: the table of commands. A command's module is imported when the command is called, or listed.
Leaves to others: every command, each in a module that the table names.
"""

from __future__ import annotations

import importlib
import os

import click

import ftray

# name of the command: "module:attribute", a click.Command
COMMANDS: dict[str, str] = {
    "checkpoint": "ftray._cli.checkpoint_commands:checkpoint",
    "get": "ftray._cli.state_commands:get_command",
    "list": "ftray._cli.state_commands:list_command",
    "logs": "ftray._cli.state_commands:logs",
    "memory": "ftray._cli.state_commands:memory",
    "stack": "ftray._cli.state_commands:stack",
    "start": "ftray._cli.start:start",
    "status": "ftray._cli.status:status",
    "stop": "ftray._cli.stop:stop",
    "summary": "ftray._cli.state_commands:summary",
    "timeline": "ftray._cli.state_commands:timeline",
}


class _LazyGroup(click.Group):
    """A group that imports a command's module when it needs the command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, attribute = where.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command), where
        return found


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(ftray.__version__, prog_name="ftray")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Start, stop and look at ftray on this machine."""
    command = ctx.invoked_subcommand
    if command not in (None, "checkpoint") and os.environ.get("FTRAY_ENGINE") == "ray":
        raise click.ClickException(
            f"`ftray {command}` is about nodes of ftray's own, and the environment variable FTRAY_ENGINE says"
            f" 'ray': on a Ray cluster use Ray's command (`ray {command}`), or unset FTRAY_ENGINE"
        )
