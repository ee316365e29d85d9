"""Reading workers' log files (see ``ftray/_node/log_files.py``) while they are written and replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from ftray._node.log_files import SUFFIXES, path_of

_LEAST_DIGITS = 8  # of the beginning of a worker's id


def workers_of(address: str | None, timeout_s: float) -> tuple[str, list[dict[str, Any]]]:
    """Return the session's directory and its workers, ended ones included."""
    from ftray.util.state.filters import checked_timeout
    from ftray.util.state.link import Link

    with Link(address, checked_timeout(timeout_s)) as link:
        return link.session_dir, [p for p in link.call("processes") if not p["is_driver"]]


def files_of(session_dir: str, worker: dict[str, Any]) -> Iterator[list[Any]]:
    """One row for each file that a worker has."""
    for stream in SUFFIXES:
        path = path_of(session_dir, worker["number"], stream)
        try:
            size_bytes = os.stat(path).st_size
        except FileNotFoundError:
            continue
        yield [worker["pid"], worker["worker_id"].hex(), worker["label"], size_bytes, path]


def find(workers: list[dict[str, Any]], id: str, address: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the worker that an id means: the newest when there are several."""
    text = id.lower()
    fits = [
        w
        for w in workers
        if text == str(w["pid"])
        or (len(text) >= _LEAST_DIGITS and w["worker_id"].hex().startswith(text))
        or (w["actor_id"] is not None and w["actor_id"].hex() == text)
    ]
    if not fits:
        from ftray.util.state import api

        ran_in = {record.worker_id for record in api.find("tasks", text, address, timeout_s)}
        fits = [w for w in workers if w["worker_id"].hex() in ran_in]
    if not fits:
        raise click.ClickException(
            f"{id!r} is no worker, actor, task or process id of this session;"
            " see `ftray logs` and `ftray list workers`"
        )
    return fits[-1]


class LogFile:
    """One stream of a worker."""

    def __init__(self, session_dir: str, number: int, stream: int) -> None:
        self._path = path_of(session_dir, number, stream)
        self._at = 0
        self._inode = 0

    def tail(self, lines: int) -> bytes:
        """Return the last lines that there are now (-1: all), those before the file was replaced included."""
        before = _read(self._path + ".1", 0)[0]
        now, self._inode = _read(self._path, 0)
        self._at = len(now)
        kept = (before + now).splitlines(keepends=True)
        return b"".join(kept if lines < 0 else kept[len(kept) - min(lines, len(kept)) :])

    def new(self) -> Iterator[bytes]:
        """Yield what was written since the last time."""
        data, inode = _read(self._path, self._at)
        if inode != self._inode:
            if self._inode:  # the file was replaced: its rest is in the predecessor
                yield _read(self._path + ".1", self._at)[0]
            self._at = 0
            self._inode = inode
            data = _read(self._path, 0)[0]
        self._at += len(data)
        yield data


def _read(path: str, at: int) -> tuple[bytes, int]:
    try:
        with open(path, "rb") as file:
            file.seek(at)
            return file.read(), os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return b"", 0
