"""How many threads libraries make in workers: the variables that they read when they are loaded.

A library that makes its threads when it is loaded (a BLAS, OpenMP) would leave the zygote with more than one,
and tasks share the machine's CPUs anyway: without a word of the user it is one thread. What the user has set
counts.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

# The others fall back on it.
_GENERAL = "OMP_NUM_THREADS"
_SPECIAL = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def limit(environ: MutableMapping[str, str]) -> None:
    """Set to 1 what the user has not set, neither by itself nor by the variable that stands for all."""
    if environ.get(_GENERAL):
        return
    for name in (_GENERAL, *_SPECIAL):
        environ[name] = environ.get(name) or "1"


def asked_for(environ: Mapping[str, str]) -> bool:
    """Whether the user wants more than one: then each worker loads such a library, the zygote does not."""
    return any((environ.get(name) or "1") != "1" for name in (_GENERAL, *_SPECIAL))
