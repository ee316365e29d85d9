"""The table of jobs."""

from __future__ import annotations

from ftray._node.jobs import OWN_JOB, Jobs

DESCRIBED = {"anonymous": True, "sys_path": ["/a", "/b"], "cwd": "/c", "of a later version": 1}


def test_the_driver_that_started_the_node_has_the_first_number_whoever_comes_first() -> None:
    jobs = Jobs(has_owner=True)
    assert jobs.started(7, "x", {}, 1.0, is_owner=False) == OWN_JOB + 1
    assert jobs.started(8, "y", {}, 2.0, is_owner=True) == OWN_JOB
    assert jobs.started(9, "z", {}, 3.0, is_owner=False) == OWN_JOB + 2
    assert [job.pid for job in jobs.all()] == [8, 7, 9]


def test_a_head_has_no_owner() -> None:
    jobs = Jobs(has_owner=False)
    assert jobs.started(7, "x", {}, 1.0, is_owner=False) == 1


def test_what_workers_ask_for() -> None:
    jobs = Jobs(has_owner=False)
    number = jobs.started(7, "space", DESCRIBED, 1.0, is_owner=False)
    job = jobs.get(number)
    assert job is not None
    assert (job.namespace, job.anonymous, job.sys_path, job.cwd) == ("space", True, ("/a", "/b"), "/c")
    assert job.facts()["sys_path"] == ("/a", "/b")
    assert jobs.namespace_of(number) == "space"
    assert jobs.get(99) is None and jobs.namespace_of(0) == ""


def test_a_job_is_kept_as_long_as_something_of_it_may_start() -> None:
    jobs = Jobs(has_owner=False)
    first, second = (jobs.started(pid, "", {}, 1.0, is_owner=False) for pid in (1, 2))
    jobs.ended(first, 5.0, needed={first})  # it left a detached actor
    kept = jobs.get(first)
    assert kept is not None and kept.end_unix_s == 5.0
    jobs.ended(second, 6.0, needed=set())
    assert jobs.all() == []
    assert jobs.started(3, "", {}, 7.0, is_owner=False) == second + 1
    jobs.ended(99, 8.0, needed=set())
    assert len(jobs.all()) == 1


def test_jobs_that_are_over_are_told_once() -> None:
    jobs = Jobs(has_owner=False)
    first, second = (jobs.started(pid, "", {}, 1.0, is_owner=False) for pid in (1, 2))
    assert jobs.ended(first, 5.0, needed={first}) == [], "something of it still runs"
    assert [job.job_id for job in jobs.ended(first, 5.0, needed=set())] == [first]
    assert jobs.ended(99, 6.0, needed=set()) == []
    assert [job.job_id for job in jobs.ended(second, 7.0, needed=set())] == [second]
