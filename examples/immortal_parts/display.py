"""Shows a run while it goes on: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from immortal_parts.board import SERVER, WORKER
from immortal_parts.story import ROLES, Kill, Story

BARS = "▁▂▃▄▅▆▇█"
MARKS = {SERVER: "▼", WORKER: "×"}
STYLES = {SERVER: "red", WORKER: "yellow"}
WIDTH = 60
NEWEST = 5  # kills of which the panel tells more
LINE_EVERY_S = 1.0


def open_display(story: Story) -> AbstractContextManager[None]:
    """Show `story` until the block ends, and its last state then."""
    return _panel(story) if sys.stdout.isatty() else _lines(story)


@contextmanager
def _lines(story: Story) -> Iterator[None]:
    over = threading.Event()

    def report() -> None:
        while not over.wait(LINE_EVERY_S):
            print(story.summary(), flush=True)

    thread = threading.Thread(target=report, name="display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print(story.summary(), flush=True)


@contextmanager
def _panel(story: Story) -> Iterator[None]:
    from rich.live import Live

    with Live(get_renderable=_renderer(story), refresh_per_second=10):
        yield


def _renderer(story: Story) -> Callable[[], Any]:
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    def render() -> Any:
        kills = list(story.kills)
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(width=WIDTH)
        table.add_row("round", f"{story.position} of {story.rounds}, {story.elapsed_s():.1f} s")
        table.add_row("", ProgressBar(total=story.rounds, completed=story.position, width=WIDTH))
        if story.kills_wanted:
            table.add_row("", kill_marks(kills, story.rounds))
        table.add_row("accuracy", f"[cyan]{story.accuracy:.1%}[/]")
        table.add_row("", f"[cyan]{sparkline([accuracy for _s, _p, accuracy in list(story.curve)])}[/]")
        if story.kills_wanted:
            table.add_row("SIGKILL", _killed(story))
            table.add_row("recovered", _recovered(story))
            table.add_row("fed again", f"{story.redone} rounds, at most {story.deepest} after one kill")
            newest = [_event(kill) for kill in reversed(kills[-NEWEST:])]
            newest += [""] * (NEWEST - len(newest))  # always as many lines: a panel that grows would jump
            for index, line in enumerate(newest):
                table.add_row("" if index else "newest", line)
        return Panel(table, title=f"{story.title} run", expand=False)

    return render


def _killed(story: Story) -> str:
    counts = [
        f"[{STYLES[role]}]{MARKS[role]} {story.kills_of(role)} of a {name}[/]" for role, name in ROLES.items()
    ]
    return f"{len(story.kills)} of {story.kills_wanted}:  {'  '.join(counts)}"


def _recovered(story: Story) -> str:
    recoveries_s = story.recoveries_s()
    if not recoveries_s:
        return "0"
    median_ms, last_ms = statistics.median(recoveries_s) * 1e3, recoveries_s[-1] * 1e3
    return f"[green]{len(recoveries_s)}[/], median {median_ms:.0f} ms, last {last_ms:.0f} ms"


def _event(kill: Kill) -> str:
    who = f"{kill.at_s:5.1f} s [{STYLES[kill.role]}]{ROLES[kill.role]} {kill.pid}[/] in round {kill.position}"
    if kill.recovery_s is None:
        return f"{who} [bold red]died[/]"
    text = f"{who} [green]back in {kill.recovery_s * 1e3:.0f} ms[/]"
    if kill.resumed is not None and kill.resumed < kill.position:
        text += f" at {kill.resumed}"
    return text


def kill_marks(kills: list[Kill], rounds: int, width: int = WIDTH) -> str:
    """Marks to stand under the progress bar, at the rounds in which somebody died; a server's wins."""
    marks = [" "] * width
    for kill in sorted(kills, key=lambda kill: kill.role, reverse=True):
        column = min(kill.position * width // rounds, width - 1)
        marks[column] = f"[{STYLES[kill.role]}]{MARKS[kill.role]}[/]"
    return "".join(marks)


def sparkline(values: list[float], width: int = WIDTH) -> str:
    """Values between 0 and 1 as one line of bars, the newest at the right end."""
    if not values:
        return ""
    count = min(width, len(values))
    picked = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    return "".join(BARS[min(int(value * len(BARS)), len(BARS) - 1)] for value in picked)
