"""The memory monitor's parts: who ends, what is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._node.memory_meter import (
    TEST_HOOK,
    MemoryMeter,
    MeterError,
    cgroup_usage,
    machine_usage,
    private_bytes,
)
from ftray._node.memory_policy import Candidate, Victim, choose
from ftray._node.settings import integer, share

# --- who ends


def task(number: int, owner: int, began: int, retriable: bool = True) -> Candidate:
    return Candidate(number, owner, retriable, False, began)


def test_nobody_ends_when_nothing_runs() -> None:
    assert choose([]) is None


def test_of_one_owner_the_newest_ends_first_and_the_last_one_for_good() -> None:
    tasks = [task(1, 7, began=1), task(2, 7, began=3), task(3, 7, began=2)]
    assert choose(tasks) == Victim(2, final=False)
    assert choose(tasks[:1]) == Victim(1, final=True)


def test_the_owner_with_most_tasks_gives_one() -> None:
    tasks = [task(1, 7, began=9), task(2, 8, began=1), task(3, 8, began=2)]
    assert choose(tasks) == Victim(3, final=False)


def test_of_equal_owners_the_one_whose_oldest_began_last() -> None:
    tasks = [task(1, 7, 1), task(2, 7, 9), task(3, 8, 2), task(4, 8, 3)]
    assert choose(tasks) == Victim(4, final=False)


def test_what_can_be_run_again_goes_before_what_cannot() -> None:
    only = [task(1, 7, 5, retriable=False), task(2, 7, 6, retriable=False)]
    assert choose([*only, task(3, 8, 1)]) == Victim(3, final=True)
    assert choose(only) == Victim(2, final=True)


def test_an_actor_is_restarted_by_its_own_rules() -> None:
    assert choose([Candidate(1, 7, True, True, 1)]) == Victim(1, final=False)
    assert choose([Candidate(1, 7, False, True, 1)]) == Victim(1, final=False)


CANDIDATES = st.lists(
    st.builds(
        Candidate, st.integers(1, 99), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(1, 99)
    ),
    min_size=1,
    max_size=12,
    unique_by=(lambda c: c.number, lambda c: c.began),
)


@given(CANDIDATES)
def test_the_policy_holds_for_any_load(candidates: list[Candidate]) -> None:
    victim = choose(candidates)
    assert victim is not None
    (chosen,) = [c for c in candidates if c.number == victim.number]
    retriable = [c for c in candidates if c.retriable]
    assert chosen.retriable or not retriable
    if not chosen.retriable:
        assert chosen.began == max(c.began for c in candidates)
    group = [c for c in retriable if c.owner == chosen.owner] if chosen.retriable else [chosen]
    assert chosen.began == max(c.began for c in group)
    assert all(
        sum(c.owner == owner for c in retriable) <= len(group) for owner in {c.owner for c in retriable}
    )
    assert victim.final == (not chosen.is_actor and (not chosen.retriable or len(group) == 1))
    assert choose(list(reversed(candidates))) == victim  # the order of the input decides nothing


@given(CANDIDATES)
def test_every_owner_keeps_a_task_as_long_as_anybody_has_two(candidates: list[Candidate]) -> None:
    tasks = [Candidate(c.number, c.owner, True, False, c.began) for c in candidates]
    while True:
        victim = choose(tasks)
        assert victim is not None
        if victim.final:
            break
        tasks = [c for c in tasks if c.number != victim.number]
        assert {c.owner for c in tasks} == {c.owner for c in candidates}
    assert len(tasks) == len({c.owner for c in tasks})


# --- what is read


def test_page_cache_is_not_used_memory() -> None:
    v2 = b"anon 5\nfile 900\ninactive_file 300\nactive_file 100\n"
    assert cgroup_usage(b"2000\n", b"1000\n", v2) == (600, 2000)
    v1 = b"cache 1\ninactive_file 1\nactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n"
    assert cgroup_usage(b"2000\n", b"1000\n", v1) == (500, 2000)
    assert cgroup_usage(b"max\n", b"1000\n", v2) is None
    assert cgroup_usage(b"9223372036854771712\n", b"1000\n", v1) is None
    assert machine_usage(b"MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n") == (
        600 << 10,
        1000 << 10,
    )


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """A machine with 1000 kB, half of them used, in a cgroup with room for 400 kB."""
    group = tmp_path / "cgroup" / "job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{400 << 10}\n")
    (group / "memory.current").write_text(f"{100 << 10}\n")
    (group / "memory.stat").write_text("anon 0\ninactive_file 0\nactive_file 0\n")
    (tmp_path / "own").write_text("0::/job\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 500 kB\n")
    return {
        "cgroup_root": str(tmp_path / "cgroup"),
        "own_cgroup": str(tmp_path / "own"),
        "meminfo": str(tmp_path / "meminfo"),
    }


def test_the_limit_that_is_closest_counts(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TEST_HOOK, raising=False)
    meter = MemoryMeter(**machine)
    assert meter.read() == (500 << 10, 1000 << 10)
    with open(os.path.join(machine["cgroup_root"], "job", "memory.current"), "r+") as file:
        file.write(f"{390 << 10}\n")
    assert meter.read() == (390 << 10, 400 << 10)  # seen through the open descriptor
    meter.close()
    with pytest.raises(MeterError):
        meter.read()


def test_this_machine_can_be_read_and_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TEST_HOOK, raising=False)
    meter = MemoryMeter()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        used, total = meter.read()
        assert 0 < used < total
    assert len(os.listdir("/proc/self/fd")) == before
    meter.close()
    assert private_bytes(os.getpid()) > 1 << 20
    assert private_bytes(1 << 22) == 0


def test_the_hook_of_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meter"
    monkeypatch.setenv(TEST_HOOK, str(path))
    meter = MemoryMeter()
    assert meter.read() == (0, 1)
    path.write_text("96 100")
    assert meter.read() == meter.read() == (96, 100)
    path.write_text("once 97 100")
    assert (meter.read(), meter.read()) == ((97, 100), (0, 1))
    path.write_text("much")
    with pytest.raises(MeterError, match=TEST_HOOK):
        meter.read()


# --- settings


def test_settings_have_our_name_and_rays() -> None:
    assert integer("memory_monitor_refresh_ms", 250, 0, {}) == 250
    assert integer("a", 1, 0, {"RAY_a": "5"}) == 5
    assert integer("a", 1, 0, {"RAY_a": "5", "FTRAY_a": "6"}) == 6
    assert share("b", 0.95, {"RAY_b": "0.5"}) == 0.5


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5"])
def test_wrong_integers_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="RAY_a=.*integer >= 0"):
        integer("a", 1, 0, {"RAY_a": text})


@pytest.mark.parametrize("text", ["", "x", "0", "1.5", "-0.1", "nan"])
def test_wrong_shares_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="FTRAY_b=.*at most 1"):
        share("b", 0.95, {"FTRAY_b": text})
