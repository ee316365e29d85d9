"""Each environment variable that the documents list refuses what is wrong: by name, with what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray import _long_waits
from ftray.checkpoint import options
from tests import ROOT
from tests.helpers import documents


def init() -> None:
    ray.init(num_cpus=1)


def decorate() -> None:
    ray.remote(lambda: 1)


def submit_a_directory() -> None:
    with ray.init(num_cpus=1):
        ray.remote(runtime_env={"working_dir": "."})(lambda: 1).remote()


def derive() -> None:
    type("Stored", (ray.Checkpointable,), {})


def compat() -> None:
    from ftray import compat

    compat.install()


NUMBER = ["", "many", "1.5", "-2"]
# What is wrong, and what reads it.
WRONG: dict[str, tuple[list[str], Callable[[], Any]]] = {
    "FTRAY_TASK_MAX_RETRIES": (NUMBER, decorate),
    "RAY_TASK_MAX_RETRIES": (NUMBER, decorate),
    "FTRAY_HANG_TIMEOUT_S": (["", "soon", "-1", "nan"], init),
    "FTRAY_ADDRESS": (["/nowhere"], lambda: ray.init()),
    "RAY_ADDRESS": (["/nowhere"], lambda: ray.init()),
    "FTRAY_memory_monitor_refresh_ms": (NUMBER, init),
    "FTRAY_memory_usage_threshold": (["much", "0", "1.5", "nan"], init),
    "FTRAY_task_oom_retries": (NUMBER, init),
    "FTRAY_task_oom_retry_delay_base_ms": ([*NUMBER, "0"], init),
    "FTRAY_idle_worker_killing_time_threshold_ms": ([*NUMBER, "0"], init),
    "FTRAY_RUNTIME_ENV_MAX_BYTES": (["0", "1 MB"], submit_a_directory),
    "FTRAY_TMPDIR": (["/nowhere"], init),
    "FTRAY_ENGINE": (["ray"], compat),
    "FTRAY_task_events_report_interval_ms": (NUMBER, init),
    "FTRAY_task_events_max_num_task_in_gcs": (NUMBER, init),
    "FTRAY_record_ref_creation_sites": (["yes", "2"], init),
    "FTRAY_ROTATION_MAX_BYTES": (NUMBER, init),
    "RAY_ROTATION_MAX_BYTES": (NUMBER, init),
    "FTRAY_SPIN_US": (NUMBER, init),
    "FTRAY_max_lineage_bytes": (NUMBER, init),
    "RAY_max_lineage_bytes": (NUMBER, init),
    "FTRAY_lineage_pinning_enabled": (["", "yes", "2"], init),
    "RAY_lineage_pinning_enabled": (["", "yes", "2"], init),
    "FTRAY_object_spilling_directory": (["", "/proc/nowhere", "nosuch://place"], init),
    "RAY_object_spilling_directory": (["", "/proc/nowhere", "nosuch://place"], init),
    "FTRAY_automatic_object_spilling_enabled": (["", "yes", "2"], init),
    "RAY_automatic_object_spilling_enabled": (["", "yes", "2"], init),
    "FTRAY_CHECKPOINT_STORE": (["nonsense://place"], derive),
}
SAID_AS = {"FTRAY_CHECKPOINT_STORE": "store"}
# Any text is taken: the name of a file or a device, a switch that is on or not, a library's own variable.
ANY_TEXT = {
    "CUDA_VISIBLE_DEVICES",
    "FTRAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    "FTRAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",
    "FTRAY_TEST_MEMORY_METER",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
}
# Read by workers: when an actor is made or leaves.
IN_WORKERS = {"FTRAY_CHECKPOINT_FINAL_TIMEOUT_S", "FTRAY_CHECKPOINT_VERIFY", "FTRAY_LONG_WAIT_S"}


def test_every_variable_has_wrong_values() -> None:
    rows = documents.table(Path(ROOT, "docs/api.md").read_text(encoding="utf-8"), "variable")
    named = {name for cells in rows for name in documents.named(cells[0])} - {"RAY_"}
    assert named == set(WRONG) | ANY_TEXT | IN_WORKERS


@pytest.mark.parametrize("variable", [options.FINAL_TIMEOUT_VARIABLE, _long_waits.LONG_VARIABLE])
@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_seconds_that_workers_read(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=f"{variable}='{text}' is not valid: .* seconds, more than 0"):
        options.seconds_from_environment(variable, 2.0)
    monkeypatch.setenv(variable, "")
    assert options.seconds_from_environment(variable, 2.0) == 2.0


@pytest.mark.usefixtures("no_runtime")
@pytest.mark.parametrize("variable", WRONG)
def test_wrong_values(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, read = WRONG[variable]
    for text in texts:
        monkeypatch.setenv(variable, text)
        with pytest.raises((ValueError, RuntimeError, ConnectionError)) as caught:
            read()
        assert SAID_AS.get(variable, variable) in str(caught.value) and text in str(caught.value)
        assert not ray.is_initialized()
