"""Arguments of Ray's init: those that ask for nothing are taken, others say what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from ftray import _init_arguments
from ftray._init_arguments import OF_LOGGING, OF_RAY, check
from ftray.exceptions import NotSupportedError


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (harmless, _why) in OF_RAY.items() for value in harmless]
)
def test_what_asks_for_nothing_is_taken(name: str, value: Any) -> None:
    check({name: value})


@pytest.mark.parametrize("name", OF_RAY)
def test_what_asks_for_something_says_what_to_do(name: str) -> None:
    with pytest.raises(NotSupportedError, match=rf"init\({name}='wanted'\) is not supported by ftray: .+\.$"):
        check({name: "wanted"})


@pytest.mark.parametrize(
    ("name", "value"), [("include_dashboard", True), ("include_dashboard", 0), ("local_mode", 1)]
)
def test_only_the_value_itself_is_harmless(name: str, value: Any) -> None:
    with pytest.raises(NotSupportedError, match=name):
        check({name: value})


@pytest.mark.parametrize("name", OF_LOGGING)
def test_logging_is_taken_as_there_is_none(name: str) -> None:
    check({name: "anything"})


def test_what_nobody_knows_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="does not take 'num_cpu', 'x'; it takes address, num_cpus") as caught:
        check({"num_cpu": 1, "include_dashboard": True, "x": 2})
    assert _init_arguments.OWN in str(caught.value)
