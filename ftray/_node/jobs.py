"""Jobs: one a driver, and what its workers have to know of it.

A pure table: no I/O.

Owns: numbers of jobs, their namespaces, the search path and the directory that their code runs with.
Invariants: a number is given once; in a node that a driver started, job 1 is that driver's, so that workers,
which have its environment already, need not ask for it; a job is kept while its driver runs or anything of it
may still be started.
Leaves to others: who belongs to a job (``clients``, ``workers``, ``actor_service``).
"""

from __future__ import annotations

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

OWN_JOB = 1


class Job(Record):
    """One driver's work.

    Attributes
    ----------
    anonymous
        The driver named no namespace; it has one of its own.
    sys_path, cwd
        Of the driver; [] and "" when it did not tell.
    root
        What the CallIDs of its work come from, in hexadecimal; a driver that is run again under the same
        ``job_key`` has the same.
    resumes
        It was given a ``job_key``.
    """

    job_id: int
    pid: int
    namespace: str
    anonymous: bool
    sys_path: tuple[str, ...]
    cwd: str
    start_unix_s: float
    root: str
    resumes: bool
    end_unix_s: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return everything as a dict."""
        return {name: getattr(self, name) for name in self._fields}


class Jobs:
    """Every job that still matters.

    Parameters
    ----------
    has_owner
        A driver started this node: its job gets number 1.
    """

    def __init__(self, has_owner: bool) -> None:
        self._jobs: dict[int, Job] = {}
        self._next = OWN_JOB + has_owner

    def started(
        self, pid: int, namespace: str, described: dict[str, Any], unix_time_s: float, is_owner: bool
    ) -> int:
        """A driver registered; ``described`` is what it says of itself. Return its job's number."""
        job_id = OWN_JOB if is_owner else self._next
        self._next += not is_owner
        path = tuple(str(entry) for entry in described.get("sys_path", ()))
        anonymous, cwd = bool(described.get("anonymous")), str(described.get("cwd", ""))
        root, resumes = str(described.get("root", "")), bool(described.get("resumes"))
        self._jobs[job_id] = Job(
            job_id, pid, namespace, anonymous, path, cwd, unix_time_s, root, resumes
        )
        return job_id

    def ended(self, job_id: int, unix_time_s: float, needed: Collection[int]) -> list[Job]:
        """A driver left; ended jobs that are not ``needed`` are forgotten. Return these."""
        job = self._jobs.get(job_id)
        if job is not None:
            self._jobs[job_id] = Job(**{**job.facts(), "end_unix_s": unix_time_s})
        gone = [j for j in self._jobs.values() if j.end_unix_s is not None and j.job_id not in needed]
        for other in gone:
            del self._jobs[other.job_id]
        return gone

    def get(self, job_id: int) -> Job | None:
        """Return the job, None when it is unknown or forgotten."""
        return self._jobs.get(job_id)

    def namespace_of(self, job_id: int) -> str:
        """Return the namespace of a job, "" for no job."""
        job = self._jobs.get(job_id)
        return "" if job is None else job.namespace

    def all(self) -> list[Job]:
        """Return every job that is kept, the oldest first."""
        return [self._jobs[job_id] for job_id in sorted(self._jobs)]
