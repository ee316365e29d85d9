"""Benchmarks of ftray beside Ray and other peers, taken in one run on one machine.

``python -m benchmarks.run`` measures every row of the table of figures, ``benchmarks.pingpong`` and
``benchmarks.limits`` say what the machine itself can do, ``benchmarks.scale`` compares a million queued tasks
with a few thousand. Each has a smoke size that runs inside the tests.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# ``python -m`` puts the root of the repository first on the path, where the sources of ftray would hide the
# installed package. At the end, this package is still found there.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != ROOT] + [ROOT]
