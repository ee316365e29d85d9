"""A runtime environment on the node: what its text means, what a worker does about it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ftray._node import environments, hash_seeds
from ftray._node.environments import EnvironmentSetupError, enter, expanded, plan

NAME = "0123456789abcdef0123456789abcdef01234567"


def test_variables_alone_need_no_interpreter_of_their_own(tmp_path: Path) -> None:
    found = plan(json.dumps({"env_vars": {"A": "1", "RAY_TASK_MAX_RETRIES": "0"}}), str(tmp_path))
    assert (found.variables["A"], found.directory, found.paths, found.fresh) == ("1", "", [], False)


@pytest.mark.parametrize(
    "name", ["OMP_NUM_THREADS", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "PYTHONHASHSEED", "PYTHONPATH", "LANG"]
)
def test_what_is_read_at_the_start_needs_one(name: str, tmp_path: Path) -> None:
    assert plan(json.dumps({"env_vars": {"A": "1", name: "1"}}), str(tmp_path)).fresh


def test_snapshots_are_found_in_the_session(tmp_path: Path) -> None:
    (tmp_path / "envs" / NAME).mkdir(parents=True)
    uri = f"snapshot://{NAME}"
    found = plan(json.dumps({"working_dir": uri, "py_modules": [uri]}), str(tmp_path))
    assert found.directory == str(tmp_path / "envs" / NAME)
    assert found.paths == [found.directory, found.directory]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "malformed"),
        ("[1]", "malformed"),
        ('{"env_vars": {"A": 1}}', "malformed"),
        ('{"py_modules": 5}', "malformed"),
        ('{"working_dir": "/etc"}', "no snapshot"),
        ('{"working_dir": "snapshot://../../etc"}', "not on this node"),
        (json.dumps({"py_modules": [f"snapshot://{NAME}"]}), "not on this node"),
    ],
)
def test_what_cannot_be_provided_is_found_before_a_process_is_made(
    text: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentSetupError, match=reason):
        plan(text, str(tmp_path))


def test_references_are_to_what_the_node_has() -> None:
    given = {"P": "${P}:/more", "Q": "${NOT_THERE}:/x", "R": "$P ${P}${P}", "S": "${}"}
    assert expanded(given, {"P": "/old"}) == {
        "P": "/old:/more",
        "Q": ":/x",
        "R": "$P /old/old",
        "S": "${}",
    }


def test_entering_changes_directory_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    variables = {"PYTHONPATH": "/a:/b"}
    enter({"paths": [str(tmp_path)], "directory": str(tmp_path), "variables": variables, "fresh": True})
    assert os.getcwd() == str(tmp_path)
    assert sys.path == [str(tmp_path), "/a", "/b", "/elsewhere"]


class TestHashSeeds:
    def test_the_node_adds_a_seed_and_nobody_sees_it(self) -> None:
        given = '{"env_vars": {"A": "1"}}'
        for text in (given, ""):
            found = plan(environments.with_hash_seed(text, "7"), "/nowhere")
            assert (found.hash_seed, found.fresh, found.text) == ("7", True, text)
        assert plan(given, "/nowhere").hash_seed == "" and not plan(given, "/nowhere").fresh

    def test_a_session_draws_its_own_unless_the_user_has(self) -> None:
        for environ in ({}, {"PYTHONHASHSEED": ""}, {"PYTHONHASHSEED": "random"}):
            drawn = hash_seeds.chosen(environ)
            assert 0 <= int(drawn["PYTHONHASHSEED"]) < 1 << 32 and drawn != hash_seeds.chosen(environ)
        assert hash_seeds.chosen({"PYTHONHASHSEED": "0"}) == {}

    def test_ours_is_hidden_and_the_users_is_not(self) -> None:
        known = (hash_seeds.known(), hash_seeds.is_ours())
        try:
            environ = {**hash_seeds.variables("7"), "A": "1"}
            hash_seeds.hide(environ)
            assert (environ, hash_seeds.known(), hash_seeds.is_ours()) == ({"A": "1"}, "7", True)
            assert hash_seeds.inherited() == hash_seeds.variables("7")
            environ = {**hash_seeds.variables("7"), "PYTHONHASHSEED": "8"}  # by a runtime environment
            hash_seeds.hide(environ)
            assert environ == {"PYTHONHASHSEED": "8"}
            assert (hash_seeds.known(), hash_seeds.is_ours()) == ("8", False)
            hash_seeds.hide({})
            assert (hash_seeds.known(), hash_seeds.is_ours(), hash_seeds.inherited()) == ("", False, {})
        finally:
            hash_seeds._Known.seed, hash_seeds._Known.ours = known
