"""Store URLs: one spelling each, errors that say what is allowed, nothing loaded that nobody asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftray.checkpoint import UnsupportedStoreError
from ftray.checkpoint.stores import connect, resolve_url


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a//b/", "s3://bucket/a/b"),
        ("s3a://bucket/a b", "s3://bucket/a%20b"),
        (
            "s3://b/p?region=eu-west-1&endpoint_url=http://h:9",
            "s3://b/p?endpoint_url=http://h:9&region=eu-west-1",
        ),
        ("s3://b/p?commit_interval_ms=250", "s3://b/p?commit_interval_ms=250"),
        ("gs://b/p", "gs://b/p"),
        ("memory://x", "memory://x"),
        ("kv://app/states", "kv://app/states"),
        ("actor://ckpt?spill=/var/a%26b", "actor://ckpt?spill=/var/a%26b"),
        ("fsspec+sftp://host/x", "fsspec+sftp://host/x"),
        ("fsspec+local:///tmp/x", "fsspec+local:///tmp/x"),
    ],
)
def test_one_spelling(given: str, resolved: str) -> None:
    assert resolve_url(given) == resolved == resolve_url(resolved)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ftp://h/x", r"no store for ftp://; allowed: .*s3://bucket/prefix \(pip install 'ftray\[s3\]'\)"),
        ("s3:///x", "names nothing after s3://"),
        ("s3://key:secret@bucket/x", "credentials"),
        ("s3://bucket/../x", r"'\.\.'"),
        ("s3://b?acl=public", r"'acl=public' is not allowed .*endpoint_url=\.\.\."),
        ("s3://b?region=a&region=b", "once each"),
        ("s3://b?commit_interval_ms=soon", "milliseconds from 0 to 60000"),
        ("kv://a?x=1", "allowed, once each: nothing"),
        ("actor://a/b", "does not name a store actor"),
        ("actor://a?spill=here", "not an absolute path"),
        ("fsspec+://x", "no store for"),
    ],
)
def test_what_is_wrong_is_said(given: str, said: str) -> None:
    with pytest.raises(UnsupportedStoreError, match=said):
        resolve_url(given)


@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [("s3fs", "s3://bucket", r"ftray\[s3\]"), ("fsspec", "memory://x", r"ftray\[storage\]")],
)
def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, url: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedStoreError, match=extra):
        connect(url)


def test_a_file_system_that_fsspec_does_not_know() -> None:
    with pytest.raises(UnsupportedStoreError, match="fsspec knows no 'nonsense'"):
        connect("fsspec+nonsense://x")


def test_any_file_system_of_fsspec(tmp_path: Path) -> None:
    store = connect(f"fsspec+local://{tmp_path}/deep/store")
    assert store.claim("k", 1, b"me") and not store.claim("k", 1, b"other")
    assert connect(store.url).read_claim("k", 1) == b"me" and store.keys() == ["k"]
    store.remove("k")
    assert store.scan("k").claims == []


def test_nobody_loads_what_the_url_does_not_need(tmp_path: Path) -> None:
    program = (
        "import sys; from ftray.checkpoint import engine, Checkpointable, stores;"
        "A = type('A', (Checkpointable,), {}, store='s3://bucket/x'); engine.spec_of(A);"
        "stores.connect('file:///tmp/x');"
        "import ftray.checkpoint.stores.s3, ftray.checkpoint.stores.object_store;"
        "print(*{'fsspec', 's3fs', 'botocore', 'aiohttp', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == []
