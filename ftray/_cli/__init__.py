"""The command line, ``ftray`` or ``python -m ftray``; it needs the extra ``cli``.

Nothing else of the package imports this one, and this module imports nothing that the extra brings.
"""

from __future__ import annotations

import sys

_NEEDED = {"click": "click", "rich": "rich", "yaml": "pyyaml"}


def main() -> None:
    """Run the command that ``sys.argv`` names and exit with its status."""
    from importlib.util import find_spec

    lacking = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if lacking:
        print(
            f"ftray: the command line needs {', '.join(lacking)}: pip install 'ftray[cli]'", file=sys.stderr
        )
        sys.exit(1)
    from ftray._cli.main import group

    group(prog_name="ftray")
