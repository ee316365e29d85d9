"""Writes the golden savepoint of the present format version; run once per released version, then never again.

python -m tests.unit.checkpoint.make_golden_savepoint tests/unit/checkpoint/golden
"""

from __future__ import annotations

import sys
from pathlib import Path

from ftray import checkpoint
from tests.unit.checkpoint.once_support import KEY, Lives


def main(directory: str) -> None:
    lives = Lives().start()
    lives.call("incr", 7)
    lives.call("checkpoint")
    checkpoint.export(lives.store, KEY, Path(directory, "v1.savepoint"), name="golden")


if __name__ == "__main__":
    main(sys.argv[1])
