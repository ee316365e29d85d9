"""The snapshot file and the capture that fills it."""

from __future__ import annotations

import io
import pickle
import random
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.checkpoint import CheckpointCaptureError, CheckpointFormatError, capture, format

from .make_golden import FIELDS, STATE

GOLDEN = Path(__file__).parent / "golden"


def encoded(*segments: bytes) -> bytes:
    return b"".join(format.encode(FIELDS, [[s[:9], s[9:]] for s in segments]))


def joined(captured: capture.Captured) -> list[bytearray]:
    """The segments as a reader of the file gets them."""
    return [bytearray().join(segment) for segment in captured.segments]


class TestFormat:
    @pytest.mark.parametrize(("file", "version"), [("v1.ckpt", 1), ("v2.ckpt", 2)])
    def test_golden(self, file: str, version: int) -> None:
        path = GOLDEN / file
        with path.open("rb") as opened:
            header, segments = format.read(opened)
        assert {k: header.fields[k] for k in FIELDS} == FIELDS and header.version == version
        assert header.segments == [len(s) for s in segments] and len(segments) == 2
        assert capture.load(segments) == STATE
        with path.open("rb") as opened:
            assert format.verify(opened) == header
        raw = path.read_bytes()
        assert raw[:8] == b"\x89FTCKP\r\n" and raw[8:10] == bytes([version, 0]) and raw[-8:] == b"FTCKPEND"

    def test_every_changed_bit_of_an_old_file_is_seen(self) -> None:
        raw = (GOLDEN / "v1.ckpt").read_bytes()
        for position in range(0, len(raw), 7):
            changed = bytearray(raw)
            changed[position] ^= 1 << (position % 8)
            for check in (format.read, format.verify):
                with pytest.raises(CheckpointFormatError):
                    check(io.BytesIO(bytes(changed)))

    def test_a_digest_of_another_version_is_refused(self) -> None:
        raw = (GOLDEN / "v1.ckpt").read_bytes()
        start = raw[:8] + b"\x02" + raw[9:28]
        claims = start + zlib.crc32(start).to_bytes(4, "little") + raw[32:]
        with pytest.raises(CheckpointFormatError, match="digest 'sha256'; format version 2 has crc64"):
            format.verify(io.BytesIO(claims))

    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
    @settings(max_examples=50)
    def test_what_is_written_is_read(self, segments: list[bytes]) -> None:
        header, read = format.read(io.BytesIO(encoded(*segments)))
        assert read == segments and header.fields["key"] == "golden/counter"
        assert header.payload_offset % 64 == 0

    def test_every_changed_bit_is_seen(self) -> None:
        raw = encoded(b"x" * 70, b"", b"y" * 64)
        for position in range(len(raw)):
            changed = bytearray(raw)
            changed[position] ^= 1 << (position % 8)
            for check in (format.read, format.verify):
                with pytest.raises(CheckpointFormatError):
                    check(io.BytesIO(bytes(changed)))

    def test_every_truncation_and_appended_byte_is_seen(self) -> None:
        raw = encoded(b"x" * 70, b"y" * 64)
        for end in range(len(raw)):
            with pytest.raises(CheckpointFormatError):
                format.read(io.BytesIO(raw[:end]))
        with pytest.raises(CheckpointFormatError, match="bytes long"):
            format.read(io.BytesIO(raw + b"\0"))

    def test_a_hole_of_zeros_is_seen(self) -> None:
        """What a file looks like whose blocks were allocated and never written."""
        raw = encoded(random.Random(1).randbytes(20_000))
        with pytest.raises(CheckpointFormatError, match="CRC-64"):
            format.read(io.BytesIO(raw[:8192] + bytes(4096) + raw[12288:]))

    def test_a_later_format_is_named(self) -> None:
        raw = encoded(b"x")
        start = raw[:8] + b"\x03" + raw[9:28]
        with pytest.raises(CheckpointFormatError, match=r"version 3; this release reads versions 1 to 2"):
            format.read(io.BytesIO(start + zlib.crc32(start).to_bytes(4, "little") + raw[32:]))

    def test_records(self) -> None:
        raw = format.encode_record({"a": 1, "ü": [2]})
        assert format.decode_record(raw) == {"a": 1, "ü": [2]}
        for position in range(len(raw) - 1):
            changed = bytearray(raw)
            changed[position] ^= 1
            with pytest.raises(CheckpointFormatError):
                format.decode_record(bytes(changed))
        with pytest.raises(CheckpointFormatError):
            format.decode_record(b"")


class Holder:
    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


class TestCapture:
    def test_large_buffers_are_copied_at_once(self) -> None:
        capturer = capture.StateCapturer()
        big, small = np.arange(100_000.0), np.arange(10.0)
        captured = capturer.capture({"big": big, "small": small, "text": "t"})
        assert len(captured.segments) == 2 and captured.size_bytes > big.nbytes
        big[:] = -1
        small[:] = -1
        state: Any = capture.load(joined(captured))
        assert state["big"][99_999] == 99_999.0 and state["small"][9] == 9.0
        state["big"][0] = 5  # restored arrays can be written to

    def test_memory_is_reused_and_given_back(self) -> None:
        capturer = capture.StateCapturer()
        capturer.capture(np.zeros(8 << 20, np.uint8))
        memory = capturer._arena._memory
        capturer.capture(np.ones(8 << 20, np.uint8))
        assert capturer._arena._memory is memory
        capturer.capture(np.ones(20_000, np.uint8))
        assert len(capturer._arena._view) == 2 << 20

    def test_many_sizes(self) -> None:
        capturer, rng = capture.StateCapturer(), random.Random(3)
        for _ in range(30):
            state = [
                np.frombuffer(rng.randbytes(rng.choice([0, 9, 16_384, 300_001])), np.uint8) for _ in range(5)
            ]
            copy: Any = capture.load(joined(capturer.capture(state)))
            assert all((a == b).all() for a, b in zip(state, copy, strict=True))

    def test_large_bytes_are_not_copied_and_bytearrays_are(self) -> None:
        text, data, array = "ü" * 200_000, bytes(range(256)) * 2000, bytearray(300_000)
        state = {"text": text, "data": data, "array": array, "n": 1}
        captured = capture.StateCapturer().capture(state)
        assert any(piece is data for piece in captured.segments[0])
        array[:] = b"x" * 300_000
        again: Any = capture.load(joined(captured))
        assert again == {"text": text, "data": data, "array": bytearray(300_000), "n": 1}

    def test_temporary_arrays_live_until_copied(self) -> None:
        class Lazy:
            def __reduce__(self) -> tuple[Any, ...]:
                return np.asarray, (np.full(50_000, 7.0),)

        captured = capture.StateCapturer().capture([Lazy() for _ in range(5)])
        arrays: Any = capture.load(joined(captured))
        assert all((a == 7.0).all() for a in arrays)

    def test_what_cannot_be_imported_is_pickled_by_value(self) -> None:
        captured = capture.StateCapturer().capture({"f": lambda x: x + 1})
        state: Any = capture.load(joined(captured))
        assert state["f"](2) == 3

    def test_classes_of_main_load_in_another_main(self, tmp_path: Path) -> None:
        program = tmp_path / "program.py"
        program.write_text(
            "import sys\nfrom ftray.checkpoint import capture\nclass Point:\n    def __init__(self, x): "
            "self.x = x\n    def double(self): return self.x * 2\nstream, = "
            "capture.StateCapturer().capture({'p': "
            "Point(21)}).segments\nsys.stdout.buffer.write(b''.join(stream))\n"
        )
        stream = subprocess.run([sys.executable, str(program)], capture_output=True, check=True).stdout
        assert pickle.loads(stream)["p"].double() == 42

    @pytest.mark.parametrize(
        ("state", "path"),
        [
            ({"n": 1, "lock": threading.Lock()}, "C.lock"),
            ({"pool": Holder(size=3, inner=Holder(lock=threading.Lock()))}, "C.pool.inner.lock"),
            ({"jobs": [1, {"a b": threading.Lock()}]}, "C.jobs[1]['a b']"),
            ({"pair": (1, (2, (i for i in ())))}, "C.pair[1][1]"),
            ({"bag": {1, 2}, "frame": sys._getframe()}, "C.frame"),
        ],
    )
    def test_the_culprit_is_named(self, state: dict[str, Any], path: str) -> None:
        capturer = capture.StateCapturer()
        with pytest.raises(Exception) as raised:
            capturer.capture(state)
        error = capture.capture_error(capturer, state, "C", raised.value)
        assert isinstance(error, CheckpointCaptureError) and error.attribute == path
        assert str(error).startswith(f"{path} cannot be saved: TypeError: cannot pickle")
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error) and again.attribute == path

    def test_a_failure_that_no_part_explains(self) -> None:
        error = capture.capture_error(capture.StateCapturer(), {"a": 1}, "C", MemoryError("no room"))
        assert str(error) == "the state of C could not be captured: MemoryError: no room"

    def test_a_state_that_contains_itself(self) -> None:
        state: dict[str, Any] = {"lock": threading.Lock()}
        state["me"] = state
        found = capture.StateCapturer().find_culprit(state, "C")
        assert found is not None and found[0] == "C.lock"
