"""How commands print: tables for people, JSON and YAML for programs.

Owns: the looks. A table goes to the terminal's width; into a pipe or file it is as wide as its content, so
that nothing is cut off. Leaves to others: what is printed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

FORMATS = ("default", "table", "json", "yaml")
_WIDE = 10_000


def text_of(value: Any) -> str:
    """Return a table's cell."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text_of(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table with numbered rows."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(str(number), *(escape(text_of(value)) for value in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def heading(title: str) -> None:
    """Print what the following is, and when it was so."""
    click.echo(f"======== {title}: {time.strftime('%Y-%m-%d %H:%M:%S')} ========")


def section(title: str) -> None:
    """Print the title of a part."""
    click.echo(f"\n{title}:\n{'-' * 30}")


def show_data(data: Any, form: str) -> None:
    """Print as JSON or YAML."""
    if form == "json":
        click.echo(json.dumps(data, indent=4, default=str))
        return
    import yaml

    click.echo(yaml.safe_dump(json.loads(json.dumps(data, default=str)), sort_keys=False), nl=False)


def notes(texts: Iterable[str]) -> None:
    """Tell people on the error stream what they should know."""
    for text in texts:
        click.echo(f"note: {text}", err=True)
