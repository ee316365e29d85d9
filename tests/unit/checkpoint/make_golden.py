"""Writes the golden snapshot of the present format version; run once per released version, then never again.

python tests/unit/checkpoint/make_golden.py tests/unit/checkpoint/golden/v2.ckpt
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from ftray.checkpoint import format

STATE = {"n": 41, "names": ["a", "ü"], "blob": bytearray(range(256)) * 8}
FIELDS = {
    "class": "Counter",
    "module": "app.counters",
    "state_version": 3,
    "key": "golden/counter",
    "history": "00112233445566778899aabbccddeeff",
    "epoch": 2,
    "sequence": 17,
    "boot_id": "2f6f3c2e-0000-4000-8000-000000000001",
    "created_unix_s": 1700000000.25,
    "calls": 1700,
    "reason": "every",
    "deleted": ["gone"],
    "python": "3.11.7",
}


def main(path: str) -> None:
    buffers: list[pickle.PickleBuffer] = []
    state = {**STATE, "blob": pickle.PickleBuffer(STATE["blob"])}  # type: ignore[arg-type]
    stream = pickle.dumps(state, 5, buffer_callback=buffers.append)
    Path(path).write_bytes(b"".join(format.encode(FIELDS, [[stream], *([b.raw()] for b in buffers)])))


if __name__ == "__main__":
    main(sys.argv[1])
