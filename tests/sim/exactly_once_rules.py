"""The rules of the exactly-once protocol, each with a switch, and its invariants by name.

docs/exactly-once.md explains them under the same names and numbers; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

I1 = "I1 no effect is lost after its reply"
I2 = "I2 no effect is doubled"
I3 = "I3 a reply comes from the very call that it answers"
I4 = "I4 replies are those of an actor that never crashed"
I5 = "I5 nothing leaves before what it depends on is durable"
I6 = "I6 a stale incarnation neither commits nor answers"
I7 = "I7 a restored past does not mix with calls of the old history"
I8 = "I8 an older attempt has no effect once a newer one was answered"
I9 = "I9 every wait ends, with the reply unless the protocol names the error"
INVARIANTS = (I1, I2, I3, I4, I5, I6, I7, I8, I9)


@dataclass(frozen=True)
class Rules:
    """One switch for each rule; all are on in the protocol."""

    # Identity and acceptance
    attempt_free_identity: bool = True
    digest_check: bool = True
    refuse_older_attempts: bool = True
    recheck_attempts_at_start: bool = True
    record_newer_attempts: bool = True
    keyed_calls_have_no_attempts: bool = True
    # Replies
    keep_replies_until_released: bool = True
    released_identity_stays: bool = True
    tombstones_outlive_messages: bool = True
    expired_identity_stays: bool = True
    drop_acknowledged_only: bool = True
    # The journal and its fence
    record_before_reply: bool = True
    recheck_epoch_after_durable: bool = True
    fence_before_read: bool = True
    seal_old_segment: bool = True
    store_load_fences: bool = True
    readonly_waits_durable: bool = True
    readonly_rechecks_epoch: bool = True
    # Snapshots
    frontier_in_snapshot: bool = True
    snapshot_waits_for_journal: bool = True
    recheck_epoch_after_snapshot: bool = True
    keep_what_counts: bool = True
    trim_after_recheck: bool = True
    trim_after_snapshot: bool = True
    trim_to_oldest_kept: bool = True
    nondeterministic_leaves_barrier: bool = True
    # Output commit
    start_record_before_outgoing: bool = True
    values_before_later_outgoing: bool = True
    recheck_epoch_before_outgoing: bool = True
    open_journal_before_rerun: bool = True
    started_call_first: bool = True
    acknowledge_durable_values_only: bool = True
    release_children_after_durable: bool = True
    root_release_spares_open_calls: bool = True
    record_poison: bool = True
    # Histories
    history_in_calls: bool = True
    history_stamped_when_sent: bool = True
    drop_replies_of_older_epochs: bool = True
    restored_frontier_stays: bool = True
    restore_saves_anew: bool = True
    # Waits
    refuse_chains_that_return: bool = True
    refuse_crossing_waits: bool = True
    ask_idle_callers_for_acks: bool = True
    acks_count_before_held_back: bool = True

    def without(self, name: str) -> Rules:
        """Return the rules with one switched off."""
        return replace(self, **{name: False})


RULE_NAMES = tuple(field.name for field in fields(Rules))
