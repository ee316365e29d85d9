"""What a `Checkpointable` class may be told: names, defaults, validation.

Pure. Owns the meaning of the class keywords; leaves where they are kept to `actor` and what they do to
`session`. A *specification* is the validated options of one actor as a plain dict: it is computed where the
actor is created, travels with the actor's record, and is the same for all its incarnations.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

from .errors import CheckpointOptionError
from .pace import DEFAULT_SHARE

STORE_VARIABLE = "FTRAY_CHECKPOINT_STORE"

DEFAULTS: dict[str, object] = {
    "store": None,
    "every": 100,
    "interval_s": None,
    "save_share": DEFAULT_SHARE,
    "keep": 2,
    "checkpoint_key": None,
    "restore": "auto",
    "checkpoint_version": 1,
    "durability": None,
    "formerly": (),
    "after": (),
    "exactly_once": False,
    "code_version": None,
    "takeover": False,
    "verify": False,
    "fencing": "exclusive",
    "lease_s": 10.0,
    "reply_bound_bytes": 64 << 20,
    "reply_bound_calls": 100_000,
    "journal_bound_bytes": 256 << 20,
}
"""Names and defaults. With ``exactly_once=True``, ``every`` is 1000 and ``durability`` ``"process"``."""

EXACTLY_ONCE_EVERY = 1000
RESTARTS = {"max_restarts": -1, "max_task_retries": -1}
VERIFY_VARIABLE = "FTRAY_CHECKPOINT_VERIFY"
FINAL_TIMEOUT_VARIABLE = "FTRAY_CHECKPOINT_FINAL_TIMEOUT_S"
_EXACTLY_ONCE_ONLY = (
    "code_version",
    "takeover",
    "fencing",
    "lease_s",
    "reply_bound_bytes",
    "reply_bound_calls",
    "journal_bound_bytes",
)
_EXPLICIT_CODE_VERSIONS = 1 << 63  # those made by hashing are from here on

RESTORE_MODES = ("auto", "never", "require")
DURABILITIES = ("process", "power")
FENCINGS = ("exclusive", "lease")
_LEASES_S = (1.0, 3600.0)


class Options(NamedTuple):
    """The validated options of one actor; see `Checkpointable` for what each means."""

    store: str
    every: int | None
    interval_s: float | None
    keep: int
    checkpoint_key: str | None
    restore: str
    checkpoint_version: int
    durability: str | None
    formerly: tuple[str, ...]
    after: tuple[str, ...] = ()
    exactly_once: bool = False
    code_version: int | None = None
    takeover: bool = False
    verify: bool = False
    fencing: str = "exclusive"
    lease_s: float = 10.0
    reply_bound_bytes: int = 64 << 20
    reply_bound_calls: int = 100_000
    journal_bound_bytes: int = 256 << 20
    save_share: float = DEFAULT_SHARE


def restart_defaults(spec: Mapping[str, object] | None) -> dict[str, int]:
    """Return the engine's options that a specification sets unless the user gives them.

    An exactly-once actor is restarted, and its calls are retried, without bound: ``max_restarts=-1`` and
    ``max_task_retries=-1``. Anything else sets nothing.
    """
    return dict(RESTARTS) if spec is not None and spec.get("exactly_once") else {}


def default_store() -> str:
    """Return the store used when a class names none.

    ``$FTRAY_CHECKPOINT_STORE`` if set, else ``$XDG_STATE_HOME/ftray/checkpoints``, where ``XDG_STATE_HOME``
    is ``~/.local/state`` unless set.
    """
    named = os.environ.get(STORE_VARIABLE, "")
    if named:
        return named
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.local/state")
    return os.path.join(base, "ftray", "checkpoints")


def _wrong(name: str, value: object, allowed: str) -> CheckpointOptionError:
    return CheckpointOptionError(f"{name}={value!r} is not allowed; {name} is {allowed}")


def _integer(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _wrong(name, value, f"an integer of at least {least}")
    return value


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise _wrong("interval_s", value, "a positive number of seconds, or None for no saving by time")
    return float(value)


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise _wrong("save_share", value, "a share of a CPU: more than 0, at most 1, which means no bound")
    return float(value)


def _lease(value: object) -> float:
    least, most = _LEASES_S
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _wrong("lease_s", value, f"a number of seconds from {least:g} to {most:g}")
    return float(value)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise _wrong(name, value, "one of " + ", ".join(repr(a) for a in allowed))
    return str(value)


def _key(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise _wrong("checkpoint_key", value, "a non-empty string, or None for namespace/name")
    return value


def _names(name: str, value: object, of: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) and n for n in names):
        raise _wrong(name, value, f"the name of a {of} or a tuple of such names")
    return tuple(names)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def _code_version(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _EXPLICIT_CODE_VERSIONS:
        raise _wrong(
            "code_version", value, "an integer from 0 to 2**63 - 1, or None for a hash over the class"
        )
    return value


def _verify_asked() -> bool:
    text = os.environ.get(VERIFY_VARIABLE, "")
    if text not in ("", "0", "1"):
        raise CheckpointOptionError(
            f"the environment variable {VERIFY_VARIABLE}={text!r} is not valid: "
            "1 verifies, 0 or nothing does not"
        )
    return text == "1"


def _store(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise _wrong("store", value, "a path or a URL such as file:///path")
    text = os.fspath(value)
    if not isinstance(text, str) or not text:
        raise _wrong("store", value, "a non-empty path or URL")
    return text


def plain(given: Mapping[str, object]) -> dict[str, object]:
    """Return `given` with paths as text and sequences as tuples, refusing names that are not options."""
    for name in given:
        if name not in DEFAULTS:
            raise CheckpointOptionError(
                f"{name!r} is not an option of Checkpointable; allowed: {', '.join(sorted(DEFAULTS))}"
            )
    out = dict(given)
    if "store" in out:
        out["store"] = _store(out["store"])
    if "formerly" in out:
        out["formerly"] = _names("formerly", out["formerly"], "class")
    if "after" in out:
        out["after"] = _names("after", out["after"], "method")
    return out


def validate(given: Mapping[str, object]) -> Options:
    """Check options and fill in the defaults.

    Parameters
    ----------
    given : mapping
        Names as in `DEFAULTS`. ``every`` defaults to 100 calls unless ``interval_s`` is given alone.

    Returns
    -------
    Options

    Raises
    ------
    CheckpointOptionError
        Naming the first option that is wrong.
    """
    merged = {**DEFAULTS, **plain(given)}
    if merged["interval_s"] is not None and "every" not in given:
        merged["every"] = None
    exactly_once = _flag("exactly_once", merged["exactly_once"])
    if exactly_once:
        merged["every"] = given["every"] if "every" in given else _default_every(merged)
        merged["durability"] = merged["durability"] or "process"
        if merged["fencing"] != "lease" and "lease_s" in given:
            term = given["lease_s"]
            raise CheckpointOptionError(f'lease_s={term!r} is the term of fencing="lease": give both')
    else:
        _only_exactly_once(given)
    every, durability = merged["every"], merged["durability"]
    return Options(
        store=_store(merged["store"]) or default_store(),
        every=None if every is None else _integer("every", every, 1),
        interval_s=_seconds(merged["interval_s"]),
        keep=_integer("keep", merged["keep"], 2),
        checkpoint_key=_key(merged["checkpoint_key"]),
        restore=_one_of("restore", merged["restore"], RESTORE_MODES),
        checkpoint_version=_integer("checkpoint_version", merged["checkpoint_version"], 1),
        durability=None if durability is None else _one_of("durability", durability, DURABILITIES),
        formerly=_names("formerly", merged["formerly"], "class"),
        after=_names("after", merged["after"], "method"),
        exactly_once=exactly_once,
        code_version=_code_version(merged["code_version"]),
        takeover=_flag("takeover", merged["takeover"]),
        verify=_flag("verify", merged["verify"]) or _verify_asked(),
        fencing=_one_of("fencing", merged["fencing"], FENCINGS),
        lease_s=_lease(merged["lease_s"]),
        reply_bound_bytes=_integer("reply_bound_bytes", merged["reply_bound_bytes"], 1),
        reply_bound_calls=_integer("reply_bound_calls", merged["reply_bound_calls"], 1),
        journal_bound_bytes=_integer("journal_bound_bytes", merged["journal_bound_bytes"], 1),
        save_share=_share(merged["save_share"]),
    )


def _default_every(merged: Mapping[str, object]) -> int | None:
    return None if merged["interval_s"] is not None else EXACTLY_ONCE_EVERY


def _only_exactly_once(given: Mapping[str, object]) -> None:
    for name in _EXACTLY_ONCE_ONLY:
        if given.get(name, DEFAULTS[name]) != DEFAULTS[name]:
            raise CheckpointOptionError(
                f"{name}={given[name]!r} is for actors with exactly_once=True; give that too, or leave "
                f"{name} out"
            )


def seconds_from_environment(variable: str, default_s: float) -> float:
    """Return what an environment variable says, in seconds; the default if it is not set or empty.

    Raises
    ------
    CheckpointOptionError
        It is no number, or not more than 0.
    """
    text = os.environ.get(variable, "")
    try:
        given_s = float(text) if text else default_s
    except ValueError:
        given_s = math.nan
    if not (math.isfinite(given_s) and given_s > 0):
        raise CheckpointOptionError(
            f"the environment variable {variable}={text!r} is not valid: it must be a number of seconds, "
            f"more than 0 ({default_s:g} if it is not set)"
        )
    return given_s


def final_timeout_s() -> float:
    """Return how long a planned exit waits for its last save: 30 s unless the environment says otherwise."""
    return seconds_from_environment(FINAL_TIMEOUT_VARIABLE, 30.0)
