"""What holds for every test: it sees the installed package, is of one kind, and is limited in time."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import ROOT
from tests.helpers.guard import time_limit
from tests.helpers.sync import Gate, Mailbox, Tally

# The directories of tests/, each with the marker of that name, in the order in which they run.
KINDS = ("unit", "sim", "packaging", "chaos", "functional", "cluster", "ray")
_numbers = itertools.count(1)
LIMIT_S = float(os.environ.get("FTRAY_TEST_LIMIT_S", "120"))

# Properties have the same examples in every run, and no deadline: a loaded machine is no error.
# `--hypothesis-profile=default` draws others each time, to look for new ones.
settings.register_profile(
    "ftray",
    derandomize=True,
    deadline=None,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ftray")


# Ray has an environment of its own: `make ray-tests` runs these, and `make test` a short version.
collect_ignore = [] if importlib.util.find_spec("ray") is not None else ["ray"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=("native", "ray"),
        default="native",
        help="what runs the tests of tests/functional; with ray, those that tests/ray/both.py names",
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    return ["tests/ray: not here, Ray is not installed; `make ray-tests` runs them"] if collect_ignore else []


def pytest_configure(config: pytest.Config) -> None:
    try:
        installed = importlib.util.find_spec("ftray._core") is not None
    except ModuleNotFoundError as error:
        if error.name != "ftray":
            raise
        installed = False
    if not installed:
        raise pytest.UsageError(
            f"ftray is not installed for {sys.executable}. Run `make test` (or `make unit`), "
            f"or install it there with `pip install -e '.[test]'` first."
        )
    # A shell starts what it runs in the background with SIGINT ignored, and drivers would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that do not run on Ray may need what its environment does not have."""
    if config.getoption("--engine") != "ray" or collection_path.suffix != ".py":
        return None
    from tests.ray import both

    return True if both.is_left_out(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--engine") == "ray":
        from tests.ray import both

        items[:] = both.chosen(items, config)
    for item in items:
        item.add_marker(kind_of(item.path))
    items.sort(key=lambda item: KINDS.index(kind_of(item.path)))


def pytest_collection_finish() -> None:
    """What is there now stays to the end: the collections that tests ask for need not go through it."""
    gc.collect()
    gc.freeze()


def kind_of(path: Path) -> str:
    kind = path.relative_to(Path(ROOT, "tests")).parts[0]
    if kind not in KINDS:
        raise pytest.UsageError(f"{path} is of no known kind: tests live in tests/{{{','.join(KINDS)}}}")
    return kind


@pytest.fixture(scope="session", autouse=True)
def away_from_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A child started with ``python -c`` must not find the sources of ftray in its current directory."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def limited(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test has a time limit, its setup and teardown included."""
    marker = request.node.get_closest_marker("limit")
    with time_limit(marker.args[0] if marker else LIMIT_S):
        yield


@pytest.fixture(autouse=True)
def store_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Actors that name no store have one that no other test has, and not the user's; made when it is used."""
    place = tmp_path_factory.getbasetemp() / f"store-{next(_numbers)}"
    with pytest.MonkeyPatch.context() as patch:  # a test's own is undone before `runtime` looks
        patch.setenv("FTRAY_CHECKPOINT_STORE", str(place))
        yield


@pytest.fixture
def mailbox(tmp_path: Path) -> Iterator[Mailbox]:
    box = Mailbox(tmp_path / "mailbox")
    yield box
    box.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    door = Gate(tmp_path / "gate")
    yield door
    door.open()


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(tmp_path / "tally")
