"""``ftray checkpoint``: look into checkpoint stores, and take keys back, export and remove them.

Owns: the commands' arguments, questions and looks. They work on the store alone, so they need neither a node
nor the actor's code, and unpickle nothing; `--live` asks actors too. Leaves to others: everything that is
done (``ftray.checkpoint``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ftray._cli import checkpoint_live, output
from ftray._cli import checkpoint_place as place
from ftray._cli.checkpoint_metrics import metrics

if TYPE_CHECKING:
    from ftray.checkpoint import CheckpointReader, JournalInfo, KeyInfo, SnapshotInfo

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@click.group("checkpoint")
def checkpoint() -> None:
    """List, check, take back, export and remove checkpoints."""


checkpoint.add_command(metrics)

# --- what is there --------------------------------------------------------------------------------


@checkpoint.command("ls")
@place.store
@click.option("--orphans", is_flag=True, help="Only keys of unnamed actors whose session is gone.")
@place.live
@place.address
@place.timeout
@place.as_json
@place.told
def ls(
    store: str | None, orphans: bool, live: bool, address: str | None, timeout: float, as_json: bool
) -> None:
    """List the keys of a store, who holds them, and what they take.

    The store does not know that saves fail, the actor does: with --live the state says so.
    """
    reader = place.open_store(store)
    infos = [reader.describe(key) for key in place.keys_of(reader, orphans)]
    said = checkpoint_live.ask_holders(infos, address, timeout) if live else {}
    if as_json:
        output.show_data(
            [{**_plain(info), **({"live": said.get(info.key)} if live else {})} for info in infos], "json"
        )
        return
    columns = ["key", "mode", "state", "snapshots", "newest", "age", "size", "journal", "total", "holder"]
    output.show_table(columns, [_row(info, said.get(info.key)) for info in infos])
    for key, found in said.items():
        if found["last_error"]:
            click.echo(f"problem: {key}: {found['last_error']}")
    total = sum(info.total_bytes for info in infos)
    click.echo(f"{len(infos)} keys, {_size(total)} in {reader.url}")


@checkpoint.command("show")
@click.argument("key")
@place.store
@click.option("--live", is_flag=True, help="Ask the actor, too: a named one of a node that runs.")
@place.address
@click.option("--timeout", type=click.FloatRange(min=0.0, min_open=True), default=30.0, show_default=True)
@place.as_json
@place.told
def show(key: str, store: str | None, live: bool, address: str | None, timeout: float, as_json: bool) -> None:
    """Show everything about one key: holder, history, snapshots, journal, disk use."""
    reader = place.open_store(store)
    key = place.resolve(reader, key)
    info, journal = reader.describe(key), reader.journal(key)
    found = {**_plain(info), "journal": journal._asdict() if info.mode == "exactly_once" else None}
    if info.mode == "group":
        if live:
            raise click.UsageError(f"{key} is a group: --live asks one actor, by its own key")
        found["members"] = {member: _plain(reader.describe(member)) for member in info.members}
    if live:
        found["live"] = checkpoint_live.ask(key, address, timeout)
    if as_json:
        output.show_data(found, "json")
        return
    output.section("Key")
    for name in ("key", "store", "mode", "state", "history", "history_number", "restored_from", "group"):
        if found[name] not in (None, ""):
            click.echo(f"{name}: {found[name]}")
    if info.mode == "group":
        _show_members(reader, info)
    else:
        click.echo(f"holder: {_holder(info)}")
    if info.fencing == "lease":
        click.echo("fencing: lease (the store has no conditional writes)")
    click.echo(f"bytes: {', '.join(f'{kind} {_size(n)}' for kind, n in info.bytes.items())}")
    if found["journal"] is not None:
        click.echo(
            f"journal: positions {journal.first_position} to {journal.last_position}; "
            f"{journal.calls} calls in {journal.behind} records behind the newest snapshot"
        )
    for problem in [*filter(None, [journal.error]), *journal.lost, *journal.notes, *info.failed_recoveries]:
        click.echo(f"problem: {problem}")
    _show_snapshots(info.snapshots)
    _show_recoveries(info.recoveries)
    if live:
        output.section("Actor")
        for name, value in found["live"].items():
            click.echo(f"{name}: {output.text_of(value)}")


@checkpoint.command("verify")
@click.argument("keys", nargs=-1)
@place.store
@click.option("--from", "savepoint", metavar="FILE", help="Verify a savepoint (path or URL) instead.")
@place.as_json
@place.told
def verify(keys: tuple[str, ...], store: str | None, savepoint: str | None, as_json: bool) -> None:
    """Read every byte of keys (all by default); exit status 1 if anything is not as it was written."""
    if savepoint is not None:
        if keys:
            raise click.UsageError("give keys, or --from FILE")
        from ftray.checkpoint import savepoint_info
        from ftray.checkpoint.transfers import watch

        with _progress(f"verifying {savepoint}", not as_json) as progress, watch(progress):
            info = savepoint_info(savepoint)
        _show_record(info._asdict(), as_json)
        return
    reader = place.open_store(store)
    results: list[dict[str, Any]] = []
    chosen = [place.resolve(reader, key) for key in keys] or reader.keys()
    with _progress("verifying", not as_json) as progress:
        verified = _verified(reader, chosen, progress)
    for key, infos, journal in verified:
        problems = [f"snapshot {i.id}: {i.error}" for i in infos if i.error] + journal.lost
        problems += [f"journal: {journal.error}"] if journal.error else []
        results.append(
            {"key": key, "snapshots": len(infos), "records": journal.records, "problems": problems}
        )
    if as_json:
        output.show_data(results, "json")
    else:
        for result in results:
            state = "; ".join(result["problems"]) or "whole"
            click.echo(
                f"{result['key']}: {result['snapshots']} snapshots, {result['records']} records: {state}"
            )
        if not results:
            click.echo(f"there are no keys in {reader.url}")
    if any(result["problems"] for result in results):
        sys.exit(1)


def _verified(
    reader: CheckpointReader, keys: list[str], progress: Callable[[int, int], None]
) -> list[tuple[str, list[SnapshotInfo], JournalInfo]]:
    """Read every byte of keys, and tell how far that is."""
    from ftray.checkpoint.membership import group_name
    from ftray.checkpoint.transfers import watch

    sizes = []
    for key in keys:
        used = reader.usage(key)
        sizes.append(used["snapshots"] + used["journal" if group_name(key) is None else "blobs"])
    found = []
    with watch(progress, sum(sizes)) as meter:
        for number, key in enumerate(keys, 1):
            found.append((key, reader.verify(key), reader.journal(key)))
            meter.reach(sum(sizes[:number]))
    return found


# --- what changes something -----------------------------------------------------------------------


@checkpoint.command("restore")
@click.argument("key")
@click.argument("snapshot", required=False)
@place.store
@click.option("--from", "savepoint", metavar="FILE", help="Begin from a savepoint (path or URL).")
@click.option("--without-ledger", is_flag=True, help="Forget which calls the state contains.")
@place.takeover
@place.yes
@place.as_json
@place.told
def restore(
    key: str,
    snapshot: str | None,
    store: str | None,
    savepoint: str | None,
    without_ledger: bool,
    takeover: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Take KEY back to SNAPSHOT, or begin it from a savepoint. Its actor starts from there next time.

    KEY may be that of a group, and SNAPSHOT one of its cuts: then all its members do. With --takeover members
    that live are killed, and restarted from the cut.
    """
    from ftray.checkpoint import restore as run

    if (snapshot is None) == (savepoint is None):
        raise click.UsageError("give the id of a snapshot (see `ftray checkpoint show`), or --from FILE")
    reader = place.open_store(store, may_be_new=savepoint is not None)
    if snapshot is not None:
        key = place.resolve(reader, key)
    info = reader.describe(key)
    if not yes:
        _confirm(_what_is_lost(reader, info, snapshot or str(savepoint)))
    with _progress(f"restoring {snapshot or savepoint}", not as_json) as progress:
        done = run(
            reader.url,
            key,
            snapshot,
            savepoint=savepoint,
            keep_ledger=not without_ledger,
            takeover=takeover,
            progress=progress,
        )
    if as_json:
        output.show_data(done._asdict(), "json")
        return
    if info.mode == "group":
        click.echo(f"{key} is {done.source} now: its {len(info.members)} members start from there")
        return
    click.echo(f"{key} is {done.source} now, as snapshot {done.snapshot} ({_size(done.size_bytes)})")
    if done.history_number is not None:
        kept = "" if done.ledger else "; calls made before are not known any more"
        click.echo(f"history {done.history_number}, from journal position {done.journal_position}{kept}")


def _what_is_lost(reader: CheckpointReader, info: KeyInfo, source: str) -> str:
    if not info.snapshots:
        return f"Begin {info.key} in {reader.url} from {source}?"
    if info.mode == "group":
        newest = next((i.id for i in reversed(info.snapshots) if i.counts), "none")
        held = [member for member in info.members if reader.describe(member).state == "held"]
        return (
            f"{info.key} in {reader.url}: newest cut {newest}. Members: {', '.join(info.members)}; living: "
            f"{', '.join(held) or 'none'}.\nTake them all back to {source}? What came later is given up"
        )
    journal = reader.journal(info.key)
    newest = next((i.id for i in reversed(info.snapshots) if i.counts), "none")
    behind = f" and {journal.calls} calls of the journal behind it" if journal.calls else ""
    return (
        f"{info.key} in {reader.url}: newest snapshot {newest}{behind}. Held by: {_holder(info)}.\n"
        f"Take it back to {source}? What came later is given up"
    )


@checkpoint.command("export")
@click.argument("key")
@click.argument("file")
@place.store
@click.option("--snapshot", metavar="ID", help="The newest one that counts by default.")
@click.option("--name", help="For people; that of the file by default.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@place.as_json
@place.told
def export(
    key: str,
    file: str,
    store: str | None,
    snapshot: str | None,
    name: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a snapshot of KEY to FILE (path or URL): a savepoint, which any store can be begun from."""
    from ftray.checkpoint import export as run

    reader = place.open_store(store)
    key = place.resolve(reader, key)
    with _progress(f"writing {file}", not as_json) as progress:
        info = run(
            reader.url, key, file, snapshot=snapshot, name=name, overwrite=overwrite, progress=progress
        )
    if as_json:
        output.show_data(info._asdict(), "json")
        return
    click.echo(f"snapshot {info.snapshot} of {key} is in {file} ({_size(info.size_bytes)})")
    if info.journal_behind:
        output.notes([f"{info.journal_behind} journal records behind it, which are not in the savepoint"])


@checkpoint.command("rm")
@click.argument("keys", nargs=-1)
@place.store
@click.option("--orphans", is_flag=True, help="All keys of unnamed actors whose session is gone.")
@place.takeover
@place.yes
@place.as_json
@place.told
def rm(
    keys: tuple[str, ...], store: str | None, orphans: bool, takeover: bool, yes: bool, as_json: bool
) -> None:
    """Remove keys with all that they hold. Savepoints stay."""
    if bool(keys) == orphans:
        raise click.UsageError("give keys, or --orphans")
    if orphans and takeover:
        raise click.UsageError("--takeover is for keys: orphans have no living holder")
    reader = place.open_store(store)
    if orphans:
        _remove_orphans(reader, yes, as_json)
        return
    from ftray.checkpoint import delete

    chosen = [place.resolve(reader, key) for key in keys]
    sizes = _sizes_to_remove(reader, chosen, yes)
    for key in chosen:
        delete(key, store=reader.url, takeover=takeover)
    _show_removed(sizes, {}, as_json)


@checkpoint.command("prune")
@place.store
@place.yes
@place.as_json
@place.told
def prune(store: str | None, yes: bool, as_json: bool) -> None:
    """Remove what unnamed actors of sessions that are gone have left (`ls --orphans` shows it)."""
    _remove_orphans(place.open_store(store), yes, as_json)


def _remove_orphans(reader: CheckpointReader, yes: bool, as_json: bool) -> None:
    """One that cannot be removed does not keep the others; exit status 1 says that there is such a one."""
    from ftray.checkpoint.keyinfo import remove_orphans
    from ftray.checkpoint.stores import connect

    chosen = place.keys_of(reader, True)
    sizes = _sizes_to_remove(reader, chosen, yes)
    removed, kept = remove_orphans(connect(reader.url), chosen)
    _show_removed({key: sizes[key] for key in removed}, kept, as_json)
    if kept:
        sys.exit(1)


def _sizes_to_remove(reader: CheckpointReader, chosen: list[str], yes: bool) -> dict[str, int]:
    """Ask whether these keys are to be removed, and return what they take."""
    infos = [reader.describe(key) for key in chosen]
    if infos and not yes:
        listed = "\n".join(f"  {info.key} ({_size(info.total_bytes)}, {_holder(info)})" for info in infos)
        _confirm(f"Remove from {reader.url}:\n{listed}\nfor good?")
    return {info.key: info.total_bytes for info in infos}


def _show_removed(sizes: dict[str, int], kept: dict[str, str], as_json: bool) -> None:
    freed = sum(sizes.values())
    if as_json:
        output.show_data({"removed": list(sizes), "bytes": freed, "kept": kept}, "json")
        return
    click.echo(f"removed {len(sizes)} keys, {_size(freed)}")
    output.notes([f"kept {key}: {why}" for key, why in kept.items()])


# --- shared ---------------------------------------------------------------------------------------


def _confirm(question: str) -> None:
    if not click.confirm(question, err=True):
        raise click.ClickException("nothing was changed")


def _plain(info: KeyInfo) -> dict[str, Any]:
    found = {**info._asdict(), "total_bytes": info.total_bytes}
    found["snapshots"] = [snapshot._asdict() for snapshot in info.snapshots]
    return found


def _row(info: KeyInfo, said: dict[str, Any] | None) -> list[Any]:
    counted = [snapshot for snapshot in info.snapshots if snapshot.counts]
    newest = counted[-1] if counted else None
    state = f"{info.state}, orphan" if info.orphan else info.state
    state += ", by a lease" if info.fencing == "lease" and info.state in ("held", "unknown") else ""
    state += f", {said['state']}" if said is not None else ""
    return [
        info.key,
        info.mode,
        state,
        len(counted),
        newest.id if newest else "",
        "" if info.snapshot_age_s is None else _age(info.snapshot_age_s),
        _size(newest.size_bytes) if newest else "",
        _size(info.bytes["journal"] + info.bytes["blobs"]) if info.mode == "exactly_once" else "",
        _size(info.total_bytes),
        _holder(info) if info.state == "held" else "",
    ]


def _show_members(reader: CheckpointReader, info: KeyInfo) -> None:
    for member in info.members:
        said = reader.describe(member)
        click.echo(f"member: {member}, {said.state}, {_holder(said)}")


def _holder(info: KeyInfo) -> str:
    holder = info.holder
    if info.mode == "group":
        return f"{len(info.members)} members"
    if holder is None:
        return "nobody"
    since = _time(holder["since_unix_s"] or 0)
    lives = {True: "lives", False: "has ended", None: "may live"}[holder["lives"]]
    return f"{holder['class']}, process {holder['pid']} on {holder['host']} since {since}, {lives}"


def _show_snapshots(snapshots: list[SnapshotInfo]) -> None:
    output.section("Snapshots")
    columns = ["snapshot", "counts", "captured", "calls", "size", "journal", "class", "reason", "problem"]
    rows = [
        [
            info.id,
            "yes" if info.counts else "no",
            _time(info.created_unix_s),
            info.calls,
            _size(info.size_bytes),
            info.journal_position,
            info.class_name,
            info.reason,
            info.error,
        ]
        for info in snapshots
    ]
    output.show_table(columns, rows)


def _show_recoveries(recoveries: list[dict[str, Any]]) -> None:
    if not recoveries:
        return
    output.section("Recoveries")
    columns = ["epoch", "at", "took", "from snapshot", "calls run again"]
    rows = [
        [
            each["epoch"],
            _time(each["at_unix_s"]),
            f"{'' if each['whole'] else 'more than '}{each['duration_s'] * 1e3:.1f} ms",
            each["snapshot"] or "",
            each.get("calls_replayed", ""),
        ]
        for each in recoveries
    ]
    output.show_table(columns, rows)


def _show_record(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.show_data(found, "json")
        return
    for name, value in found.items():
        if name.endswith("_unix_s"):
            name, value = name.removesuffix("_unix_s"), _time(value)
        click.echo(f"{name}: {output.text_of(value)}")


def _time(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def _size(size_bytes: float) -> str:
    for unit in _UNITS[:-1]:
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} {_UNITS[-1]}"


def _age(age_s: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if age_s >= size:
            return f"{age_s / size:.1f} {unit}"
    return f"{age_s:.0f} s"


@contextmanager
def _progress(what: str, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on the error stream where somebody can see it."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    parts = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*parts, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
