"""An owner whose death is seen before it is reported: the error waits for the report, and names the cause."""

from __future__ import annotations

import os
import signal
import threading

import pytest

import ftray as ray
from tests.helpers.processes import state_of
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")
LONG_S = 60


@ray.remote
def owns():
    return [ray.put("x"), ray.put("y")], os.getpid()


def test_the_cause_is_named_also_if_the_report_is_late():
    """The node is stopped: the owner's socket refuses, and nobody has said why yet."""
    (ref, other), pid = ray.get(owns.remote(), timeout=LONG_S)
    node = ray.nodes()[0]["pid"]
    errors = []

    def reads(ref):
        try:
            errors.append(ray.get(ref, timeout=LONG_S))
        except Exception as error:
            errors.append(error)

    os.kill(node, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: state_of(pid) in ("Z", None), timeout_s=LONG_S)
        threads = [threading.Thread(target=reads, args=(each,)) for each in (ref, other)]
        for thread in threads:
            thread.start()
        threads[0].join(0.5)
        assert not errors, "nobody has said yet how the owner died"
    finally:
        os.kill(node, signal.SIGCONT)
    for thread in threads:
        thread.join(LONG_S)
    assert [type(error) for error in errors] == [ray.exceptions.OwnerDiedError] * 2
    assert all("SIGKILL" in str(error) for error in errors)
