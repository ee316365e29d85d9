"""Tests of ftray: always of the *installed* package, never of the sources that happen to lie beside them.

The root of the repository holds ``ftray/`` as well, without its extensions. ``python -m`` and
PYTHONPATH put that root first on ``sys.path``, where it would hide the installed package. It goes to
the end instead: ``tests``, ``benchmarks`` and ``examples`` are found there, ``ftray`` is found before.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != ROOT] + [ROOT]
