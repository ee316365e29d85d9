"""``ftray list``, ``get``, ``summary``, ``memory``, ``logs``, ``timeline``, ``stack``: what a session does.

Owns: the commands' arguments and looks. Each exits with 1 and a message when there is no session or nothing
of that id; what is missing is told on the error stream. Leaves to others: the answers
(``ftray.util.state``).
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from ftray._cli import output

RESOURCES = ("tasks", "actors", "objects", "nodes", "workers", "jobs", "placement-groups")
_FOLLOW_PAUSE_S = 0.2


def _resource(text: str) -> str:
    """Plural or singular, as Ray takes both."""
    plural = text if text.endswith("s") else f"{text}s"
    if plural not in RESOURCES:
        raise click.BadParameter(f"{text!r} is no resource; there are {', '.join(RESOURCES)}")
    return plural


def _filters(texts: tuple[str, ...]) -> list[tuple[str, str, str]]:
    found = []
    for text in texts:
        key, different, value = text.partition("!=")
        if not different:
            key, same, value = text.partition("=")
            if not same:
                raise click.BadParameter(f"{text!r} is no filter; use key=value or key!=value")
        found.append((key.strip().lower(), "!=" if different else "=", value.strip()))
    return found


def _told(command: Callable[..., None]) -> Callable[..., None]:
    """Errors of the state API are messages, not tracebacks."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from ftray.exceptions import NotSupportedError
        from ftray.util.state.exception import RayStateApiException

        try:
            command(*args, **kwargs)
        except (RayStateApiException, NotSupportedError, ValueError, TypeError) as error:
            raise click.ClickException(str(error)) from None

    return run


_address = click.option(
    "--address",
    envvar=["FTRAY_ADDRESS", "RAY_ADDRESS"],
    help="Directory of a session; the newest by default.",
)
_timeout = click.option(
    "--timeout", type=float, default=30.0, show_default=True, help="Seconds, for everything."
)
_format = click.option(
    "--format",
    "form",
    type=click.Choice(output.FORMATS),
    default="default",
    help="A table for people, or data.",
)


# --- list, get, summary ---------------------------------------------------------------------------


@click.command("list")
@click.argument("resource")
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Or KEY!=VALUE; repeatable."
)
@click.option("--limit", type=int, default=100, show_default=True, help="At most 10000.")
@click.option("--detail", is_flag=True, help="All fields, as YAML unless --format says otherwise.")
@_format
@_timeout
@_address
@_told
def list_command(
    resource: str,
    filters: tuple[str, ...],
    limit: int,
    detail: bool,
    form: str,
    timeout: float,
    address: str | None,
) -> None:
    """List tasks, actors, objects, nodes, workers, jobs or placement-groups."""
    from ftray.util.state import api, records

    name = _resource(resource)
    listing = api.query(name, address, _filters(filters), limit, timeout, raise_on_missing_output=False)
    columns = records.RESOURCES[name][0].list_columns(detail)
    made = [api.make(name, row, detail).asdict() for row in listing.rows]
    rows = [{column: record[column] for column in columns} for record in made]
    if form == "default" and detail:
        form = "yaml"
    if form in ("json", "yaml"):
        output.show_data(rows, form)
    else:
        output.heading("List")
        output.section("Stats")
        click.echo(f"Total: {listing.total}")
        output.section("Table")
        output.show_table(columns, [list(row.values()) for row in rows])
    output.notes(listing.notes)


@click.command("get")
@click.argument("resource")
@click.argument("id")
@_format
@_timeout
@_address
@_told
def get_command(resource: str, id: str, form: str, timeout: float, address: str | None) -> None:
    """Show everything about one task, actor, object, node, worker, job or placement group."""
    from ftray.util.state import api

    name = _resource(resource)
    found = [record.asdict() for record in api.find(name, id, address, timeout)]
    if not found:
        raise click.ClickException(
            f"there is no {name.rstrip('s')} with the id {id!r}; see `ftray list {name}`"
        )
    if form == "table":
        output.show_table(["field", "value"], [list(pair) for record in found for pair in record.items()])
    else:
        output.show_data(found if len(found) > 1 else found[0], "yaml" if form == "default" else form)


@click.command("summary")
@click.argument("resource", type=click.Choice(["tasks", "actors", "objects"]))
@_format
@_timeout
@_address
@_told
def summary(resource: str, form: str, timeout: float, address: str | None) -> None:
    """Count tasks by function, actors by class, or objects by call site."""
    from ftray.util.state import api

    found = api.summary_of(resource, address, timeout)
    if form in ("json", "yaml"):
        output.show_data(found.summary, form)
    else:
        _show_summary(resource, found.summary)
    output.notes(found.notes)


def _show_summary(resource: str, found: dict[str, Any]) -> None:
    output.heading(f"{resource.capitalize()} Summary")
    output.section("Stats")
    for key, value in found.items():
        if key not in ("summary", "summary_by"):
            click.echo(f"{key}: {output.text_of(value)}")
    output.section(f"Table (group by {found['summary_by']})")
    entries = sorted(found["summary"].items(), key=lambda item: str(item[0]))
    if resource == "tasks":
        columns = ["func_or_class_name", "state_counts", "type"]
        rows = [[e["func_or_class_name"], e["state_counts"], e["type"]] for _key, e in entries]
    elif resource == "actors":
        columns = ["class_name", "state_counts"]
        rows = [[e["class_name"], e["state_counts"]] for _key, e in entries]
    else:
        columns = ["call_site", "objects", "size_mb", "ref_types", "task_states"]
        rows = [
            [site, e["total_objects"], e["total_size_mb"], e["ref_type_counts"], e["task_state_counts"]]
            for site, e in entries
        ]
    output.show_table(columns, rows)


_MEMORY_ORDER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "size": lambda row: -row["object_size"],
    "pid": lambda row: row["pid"] or 0,
    "reference_type": lambda row: row["reference_type"],
}


@click.command("memory")
@click.option("--sort-by", type=click.Choice(list(_MEMORY_ORDER)), default="size", show_default=True)
@click.option("--limit", type=int, default=100, show_default=True, help="Objects to show, at most 10000.")
@_format
@_timeout
@_address
@_told
def memory(sort_by: str, limit: int, form: str, timeout: float, address: str | None) -> None:
    """Show who holds which objects, and how full the object store is."""
    from ftray.util.state import api
    from ftray.util.state.filters import checked_limit

    most = checked_limit(limit)
    listing, store = api.memory_of(address, timeout)
    rows = sorted(listing.rows, key=_MEMORY_ORDER[sort_by])[:most]
    facts = {
        "objects": listing.total,
        "object_bytes": sum(max(0, row["object_size"]) for row in listing.rows),
        "store_used_bytes": store["used"],
        "store_capacity_bytes": store["capacity"],
        "segments": store["segments"],
    }
    if form in ("json", "yaml"):
        output.show_data({**facts, "rows": rows}, form)
    else:
        output.heading("Object references")
        output.section("Stats")
        for key, value in facts.items():
            click.echo(f"{key}: {value}")
        output.section("Table")
        columns = ["pid", "type", "call_site", "object_size", "reference_type", "task_status", "object_id"]
        output.show_table(columns, [[row[column] for column in columns] for row in rows])
    output.notes(listing.notes)


# --- timeline and stack ---------------------------------------------------------------------------


@click.command("timeline")
@click.argument("filename", required=False, type=click.Path(dir_okay=False))
@_timeout
@_address
@_told
def timeline(filename: str | None, timeout: float, address: str | None) -> None:
    """Write what ran where and when, for chrome://tracing or Perfetto."""
    from ftray._timeline import timeline as make

    path = filename or f"ftray-timeline-{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
    try:
        make(path, address, timeout)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error}") from None
    click.echo(f"timeline written to {path}")


@click.command("stack")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds, for everything.")
@click.option("--py-spy/--no-py-spy", default=True, help="Use py-spy when it is installed.")
@click.option("--format", "form", type=click.Choice(["default", "json", "yaml"]), default="default")
@_address
@_told
def stack(timeout: float, py_spy: bool, form: str, address: str | None) -> None:
    """Show what every worker runs, since when, and the stacks of its threads, also when it hangs."""
    from ftray._stacks import stacks

    found = stacks(address, timeout, py_spy)
    if form != "default":
        output.show_data([worker.asdict() for worker in found], form)
        return
    for worker in found:
        label = f" ({worker.label})" if worker.label else ""
        click.echo(f"\n=== worker {worker.pid}{label} {worker.worker_id[:16]}")
        for name, seconds in worker.running:
            click.echo(f"running {name} for {seconds:.1f} s")
        if not worker.running:
            click.echo("idle")
        click.echo(worker.stack or f"no stack: {worker.problem}")
    if not found:
        click.echo("no workers")


# --- logs -----------------------------------------------------------------------------------------


@click.command("logs")
@click.argument("id", required=False)
@click.option(
    "--tail",
    "lines",
    type=click.IntRange(min=-1),
    default=1000,
    show_default=True,
    help="Lines at the end; -1: all.",
)
@click.option("--follow", is_flag=True, help="Go on with what is written, until the worker ends.")
@click.option("--err", "only_err", is_flag=True, help="Standard error only.")
@click.option("--out", "only_out", is_flag=True, help="Standard output only.")
@_timeout
@_address
@_told
def logs(
    id: str | None,
    lines: int,
    follow: bool,
    only_err: bool,
    only_out: bool,
    timeout: float,
    address: str | None,
) -> None:
    """List log files, or show what a worker wrote: ID is of a worker, actor or task, or a process id."""
    from ftray._cli import log_reading

    if only_err and only_out:
        raise click.UsageError("--err and --out exclude each other")
    session_dir, workers = log_reading.workers_of(address, timeout)
    if id is None:
        rows = [row for worker in workers for row in log_reading.files_of(session_dir, worker)]
        output.show_table(["pid", "worker_id", "label", "bytes", "file"], rows)
        return
    worker = log_reading.find(workers, id, address, timeout)
    streams = [stream for stream, unwanted in ((1, only_err), (2, only_out)) if not unwanted]
    files = [log_reading.LogFile(session_dir, worker["number"], stream) for stream in streams]
    for file in files:
        click.echo(file.tail(lines), nl=False)
    if follow:
        for piece in _followed(files, worker["pid"], session_dir):
            click.echo(piece, nl=False)


def _followed(files: list[Any], pid: int, session_dir: str) -> Iterator[bytes]:
    while True:
        alive = os.path.exists(f"/proc/{pid}") and os.path.isdir(session_dir)
        for file in files:
            yield from file.new()
        if not alive:
            return
        time.sleep(_FOLLOW_PAUSE_S)
