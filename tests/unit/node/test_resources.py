"""Amounts and what this machine offers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._node import amounts
from ftray._node import resources as r


def test_amounts_are_exact() -> None:
    tenth = amounts.fixed_point([("CPU", 0.1)])["CPU"]
    assert tenth * 10 == amounts.fixed_point([("CPU", 1)])["CPU"]
    assert amounts.fixed_point([("CPU", 0.0)]) == {}


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf"), 0.00001])
def test_amounts_that_cannot_be(amount: float) -> None:
    with pytest.raises(amounts.ResourceError, match="chip"):
        amounts.fixed_point([("chip", amount)])


def test_a_resource_twice_or_without_a_name() -> None:
    for wrong in ([("a", 1.0), ("a", 1.0)], [("", 1.0)]):
        with pytest.raises(amounts.ResourceError):
            amounts.fixed_point(wrong)


@given(st.floats(0.0001, 1e9))
def test_back_to_floats(amount: float) -> None:
    assert amounts.as_floats(amounts.fixed_point([("x", amount)]))["x"] == pytest.approx(amount, abs=0.0001)


def test_what_is_lacking_is_described_with_both_amounts() -> None:
    needed, total = amounts.fixed_point([("CPU", 4), ("GPU", 0.5)]), amounts.fixed_point([("CPU", 2)])
    assert amounts.lacking(needed, total) == ["CPU", "GPU"]
    assert amounts.describe(needed, total) == "CPU: 4 asked, 2 in total, GPU: 0.5 asked, 0 in total"


def cgroup(tmp_path: Path, lines: str, files: dict[str, str]) -> tuple[str, str]:
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    proc = tmp_path / "cgroup"
    proc.write_text(lines)
    return str(tmp_path / "fs"), str(proc)


def test_cgroup_v2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    root, proc = cgroup(
        tmp_path,
        "0::/a/b\n",
        {
            "a/cpu.max": "150000 100000\n",
            "a/b/cpu.max": "max 100000\n",
            "a/b/memory.max": "1000\n",
            "a/memory.max": "max\n",
        },
    )
    assert r.cgroup_cpus(root, proc) == 1.5
    assert r.cgroup_memory_bytes(root, proc) == 1000


def test_cgroup_v1(tmp_path: Path) -> None:
    root, proc = cgroup(
        tmp_path,
        "3:cpu,cpuacct:/x\n4:memory:/x\n",
        {
            "cpu/x/cpu.cfs_quota_us": "200000",
            "cpu/x/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/x/memory.limit_in_bytes": "4096",
            "memory/memory.limit_in_bytes": str(2**63 - 4096),
        },
    )
    assert r.cgroup_cpus(root, proc) == 2.0
    assert r.cgroup_memory_bytes(root, proc) == 4096


def test_no_limits(tmp_path: Path) -> None:
    root, proc = cgroup(tmp_path, "0::/\n", {})
    assert r.cgroup_cpus(root, proc) is None and r.cgroup_memory_bytes(root, proc) is None


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= r.count_cpus() <= len(os.sched_getaffinity(0))
    assert r.memory_limit_bytes() > 1 << 20
    assert r.oom_kill_count() >= 0
    for visible, count in (("0,1", 2), ("", 0), ("-1", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert r.count_gpus() == count
