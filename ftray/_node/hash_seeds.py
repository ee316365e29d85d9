"""The hash seed of workers: one for a session, known, and not in anybody's way.

Python draws a seed for hashing text when an interpreter starts, and tells nobody. Whoever has to repeat what
a process did (an exactly-once actor's journal) needs the same one, so a session's interpreters are started
with a seed that was drawn here. The user's own ``PYTHONHASHSEED`` counts if there is one; ours is taken out
of the environment again, so that programs started by tasks draw their own, as without ftray.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

VARIABLE = "PYTHONHASHSEED"
# Says that the seed is ours, from a process to the interpreters that it starts.
_OURS = "FTRAY_OWN_HASH_SEED"


class _Known:
    seed = ""  # of this interpreter
    ours = False


def chosen(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for an interpreter that hashes as this session does."""
    if environ.get(VARIABLE, "random") not in ("", "random"):
        return {}
    seed = str(int.from_bytes(os.urandom(4), "little"))
    return {VARIABLE: seed, _OURS: seed}


def variables(seed: str) -> dict[str, str]:
    """Return the variables for an interpreter with this very seed."""
    return {VARIABLE: seed, _OURS: seed}


def hide(environ: MutableMapping[str, str]) -> None:
    """Learn the seed of this interpreter, and take it out of the environment if it is ours."""
    ours = environ.pop(_OURS, None)
    seed = environ.get(VARIABLE, "")
    _Known.ours = ours is not None and ours == seed and not sys.flags.ignore_environment
    if _Known.ours:
        del environ[VARIABLE]
    _Known.seed = "" if sys.flags.ignore_environment or not seed.isdigit() else seed


def known() -> str:
    """Return the seed of this process, "" if it was drawn by the interpreter."""
    return _Known.seed


def is_ours() -> bool:
    """Whether a process like this one could be had with another seed: nobody has asked for this one."""
    return _Known.ours


def inherited() -> dict[str, str]:
    """Return the variables for an interpreter that hashes as this one does."""
    return variables(_Known.seed) if _Known.ours else {}
