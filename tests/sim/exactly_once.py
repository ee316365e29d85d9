"""The exactly-once protocol (docs/exactly-once.md), explored exhaustively in models that are small each.

``python -m tests.sim.exactly_once`` explores all models with all rules and prints how many states there
are, then what breaks without each rule, and by which shortest schedule. ``--long`` takes larger sizes,
``--rule NAME`` one rule.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from tests.sim.exactly_once_callers import CallersModel
from tests.sim.exactly_once_histories import HistoriesModel
from tests.sim.exactly_once_journal import JournalModel
from tests.sim.exactly_once_nested import NestedModel
from tests.sim.exactly_once_rules import I1, I2, I3, I4, I5, I6, I7, I8, I9, RULE_NAMES, Rules
from tests.sim.exactly_once_waits import BoundModel, FenceWordModel, WaitsModel
from tests.sim.explorer import Model, Result, explore

Make = Callable[[Rules], Model]

SAME, LESS, OTHER = (("add 1",), ("add 1",)), (("add 1", "add 2"), ("add 1",)), (("add 1",), ("add 2",))

MODELS: dict[str, Make] = {
    "fencing": lambda rules: JournalModel(rules),
    "reads": lambda rules: JournalModel(rules, epochs=2, reads=1),
    "snapshots": lambda rules: JournalModel(rules, epochs=2, snapshots=2, bad=1),
    "three epochs of snapshots": lambda rules: JournalModel(rules, calls=("x1",), snapshots=2, bad=1),
    "not replayed": lambda rules: JournalModel(rules, calls=("n1", "x1"), epochs=2, snapshots=2, bad=1),
    "fence word": lambda rules: FenceWordModel(rules),
    "executed again": lambda rules: CallersModel(rules, SAME),
    "makes fewer calls": lambda rules: CallersModel(rules, LESS),
    "makes other calls": lambda rules: CallersModel(rules, OTHER),
    "replies expire": lambda rules: CallersModel(rules, LESS, crashes=0, pressure=True),
    "keyed calls": lambda rules: CallersModel(rules, OTHER, keyed=True),
    "nested": lambda rules: NestedModel(rules, epochs=2),
    "nested, nothing drawn": lambda rules: NestedModel(rules, epochs=2, draws=False),
    "nested, two calls": lambda rules: NestedModel(rules, epochs=2, calls=2, with_k=False),
    "nested, poison": lambda rules: NestedModel(rules, kills=1, with_k=False),
    "going back": lambda rules: HistoriesModel(rules),
    "going back, with a task": lambda rules: HistoriesModel(rules, driver_calls=0, with_task=True),
    "a chain that returns": lambda rules: WaitsModel(rules, ("ABA", "A")),
    "chains that cross": lambda rules: WaitsModel(rules, ("AB", "BC", "CA", "A")),
    "two callers at the bound": lambda rules: BoundModel(rules, (1, 1)),
    "three callers at the bound": lambda rules: BoundModel(rules, (2, 2, 2)),
    "one caller at the bound": lambda rules: BoundModel(rules, (2,)),
}

LONG: dict[str, Make] = {
    "fencing": lambda rules: JournalModel(rules, calls=("x1", "y1", "z1")),
    "fencing, four epochs": lambda rules: JournalModel(rules, epochs=4),
    "reads": lambda rules: JournalModel(rules, epochs=3, reads=1),
    "snapshots": lambda rules: JournalModel(rules, epochs=3, snapshots=2, bad=1),
    "not replayed": lambda rules: JournalModel(rules, calls=("n1", "x1"), epochs=3, snapshots=2, bad=1),
    "executed again twice": lambda rules: CallersModel(rules, (*SAME, ("add 1",)), crashes=2),
    "makes fewer calls": lambda rules: CallersModel(rules, (*LESS, ("add 1",)), crashes=2),
    "replies expire": lambda rules: CallersModel(rules, (("add 1", "add 2"),) * 2, pressure=True),
    "nested": lambda rules: NestedModel(rules),
    "nested, two calls": lambda rules: NestedModel(rules, calls=2),
    "nested, poison": lambda rules: NestedModel(rules, epochs=4, kills=2, with_k=False),
    "going back": lambda rules: HistoriesModel(rules, restarts=2),
    "going back, with a task": lambda rules: HistoriesModel(rules, driver_calls=1, with_task=True),
    "chains that cross": lambda rules: WaitsModel(rules, ("ABC", "BCA", "CAB", "ACB")),
    "four callers at the bound": lambda rules: BoundModel(rules, (3, 3, 3, 3), bound=2),
}

# Without a rule: in which model it shows, and which invariant breaks there first.
BREAKS: dict[str, tuple[str, str]] = {
    "attempt_free_identity": ("executed again", I2),
    "digest_check": ("makes other calls", I3),
    "refuse_older_attempts": ("makes fewer calls", I8),
    "recheck_attempts_at_start": ("makes fewer calls", I8),
    "record_newer_attempts": ("makes fewer calls", I8),
    "keyed_calls_have_no_attempts": ("keyed calls", I9),
    "keep_replies_until_released": ("executed again", I2),
    "released_identity_stays": ("executed again", I2),
    "tombstones_outlive_messages": ("executed again", I2),
    "expired_identity_stays": ("replies expire", I2),
    "drop_acknowledged_only": ("replies expire", I9),
    "record_before_reply": ("fencing", I5),
    "recheck_epoch_after_durable": ("fencing", I6),
    "fence_before_read": ("fencing", I1),
    "seal_old_segment": ("fencing", I2),
    "store_load_fences": ("fence word", I6),
    "readonly_waits_durable": ("reads", I5),
    "readonly_rechecks_epoch": ("reads", I6),
    "frontier_in_snapshot": ("snapshots", I2),
    "snapshot_waits_for_journal": ("snapshots", I5),
    "recheck_epoch_after_snapshot": ("not replayed", I6),
    "keep_what_counts": ("snapshots", I1),
    "trim_after_recheck": ("snapshots", I1),
    "trim_after_snapshot": ("snapshots", I1),
    "trim_to_oldest_kept": ("snapshots", I1),
    "nondeterministic_leaves_barrier": ("not replayed", I1),
    "start_record_before_outgoing": ("nested, nothing drawn", I5),
    "values_before_later_outgoing": ("nested", I5),
    "recheck_epoch_before_outgoing": ("nested", I6),
    "open_journal_before_rerun": ("nested", I6),
    "started_call_first": ("nested", I4),
    "acknowledge_durable_values_only": ("nested", I4),
    "release_children_after_durable": ("nested", I4),
    "root_release_spares_open_calls": ("nested", I4),
    "record_poison": ("nested, poison", I4),
    "history_in_calls": ("going back", I7),
    "history_stamped_when_sent": ("going back", I7),
    "drop_replies_of_older_epochs": ("going back", I7),
    "restored_frontier_stays": ("going back", I2),
    "restore_saves_anew": ("going back", I1),
    "refuse_chains_that_return": ("a chain that returns", I9),
    "refuse_crossing_waits": ("chains that cross", I9),
    "ask_idle_callers_for_acks": ("two callers at the bound", I9),
    "acks_count_before_held_back": ("one caller at the bound", I9),
}


def run(make: Make, rules: Rules) -> Result:
    """Explore one model."""
    return explore(make(rules), stuck=I9)


def without(rule: str) -> Result:
    """Explore what the protocol is without `rule`, where that shows."""
    return run(MODELS[BREAKS[rule][0]], Rules().without(rule))


def main() -> None:
    """Explore, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.exactly_once", description=__doc__)
    parser.add_argument("--long", action="store_true", help="larger sizes: millions of states, some minutes")
    parser.add_argument("--rule", choices=RULE_NAMES, help="only what breaks without this rule")
    options = parser.parse_args()
    for name, make in {} if options.rule else (LONG if options.long else MODELS).items():
        began = time.perf_counter()
        print(f"{name}: {run(make, Rules())} ({time.perf_counter() - began:.1f} s)", flush=True)
    for rule in [options.rule] if options.rule else [] if options.long else RULE_NAMES:
        print(f"\nwithout {rule} ({BREAKS[rule][0]}): {without(rule)}", flush=True)


if __name__ == "__main__":
    main()
