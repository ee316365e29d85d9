"""Processes of different versions: what each side understands of the other, and says."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import pytest

import ftray
from ftray._node import frames as f
from ftray._node.client import NodeConnection, RegistrationError, VersionMismatch, _finish_registration
from ftray._node.protocol import PROTOCOL_VERSION, VERSION, Message, ProtocolError, version_text

REGISTER = f.Register(0, 7, b"i" * 28, VERSION, b"t" * 32, "s.sock", "space", "", b"{}")


def test_the_version_names_protocol_python_and_package() -> None:
    assert f"{PROTOCOL_VERSION}/{ftray.__version__}" == VERSION
    assert version_text("2-py3.12/0.1.0") == "ftray 0.1.0 (protocol 2, Python 3.12)"
    assert version_text("1-py3.12") == "ftray (unknown) (protocol 1, Python 3.12)"
    assert version_text("") == "ftray (unknown) (protocol (none), Python (unknown))"


def test_of_another_version_only_the_beginning_has_to_be_as_here() -> None:
    def payload(version: str, rest: bytes) -> bytes:
        return struct.pack("<BI28sH", 0, 7, b"i" * 28, len(version)) + version.encode() + rest

    for rest in (b"", b"\xff" * 3, bytes(1000)):
        found = f.Register.parse(payload("9", rest))
        assert isinstance(found, f.Register) and (found.version, found.pid) == ("9", 7)
        with pytest.raises(ProtocolError):
            f.Register.parse(payload(VERSION, rest))
    with pytest.raises(ProtocolError):
        f.Register.parse(payload("9", b"")[:-1])
    assert f.Register.parse(REGISTER.payload()) == REGISTER


@pytest.mark.parametrize(
    ("ok", "info", "error", "words"),
    [
        (1, {"version": "9-py3.9/7.0"}, VersionMismatch, "ftray 7.0 (protocol 9, Python 3.9)"),
        (0, {"version": "9-py3.9/7.0", "error": "go away"}, VersionMismatch, "ftray 7.0 (protocol 9"),
        (1, {}, VersionMismatch, "runs ftray (unknown)"),
        (0, {"version": VERSION, "error": "wrong session token"}, RegistrationError, "wrong session token"),
        (0, {"error": "an old node says why"}, RegistrationError, "an old node says why"),
    ],
)
def test_what_a_process_makes_of_the_answer(
    ok: int, info: dict[str, Any], error: type[Exception], words: str
) -> None:
    ours, theirs = socket.socketpair()
    with theirs, ours:
        answer = f.Registered(ok, 0, bytes(28), 0, "/dir", json.dumps(info).encode())
        with pytest.raises(error) as caught:
            _finish_registration(NodeConnection(ours, "/dir"), Message(answer))
        assert words in str(caught.value) and type(caught.value) is error
        assert error is RegistrationError or version_text(VERSION) in str(caught.value)
