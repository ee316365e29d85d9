"""Session directories: modes, locks, sweeping, discovery, long socket paths."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ftray._node import session


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_only_this_user_gets_in(tmp_path: Path) -> None:
    made = session.create_session(str(tmp_path), 1.0)
    assert mode(made.path) == 0o700 == mode(os.path.dirname(made.path))
    assert mode(os.path.join(made.path, session.TOKEN_FILE)) == 0o600
    assert len(made.token) == session.TOKEN_BYTES and session.read_token(made.path) == made.token
    listener = session.listen_in(made.path, "x.sock")
    assert mode(os.path.join(made.path, "x.sock")) == 0o600
    listener.close()
    made.close()
    made.close()
    assert not os.path.exists(made.path)


def test_sweeping_takes_the_dead_and_leaves_the_living(tmp_path: Path) -> None:
    living, dead = (session.create_session(str(tmp_path), float(n)) for n in (1, 2))
    os.close(dead._lock_fd)  # as the kernel does when a process dies
    assert session.sweep_stale(str(tmp_path)) == [os.path.basename(dead.path)]
    assert os.path.exists(living.path) and not os.path.exists(dead.path)
    assert session.sweep_stale(str(tmp_path)) == []
    living.close()


def test_a_sweep_that_was_interrupted_is_finished_by_the_next(tmp_path: Path) -> None:
    user = session.user_directory(str(tmp_path))
    os.makedirs(os.path.join(user, ".dead-s-1", "deep"))
    assert session.sweep_stale(str(tmp_path)) == ["s-1"]
    assert os.listdir(user) == []


def test_the_newest_live_session_is_found(tmp_path: Path) -> None:
    with pytest.raises(session.SessionError, match="no running ftray node"):
        session.find_session(str(tmp_path))
    older, newer, unready = (session.create_session(str(tmp_path), float(n)) for n in (1, 2, 3))
    listeners = [session.listen_in(s.path, session.NODE_SOCKET) for s in (older, newer)]
    assert session.find_session(str(tmp_path)) == newer.path
    newer.close()
    assert session.find_session(str(tmp_path)) == older.path
    for listener in listeners:
        listener.close()
    older.close()
    unready.close()


@pytest.mark.parametrize("wrong", ["open", "file", "link"])
def test_a_directory_that_may_be_a_trap_is_refused(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / f"ftray-{os.getuid()}"
    if wrong == "open":
        path.mkdir()
        path.chmod(0o777)
    elif wrong == "file":
        path.write_text("")
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(session.SessionError, match="mode 0700"):
        session.user_directory(str(tmp_path))


def test_paths_longer_than_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    listener = session.listen_in(str(deep), "x.sock")
    client = session.connect_in(str(deep), "x.sock", 5.0)
    server, _address = listener.accept()
    client.sendall(b"hi")
    assert server.recv(2) == b"hi"
    for sock in (listener, client, server):
        sock.close()


def test_where_sessions_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTRAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert session.base_directory() == str(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert session.base_directory() in ("/tmp", "/var/tmp", "/usr/tmp")
    monkeypatch.setenv("FTRAY_TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(session.SessionError, match="FTRAY_TMPDIR"):
        session.base_directory()
    assert session.base_directory(str(tmp_path)) == str(tmp_path)


def test_tokens_of_strangers_and_broken_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(session.SessionError, match="no ftray session"):
        session.read_token(str(tmp_path / "missing"))
    made = session.create_session(str(tmp_path), 1.0)
    Path(made.path, session.TOKEN_FILE).write_bytes(b"short")
    with pytest.raises(session.SessionError, match="5 bytes"):
        session.read_token(made.path)
    made.close()
