"""Writes the golden journal of the present format version; run once per released version, then never again.

python tests/unit/checkpoint/make_golden_journal.py tests/unit/checkpoint/golden
"""

from __future__ import annotations

import sys
from pathlib import Path

from ftray.checkpoint import blobs, segments
from ftray.checkpoint.stores import life

KEY = "golden/jöurnal"
BOOT = bytes(range(16))
HEADER = segments.SegmentHeader(KEY, 3, 1, 41, "power", 8192, bytes(range(100, 116)), BOOT)
RECORDS = [(41, b"first"), (42, bytes(range(256))), (43, b"12345678")]


def segment() -> bytes:
    seed = HEADER.seed
    data = segments.encode_header(HEADER)
    for position, payload in RECORDS:
        data += segments.encode_record(seed, position, [payload], synced=40)
    data += segments.encode_record(seed, 43, [], synced=43, kind=segments.MARK)
    data += segments.encode_record(seed, 43, [], synced=43, kind=segments.END)
    return data.ljust(HEADER.size, b"\0")


def main(directory: str) -> None:
    root = Path(directory)
    (root / "journal-v1.power").write_bytes(segment())
    (root / "life-v1.live").write_bytes(life.encode(3, BOOT, (bytes(range(32, 48)), 2)))
    (root / "blob-v1").write_bytes(b"".join(blobs.encode([b"large ", bytes(range(256))])))


if __name__ == "__main__":
    main(sys.argv[1])
