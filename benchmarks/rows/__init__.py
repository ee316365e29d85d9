"""All rows of the table of figures, in its order."""

from __future__ import annotations

from benchmarks.rows import actors, objects, startup, tasks
from benchmarks.rows.row import Row

ROWS: dict[str, Row] = {row.key: row for row in (*startup.ROWS, *tasks.ROWS, *actors.ROWS, *objects.ROWS)}


def select(names: str | None) -> list[Row]:
    """The rows of a comma-separated list of keys, all of them for None.

    Raises
    ------
    ValueError
        When a name is not a key; the message lists the keys.
    """
    if names is None:
        return list(ROWS.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in ROWS]
    if unknown or not wanted:
        raise ValueError(f"no such row: {', '.join(unknown) or repr(names)}; rows are {', '.join(ROWS)}")
    return [ROWS[name] for name in wanted]
