"""Prints what to install for building and for the named extras: ``requirements.py [EXTRA ...]``.

Lets make fill a virtual environment from ``pyproject.toml``, the one place that names requirements,
without building ftray first.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]


def requirements(extras: list[str]) -> list[str]:
    text = Path(__file__).resolve().parent.parent.joinpath("pyproject.toml").read_text()
    config = tomllib.loads(text)
    known = config["project"]["optional-dependencies"]
    if unknown := set(extras) - set(known):
        raise SystemExit(f"no such extra: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    needed = config["build-system"]["requires"] + config["project"]["dependencies"]
    for extra in extras:
        needed += known[extra]
    return list(dict.fromkeys(needed))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
