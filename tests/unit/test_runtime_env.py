"""Runtime environments before they reach the node: checks, merging, snapshots of directories."""

from __future__ import annotations

import json
import os
import types
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray import _env_snapshots, _runtime_env
from ftray.exceptions import NotSupportedError
from ftray.runtime_env import RuntimeEnv

# --- checks


@pytest.mark.parametrize(
    "value, error, part",
    [
        ("env.yaml", TypeError, "must be a dict"),
        ({"env_var": {}}, ValueError, "did you mean 'env_vars'?"),
        ({"zzz": 1}, ValueError, "Allowed: env_vars"),
        ({1: 1}, ValueError, "Allowed: env_vars"),
        ({"pip": ["numpy"]}, NotSupportedError, "runtime_env['pip']"),
        ({"conda": "x"}, NotSupportedError, "runtime_env['conda']"),
        ({"container": {}}, NotSupportedError, "runtime_env['container']"),
        ({"env_vars": ["A"]}, TypeError, "dict of strings"),
        ({"env_vars": {"A": 1}}, TypeError, "['A']=1"),
        ({"env_vars": {1: "A"}}, TypeError, "must be strings"),
        ({"env_vars": {"": "A"}}, ValueError, "not empty"),
        ({"env_vars": {"A=B": "A"}}, ValueError, "'='"),
        ({"env_vars": {"A": "\0"}}, ValueError, "NUL"),
        ({"working_dir": 5}, TypeError, "must be a path"),
        ({"working_dir": ""}, ValueError, "empty"),
        ({"working_dir": "s3://bucket/x.zip"}, NotSupportedError, "remote URIs"),
        ({"py_modules": "dir"}, TypeError, "must be a list"),
        ({"py_modules": [5]}, TypeError, "must be a path"),
        ({"py_modules": [types.ModuleType("none")]}, ValueError, "'none'"),
        ({"working_dir": ".", "excludes": "*.txt"}, TypeError, "list of patterns"),
        ({"env_vars": {}, "excludes": ["*.txt"]}, ValueError, "of no use"),
    ],
)
def test_wrong_environments_are_refused_by_name(value: object, error: type[Exception], part: str) -> None:
    with pytest.raises(error) as caught:
        _runtime_env.check(value)
    assert type(caught.value) is error and part in str(caught.value)


def test_paths_become_absolute_and_nothing_is_looked_up_yet(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    checked = _runtime_env.check(
        {"working_dir": "not/there", "py_modules": [Path("m.py"), json], "env_vars": None}
    )
    assert checked["working_dir"] == str(tmp_path / "not" / "there")
    assert checked["py_modules"] == [str(tmp_path / "m.py"), os.path.dirname(json.__file__)]
    assert "env_vars" not in checked


def test_a_runtime_env_object_is_a_checked_dict() -> None:
    assert RuntimeEnv(env_vars={"A": "1"}) == {"env_vars": {"A": "1"}}
    with pytest.raises(NotSupportedError, match="pip"):
        RuntimeEnv(pip=["numpy"])
    with pytest.raises(TypeError, match="env_vars"):
        RuntimeEnv(env_vars={"A": 1})


# --- merging

VARIABLES = st.dictionaries(st.sampled_from("ABC"), st.text("xyz", max_size=2), max_size=3)


@given(VARIABLES, VARIABLES)
def test_a_childs_variables_are_merged_over_its_parents(parent, child) -> None:
    both = _runtime_env.merged({"env_vars": parent}, {"env_vars": child})
    assert both.get("env_vars", {}) == {**parent, **child}


def test_other_fields_are_replaced(tmp_path) -> None:
    uris = [f"snapshot://{digit * 40}" for digit in "123"]
    parent = json.dumps({"env_vars": {"A": "a"}, "py_modules": uris[:1], "working_dir": uris[1]})
    text = _runtime_env.text_of({"env_vars": {"B": "b"}, "py_modules": uris[2:]}, parent, str(tmp_path))
    assert json.loads(text) == {
        "env_vars": {"A": "a", "B": "b"},
        "py_modules": uris[2:],
        "working_dir": uris[1],
    }


def test_equal_environments_have_equal_texts(tmp_path) -> None:
    one = _runtime_env.text_of({"env_vars": {"A": "1", "B": "2"}}, "", str(tmp_path))
    other = _runtime_env.text_of({"env_vars": {"B": "2", "A": "1"}}, "", str(tmp_path))
    assert one == other != ""
    assert _runtime_env.text_of({"env_vars": {}}, "", str(tmp_path)) == ""


# --- what belongs to a snapshot


@pytest.mark.parametrize(
    "patterns, path, is_directory, out",
    [
        (["*.txt"], "a.txt", False, True),
        (["*.txt"], "deep/er/a.txt", False, True),
        (["*.txt"], "a.txtx", False, False),
        (["/a.txt"], "deep/a.txt", False, False),
        (["deep/a.txt"], "deep/a.txt", False, True),
        (["deep/a.txt"], "more/deep/a.txt", False, False),
        (["data/"], "data", True, True),
        (["data/"], "data", False, False),
        (["**/x"], "a/b/x", False, True),
        (["a/**/x"], "a/x", False, True),
        (["a/**"], "a/b/c", False, True),
        (["a*b"], "a/b", False, False),
        (["?.py"], "a.py", False, True),
        (["[ab].py"], "b.py", False, True),
        (["[!ab].py"], "b.py", False, False),
        (["*.txt", "!keep.txt"], "keep.txt", False, False),
        (["!keep.txt", "*.txt"], "keep.txt", False, True),
        (["# a comment", "", "  "], "# a comment", False, False),
        ([r"\#x"], "#x", False, True),
        (["a.b"], "aXb", False, False),
    ],
)
def test_patterns_mean_what_they_mean_to_git(patterns, path, is_directory, out) -> None:
    assert _env_snapshots.excluded(_env_snapshots.parse_rules(patterns), path, is_directory) is out


def fill(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "session"
    path.mkdir()
    yield str(path)
    for snapshot in (path / "envs").glob("*"):
        _env_snapshots.remove_tree(str(snapshot))


def inside(session: str, uri: str) -> Path:
    assert uri.startswith("snapshot://")
    return Path(session, "envs", uri[len("snapshot://") :])


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_snapshot_has_what_belongs_to_it_and_cannot_be_changed(tmp_path, session) -> None:
    files = {"a.py": "A", "pkg/b.py": "B", "pkg/c.log": "C", "data/d": "D", ".git/x": "", "__pycache__/y": ""}
    root = fill(tmp_path / "project", {**files, "pkg/.gitignore": "*.log\n"})
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o755)
    (root / "nowhere").symlink_to("missing")
    os.mkfifo(root / "pipe")
    snapshot = inside(session, _env_snapshots.of_working_dir(session, str(root), ["data/"]))
    assert names(snapshot) == {"a.py", "pkg/b.py", "pkg/.gitignore", "script"}
    modes = {path.stat().st_mode & 0o777 for path in [snapshot, *snapshot.rglob("*")]}
    assert modes == {0o555, 0o444, 0o544}


def test_the_name_is_the_content(tmp_path, session) -> None:
    one = _env_snapshots.of_working_dir(session, str(fill(tmp_path / "one", {"a": "1"})), [])
    same = _env_snapshots.of_working_dir(session, str(fill(tmp_path / "two", {"a": "1"})), [])
    other = _env_snapshots.of_working_dir(session, str(fill(tmp_path / "three", {"a": "2"})), [])
    renamed = _env_snapshots.of_working_dir(session, str(fill(tmp_path / "four", {"b": "1"})), [])
    assert one == same and len({one, other, renamed}) == 3
    assert len(os.listdir(os.path.join(session, "envs"))) == 3  # and nothing half made


def test_a_later_edit_makes_another_snapshot_and_leaves_the_first(tmp_path, session) -> None:
    root = fill(tmp_path / "project", {"a": "1"})
    first = _env_snapshots.of_working_dir(session, str(root), [])
    assert _env_snapshots.of_working_dir(session, str(root), []) == first
    (root / "a").write_text("22")
    second = _env_snapshots.of_working_dir(session, str(root), [])
    assert (inside(session, first) / "a").read_text() == "1"
    assert (inside(session, second) / "a").read_text() == "22"


def test_modules_keep_their_names(tmp_path, session) -> None:
    fill(tmp_path, {"pkg/__init__.py": "", "pkg/sub/m.py": "", "single.py": ""})
    package = inside(session, _env_snapshots.of_module(session, str(tmp_path / "pkg"), []))
    assert names(package) == {"pkg/__init__.py", "pkg/sub/m.py"}
    single = inside(session, _env_snapshots.of_module(session, str(tmp_path / "single.py"), []))
    assert names(single) == {"single.py"}
    with pytest.raises(NotSupportedError, match="wheels"):
        _env_snapshots.of_module(session, str(tmp_path / "x.whl"), [])


def test_zip_files_are_unpacked(tmp_path, session) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.py", "A")
        file.writestr("deep/b.py", "B")
    snapshot = inside(session, _env_snapshots.of_working_dir(session, str(archive), []))
    assert names(snapshot) == {"a.py", "deep/b.py"} and (snapshot / "deep" / "b.py").read_text() == "B"


@pytest.mark.parametrize("entry", ["../evil", "/evil", "a/../../evil"])
def test_a_zip_file_that_leaves_its_directory_is_refused(entry, tmp_path, session) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(entry, "x")
    with pytest.raises(ValueError, match="outside"):
        _env_snapshots.of_working_dir(session, str(archive), [])
    assert os.listdir(os.path.join(session, "envs")) == []


def test_places_that_cannot_be_used_are_refused(tmp_path, session) -> None:
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "bad.zip").write_text("no zip")
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "again").symlink_to(loop)
    for path, part in [
        ("missing", "does not exist"),
        ("missing.zip", "does not exist"),
        ("file.txt", "a directory or a .zip file"),
        ("bad.zip", "no zip file that can be read"),
        ("loop", "directory around it"),
    ]:
        with pytest.raises(ValueError, match=part):
            _env_snapshots.of_working_dir(session, str(tmp_path / path), [])
    with pytest.raises(ValueError, match=r"\.py and \.zip"):
        _env_snapshots.of_module(session, str(tmp_path / "file.txt"), [])


def test_a_directory_that_is_too_large_names_what_is_large(tmp_path, session, monkeypatch) -> None:
    root = fill(tmp_path / "project", {"small": "x", "model.bin": "x" * 2000})
    monkeypatch.setenv("FTRAY_RUNTIME_ENV_MAX_BYTES", "1000")
    with pytest.raises(ValueError, match=r"FTRAY_RUNTIME_ENV_MAX_BYTES.*model\.bin.*excludes"):
        _env_snapshots.of_working_dir(session, str(root), [])
    assert _env_snapshots.of_working_dir(session, str(root), ["*.bin"])
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(100_000))
    with pytest.raises(ValueError, match="zeros"):
        _env_snapshots.of_working_dir(session, str(tmp_path / "bomb.zip"), [])
    monkeypatch.setenv("FTRAY_RUNTIME_ENV_MAX_BYTES", "lots")
    with pytest.raises(ValueError, match="'lots'"):
        _env_snapshots.of_working_dir(session, str(fill(tmp_path / "other", {"a": "1"})), [])
