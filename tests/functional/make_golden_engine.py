"""Writes the golden store of this engine's own actors; run once per released version, then never again.

python -m tests.functional.make_golden_engine tests/unit/checkpoint/golden
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.unit.checkpoint import golden_support

PROGRAM = Path(__file__).with_name("golden_program.py")


def main(directory: str) -> None:
    with tempfile.TemporaryDirectory(prefix="golden-") as base:
        program, store = Path(base, "program.py"), Path(base, "store")
        shutil.copy(PROGRAM, program)  # its place stands in recorded tracebacks
        done = subprocess.run([sys.executable, str(program), str(store), "first"], env=dict(os.environ))
        assert done.returncode == -signal.SIGKILL, done
        golden_support.pack(Path(directory, "engine-v1.zip"), golden_support.local_files(store))


if __name__ == "__main__":
    main(sys.argv[1])
