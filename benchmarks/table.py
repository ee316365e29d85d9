"""The figures for people: one line per row, ftray beside Ray and the peers, with what had to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.peers import TITLES
from benchmarks.rows.row import Row, Target, Unit, times_better
from benchmarks.runner import Figures, Results

MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "?"}
SIDE_TITLES = {"ftray": "ftray", "ray": "Ray", **TITLES}


def figure(unit: Unit, value: float | None) -> str:
    """A value with its unit, in the size that people say it."""
    if value is None:
        return "-"
    if unit is Unit.SECONDS:
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.2f} s"
    if unit is Unit.PER_S:
        return f"{value:,.0f} /s" if value >= 100 else f"{value:.3g} /s"
    return f"{value:.3g} {unit.value}"


def render(rows: Sequence[Row], sides: Sequence[str], results: Results, limits: Mapping[str, float]) -> Table:
    """The table of all rows; a failed side shows as ``failed``, a row that a side lacks as ``-``."""
    table = Table(title="Medians, taken side by side in this run", caption=_caption(limits))
    table.add_column("work")
    for side in sides:
        table.add_column(SIDE_TITLES[side], justify="right")
    for column in ("ratio", "limit", "floor", "", "goal", ""):
        table.add_column(column, justify="right" if column else "center")
    for row in rows:
        table.add_row(row.title, *_cells(row, sides, results[row.key], limits))
    return table


def _cells(
    row: Row, sides: Sequence[str], figures: Mapping[str, Figures], limits: Mapping[str, float]
) -> list[str]:
    medians = {side: figures[side].median if side in figures else None for side in sides}
    ours, ray = medians.get("ftray"), medians.get("ray")
    failed = {side for side, taken in figures.items() if taken.errors}
    cells = ["[red]failed[/]" if side in failed else figure(row.unit, medians[side]) for side in sides]
    cells.append(f"{times_better(row.unit, ours, ray):.1f}x" if ours and ray else "-")
    cells.append(figure(row.unit, limits.get(row.limit or "")))
    for target in (row.floor, row.goal):
        cells += [_target(row.unit, target), _mark(row.unit, target, ours, ray)]
    return cells


def _target(unit: Unit, target: Target | None) -> str:
    if target is None:
        return "-"
    times = f"{target.times:g}x" if target.times is not None else ""
    value = figure(unit, target.value) if target.value is not None else ""
    return f"{times} ({value})" if times and value else times or value


def _mark(unit: Unit, target: Target | None, ours: float | None, ray: float | None) -> str:
    if target is None or ours is None:
        return ""
    return MARKS[target.met(unit, ours, ray)]


def _caption(limits: Mapping[str, float]) -> str:
    trips = ", ".join(
        f"{name.removeprefix('pingpong_').replace('_', ' ')} {rate:,.0f}"
        for name, rate in limits.items()
        if name.startswith("pingpong_")
    )
    return (
        f"This machine: socket ping-pong /s: {trips}; copy into shared memory"
        f" {limits['memcpy_warm']:.1f} GB/s warm, {limits['memcpy_cold']:.1f} cold; fork and wait"
        f" {limits['fork_wait']:,.0f} /s; python starts in {limits['python_start'] * 1e3:.1f} ms,"
        f" holds {limits['python_numpy']:.0f} MB with numpy. ? = cannot be said without Ray in the run."
    )


def show(rows: Sequence[Row], sides: Sequence[str], results: Results, limits: Mapping[str, float]) -> None:
    """Print the table and, below it, every failure with its text."""
    # Not cut to 80 columns when piped into a file.
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(render(rows, sides, results, limits))
    for row in rows:
        for side, figures in results[row.key].items():
            for error in figures.errors:
                console.print(f"{row.key} on {side}: {error}", style="red", markup=False)
