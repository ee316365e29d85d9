"""The S3 server of the tests: started when the first test asks for it, ended with the last one here.

And: saves by count wait for nothing here, and no replay is a long one, or how busy the machine is would
decide which snapshots there are.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from ftray.checkpoint import replay
from ftray.checkpoint.options import DEFAULTS
from ftray.checkpoint.stores.s3 import close_clients
from tests.helpers.faulty_proxy import FaultyProxy
from tests.helpers.s3_server import ENVIRONMENT, S3Server, s3_server

from .once_support import compiled_reruns


@pytest.fixture(autouse=True)
def snapshots_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test gives `save_share` or `REPLAY_BOUND_S` itself."""
    monkeypatch.setitem(DEFAULTS, "save_share", 1.0)
    monkeypatch.setattr(replay, "REPLAY_BOUND_S", 3600.0)


@pytest.fixture(params=["toolkit", "engine"])
def who_runs_plain_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """What uses this must hold whoever runs plain calls again: the toolkit, or the engine's compiled part."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "engine":
            compiled_reruns(patch)
        yield


@pytest.fixture(scope="package")
def s3() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        with s3_server() as server:
            yield server
            close_clients()
            gc.collect()  # what others count later is not to change by what is left of this


@pytest.fixture
def s3_url(s3: S3Server) -> str:
    return f"s3://{s3.new_bucket()}/some/prefix?endpoint_url={s3.endpoint}"


@pytest.fixture(scope="package")
def one_proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.host, s3.port) as proxy:
        yield proxy


@pytest.fixture
def s3_proxy(one_proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """Between the tests and the server; does what the test scripts. One for all: a new client is costly."""
    yield one_proxy
    one_proxy.heal()
    one_proxy.log.clear()
