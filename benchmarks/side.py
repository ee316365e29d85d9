"""One side of a measurement, in a process of its own: ``side.py --side ray --rows init --result FILE``.

Runs under the interpreter of its side (Ray's, the peers' or ours), so it needs the standard library only. The
result goes to a file, since engines print to standard output as they like.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script, so that an installed ftray comes before the sources that lie beside this directory.
    del sys.path[0]
    sys.path.append(str(Path(__file__).resolve().parent.parent))

import argparse
import importlib
import json
import traceback
from typing import Any

from benchmarks.budget import Budget
from benchmarks.peers import peer_rows
from benchmarks.rows import ROWS, select
from benchmarks.rows.row import Row, Start
from benchmarks.rows.startup import init

ENGINES = ("ftray", "ray")  # the sides with Ray's API; all others are peers with functions of their own


def main() -> int:
    arguments = _parse()
    budget = Budget.small() if arguments.smoke else Budget.full()
    results = {}
    for row in select(arguments.rows):
        results[row.key] = _outcome(arguments.side, row, budget)
        # Written after each row: one that ends the process does not take the others with it.
        Path(arguments.result).write_text(json.dumps(results))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", required=True, help="module with Ray's API (ftray, ray) or a peer's name")
    parser.add_argument("--rows", required=True, help=f"comma-separated, of {', '.join(ROWS)}")
    parser.add_argument("--result", required=True, help="file that gets the JSON")
    parser.add_argument("--smoke", action="store_true", help="small sizes, short loops")
    return parser.parse_args()


def _outcome(side: str, row: Row, budget: Budget) -> dict[str, Any]:
    try:
        return {"value": _measure(side, row, budget)}
    except Exception as error:  # the report of a row is its error; the runner shows it and fails
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _measure(side: str, row: Row, budget: Budget) -> float:
    if side not in ENGINES:
        return peer_rows(side)[row.key](budget)
    if row.start is Start.NOTHING:
        return row.measure(side, budget)
    module = importlib.import_module(side)
    if row.start is Start.READY and not module.is_initialized():
        init(module)
    return row.measure(module, budget)


if __name__ == "__main__":
    sys.exit(main())
