"""What the user says of the threads of libraries counts; otherwise it is one."""

from __future__ import annotations

import pytest

from ftray._node import threads


def test_one_thread_each_when_nothing_is_said() -> None:
    environ = {"PATH": "/bin"}
    threads.limit(environ)
    assert environ.pop("PATH") == "/bin"
    assert environ["OMP_NUM_THREADS"] == environ["OPENBLAS_NUM_THREADS"] == "1"
    assert set(environ.values()) == {"1"}
    assert not threads.asked_for(environ)


def test_the_general_variable_is_overruled_by_nothing() -> None:
    """OpenBLAS and MKL would prefer a variable of their own."""
    environ = {"OMP_NUM_THREADS": "4"}
    threads.limit(environ)
    assert environ == {"OMP_NUM_THREADS": "4"}
    assert threads.asked_for(environ)


def test_a_special_variable_counts_for_its_library() -> None:
    environ = {"MKL_NUM_THREADS": "2"}
    threads.limit(environ)
    assert environ["MKL_NUM_THREADS"] == "2" and environ["OMP_NUM_THREADS"] == "1"
    assert threads.asked_for(environ)


@pytest.mark.parametrize(
    "environ", [{}, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": ""}]
)
def test_one_thread_is_no_wish_and_empty_is_unset(environ: dict[str, str]) -> None:
    assert not threads.asked_for(environ)
    threads.limit(environ)
    assert environ["OMP_NUM_THREADS"] == "1" and "" not in environ.values()
