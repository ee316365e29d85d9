"""Settings from the environment that every process of a session reads for itself.

``FTRAY_<name>``, or Ray's ``RAY_<name>`` where Ray documents one. Errors name the variable, what it says and
what is allowed.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_MAX_TASK_EVENTS = 100_000
DEFAULT_MAX_LINEAGE_BYTES = 1_000_000_000
MOST_BYTES = 2**63 - 1
DEFAULT_SPIN_US = 40
# A driver's ring has room for all that is remembered; a worker's, whose own tasks are fewer, for these.
WORKER_UNITS = 16_384
MAX_UNITS = 1 << 20
_LEAST_UNITS = 64


def _find(name: str, environ: Mapping[str, str] | None = None) -> tuple[str, str | None]:
    for prefix in ("FTRAY_", "RAY_"):
        text = (os.environ if environ is None else environ).get(prefix + name)
        if text is not None:
            return prefix + name, text
    return "", None


def max_task_events() -> int:
    """Return how many task attempts are remembered: ``FTRAY_task_events_max_num_task_in_gcs``.

    Raises
    ------
    ValueError
        Not an integer of at least 0.
    """
    return integer("task_events_max_num_task_in_gcs", DEFAULT_MAX_TASK_EVENTS, 0, meaning=" (0: none)")


def task_event_units(is_driver: bool) -> int:
    """Return how many records this process's ring has, a power of two; 0 when there shall be none.

    None with ``FTRAY_task_events_report_interval_ms=0``. Any other interval means yes: nothing is reported at
    intervals, records are there for who asks.

    Raises
    ------
    ValueError
        A variable is not an integer of at least 0.
    """
    interval_ms = integer("task_events_report_interval_ms", 1000, 0, meaning=" (0: no task events)")
    wanted = max_task_events()
    if not interval_ms or not wanted:
        return 0
    wanted = min(wanted if is_driver else min(wanted, WORKER_UNITS), MAX_UNITS)
    return max(_LEAST_UNITS, 1 << (wanted - 1).bit_length())


def spin_us() -> int:
    """Return how long a thread that waits watches shared memory before it sleeps: ``FTRAY_SPIN_US``.

    Raises
    ------
    ValueError
        Not an integer of at least 0.
    """
    return integer("SPIN_US", DEFAULT_SPIN_US, 0, meaning=" (0: never)")


def creation_sites() -> bool:
    """Whether this process records which line made an object: with ``FTRAY_record_ref_creation_sites=1``.

    Raises
    ------
    ValueError
        Neither 0 nor 1.
    """
    variable, text = _find("record_ref_creation_sites")
    if text in (None, "", "0"):
        return False
    if text != "1":
        raise _wrong(variable, text, "0 or 1")
    return True


def _wrong(variable: str, text: str, allowed: str) -> ValueError:
    return ValueError(f"the environment variable {variable}={text!r} is not valid: it must be {allowed}")


def integer(
    name: str, default: int, lowest: int, environ: Mapping[str, str] | None = None, *, meaning: str = ""
) -> int:
    """Return a setting that is an integer of at least ``lowest``; ValueError when it is none.

    ``meaning`` is put behind what is allowed.
    """
    variable, text = _find(name, environ)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise _wrong(variable, text, f"an integer >= {lowest}{meaning}") from None
    if value < lowest:
        raise _wrong(variable, text, f"an integer >= {lowest}{meaning}")
    return value


def share(name: str, default: float, environ: Mapping[str, str] | None = None) -> float:
    """Return a setting that is a number in (0, 1]; ValueError when it is none."""
    variable, text = _find(name, environ)
    if text is None:
        return default
    value = _number(text)
    if not 0 < value <= 1:
        raise _wrong(variable, text, "a number above 0 and at most 1")
    return value


def seconds(name: str, default: float) -> float:
    """Return a setting that is a number of seconds, of at least 0; ValueError when it is none."""
    variable, text = _find(name)
    if text is None:
        return default
    value = _number(text)
    if not value >= 0:
        raise _wrong(variable, text, "a number of seconds of at least 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _switch(name: str) -> bool:
    """Return a setting that is on unless it is turned off; ValueError when it is something else."""
    variable, text = _find(name)
    words = {None: True, "1": True, "true": True, "0": False, "false": False}
    value = words.get(text if text is None else text.lower())
    if value is None:
        raise _wrong(variable, str(text), "0, 1, false or true")
    return value


def spilling() -> tuple[bool, str, str | None]:
    """Return whether objects are spilled, and which variable says where to, if one does, and its text.

    ``FTRAY_automatic_object_spilling_enabled`` (0, 1, false or true) and ``FTRAY_object_spilling_directory``.

    Raises
    ------
    ValueError
        The first variable has another value.
    """
    return _switch("automatic_object_spilling_enabled"), *_find("object_spilling_directory")


def lineage() -> tuple[bool, int]:
    """Return whether lost values are made again, and how many bytes are remembered for that.

    ``FTRAY_lineage_pinning_enabled`` (0, 1, false or true) and ``FTRAY_max_lineage_bytes``.

    Raises
    ------
    ValueError
        A variable has another value.
    """
    enabled = _switch("lineage_pinning_enabled")
    meaning = " (0: nothing is remembered)"
    max_bytes = integer("max_lineage_bytes", DEFAULT_MAX_LINEAGE_BYTES, 0, meaning=meaning)
    return enabled, min(max_bytes, MOST_BYTES)
