"""Workers' log files: bounded, private, and never a reason for output to stop."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftray._cli.log_reading import LogFile
from ftray._node import log_files, settings
from ftray._node.log_files import LogFiles, path_of


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def files(tmp_path: Path, told: list[str]) -> Iterator[LogFiles]:
    made = LogFiles(str(tmp_path), 100, told.append)
    yield made
    made.close()


def test_files_are_private(files: LogFiles, tmp_path: Path) -> None:
    files.write(1, 1, b"hello\n")
    path = Path(path_of(str(tmp_path), 1, 1))
    assert path.read_bytes() == b"hello\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_full_file_is_replaced_and_its_predecessor_kept(files: LogFiles, tmp_path: Path) -> None:
    for i in range(25):
        files.write(1, 2, b"%09d\n" % i)
    path = path_of(str(tmp_path), 1, 2)
    assert Path(path).read_bytes().splitlines() == [b"%09d" % i for i in range(20, 25)]
    assert Path(path + ".1").read_bytes().splitlines() == [b"%09d" % i for i in range(10, 20)]


def test_text_longer_than_a_file_keeps_its_end(files: LogFiles, tmp_path: Path) -> None:
    files.write(1, 1, b"x" * 300 + b"end\n")
    assert Path(path_of(str(tmp_path), 1, 1)).read_bytes() == b"x" * 96 + b"end\n"


def test_files_of_workers_that_ended_long_ago_go(files: LogFiles, tmp_path: Path) -> None:
    for number in range(log_files.MAX_ENDED + 2):
        files.write(number, 1, b"x\n")
        files.ended(number)
        files.ended(number)  # twice does no harm
    left = {path.name for path in (tmp_path / log_files.DIRECTORY).iterdir()}
    assert left == {f"worker-{n}.out" for n in range(2, log_files.MAX_ENDED + 2)}


def test_what_cannot_be_written_is_told_once(files: LogFiles, tmp_path: Path, told: list[str]) -> None:
    (tmp_path / log_files.DIRECTORY).write_text("in the way")
    files.write(1, 1, b"a\n")
    files.write(1, 1, b"b\n")
    assert len(told) == 1 and "worker 1" in told[0]


def test_no_files_when_they_may_have_no_bytes(tmp_path: Path, told: list[str]) -> None:
    LogFiles(str(tmp_path), 0, told.append).write(1, 1, b"x\n")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_follows_a_file_through_its_replacement(files: LogFiles, tmp_path: Path) -> None:
    reader = LogFile(str(tmp_path), 1, 1)
    assert reader.tail(10) == b""
    seen = b""
    for i in range(30):
        files.write(1, 1, b"%09d\n" % i)
        if i % 3 == 0:
            seen += b"".join(reader.new())
    seen += b"".join(reader.new())
    assert seen.splitlines() == [b"%09d" % i for i in range(30)]
    assert LogFile(str(tmp_path), 1, 1).tail(2) == b"%09d\n%09d\n" % (28, 29)
    assert len(LogFile(str(tmp_path), 1, 1).tail(-1).splitlines()) == 20


@pytest.mark.parametrize("name", ["FTRAY_ROTATION_MAX_BYTES", "RAY_ROTATION_MAX_BYTES"])
def test_the_size_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_files.max_bytes() == log_files.DEFAULT_MAX_BYTES
    monkeypatch.setenv(name, "77")
    assert log_files.max_bytes() == 77
    monkeypatch.setenv(name, "much")
    with pytest.raises(ValueError, match=f"{name}='much'"):
        log_files.max_bytes()


@pytest.mark.parametrize(
    ("environment", "driver_units", "worker_units"),
    [
        ({}, 131_072, 16_384),
        ({"FTRAY_task_events_report_interval_ms": "0"}, 0, 0),
        ({"RAY_task_events_report_interval_ms": "0"}, 0, 0),
        (
            {"FTRAY_task_events_report_interval_ms": "5", "RAY_task_events_report_interval_ms": "0"},
            131_072,
            16_384,
        ),
        ({"FTRAY_task_events_max_num_task_in_gcs": "100"}, 128, 128),
        ({"FTRAY_task_events_max_num_task_in_gcs": "1"}, 64, 64),
        ({"FTRAY_task_events_max_num_task_in_gcs": "0"}, 0, 0),
        ({"RAY_task_events_max_num_task_in_gcs": "9999999"}, 1 << 20, 16_384),
    ],
)
def test_how_many_records_a_ring_has(
    environment: dict[str, str], driver_units: int, worker_units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings.task_event_units(True) == driver_units
    assert settings.task_event_units(False) == worker_units


@pytest.mark.parametrize("name", ["task_events_report_interval_ms", "task_events_max_num_task_in_gcs"])
def test_nonsense_in_the_environment_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FTRAY_{name}", "-1")
    with pytest.raises(ValueError, match=f"FTRAY_{name}='-1'.*integer >= 0"):
        settings.task_event_units(True)


def test_creation_sites_are_on_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not settings.creation_sites()
    monkeypatch.setenv("RAY_record_ref_creation_sites", "1")
    assert settings.creation_sites()
    monkeypatch.setenv("FTRAY_record_ref_creation_sites", "yes")
    with pytest.raises(ValueError, match="must be 0 or 1"):
        settings.creation_sites()
