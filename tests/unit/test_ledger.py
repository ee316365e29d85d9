"""The ledger of an exactly-once actor against a plain model, and its rules one by one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from ftray._core.gate import Gate, NullJournal, Outcome, churn
from ftray._core.ledger import Ledger
from ftray._core.records import CallHeadError, decode_head
from tests.unit.ledger_model import Model
from tests.unit.ledger_support import (
    JOB,
    KEY,
    OTHER_TASK,
    PROCESS,
    SESSION,
    TASK,
    head,
    identity,
    keyed,
    outcome,
    run,
)

# --- against the model

CALLERS = [
    {"parent": SESSION},
    {"parent": TASK},
    {"parent": OTHER_TASK},
    {"parent": JOB, "root": JOB, "root_kind": 1},
    {"parent": identity("task of the job"), "root": JOB, "root_kind": 1},
    {"parent": PROCESS, "root": PROCESS, "root_kind": 2},
]
often_zero = st.sampled_from([0] * 12 + [1, 2])
heads = st.one_of(
    st.builds(
        lambda caller, n, behind, retry, attempts, history, chain: head(
            n=n,
            retry=retry,
            acked=max(0, n - behind),
            attempts=attempts,
            history=history,
            chain=chain,
            **caller,
        ),
        st.sampled_from(CALLERS),
        st.integers(1, 8),
        st.integers(-1, 5),
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from([(0,), (0,), (0, 1), (0, 1), (1,), (1, 0), (), (1, 1, 0), (1, 1, 1)]),
        often_zero,
        st.sampled_from([(), (), (), (), (), (TASK,), (TASK, KEY)]),
    ),
    st.builds(keyed, st.sampled_from("abcdef"), history=often_zero),
)


class Comparison(RuleBasedStateMachine):
    """Any calls in any order: ledger and model say the same, count the same, and dump what they have."""

    open = Bundle("open")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(KEY, reply_bound_bytes=25, reply_bound_calls=6)
        self.model = Model(KEY, 0, 25, 6)
        self.position = 0

    @rule(
        target=open,
        call=heads,
        digest=st.sampled_from([1, 1, 1, 1, 2]),
        mutating=st.sampled_from([True] * 5 + [False]),
    )
    def admit(self, call: bytes, digest: int, mutating: bool) -> bytes:
        assert self.ledger.accept(call, digest, mutating) == self.model.accept(
            decode_head(call), digest, mutating
        )
        return call

    @rule(call=open, digest=st.sampled_from([1, 1, 1, 2]))
    def repeat(self, call: bytes, digest: int) -> None:
        assert self.ledger.accept(call, digest) == self.model.accept(decode_head(call), digest, True)

    @rule(call=open, status=st.integers(0, 2), reply=st.binary(max_size=9))
    def finish(self, call: bytes, status: int, reply: bytes) -> None:
        known = self.model.calls.get(self.model.identity(decode_head(call)))
        if known is None or known.done:
            with pytest.raises(LookupError, match="not under way"):
                self.ledger.finish(call, status, reply, 1)
            return
        self.position += 1
        self.ledger.finish(call, status, reply, self.position)
        self.model.finish(decode_head(call), status, reply, self.position)

    @rule(call=open)
    def forget(self, call: bytes) -> None:
        known = self.model.calls.get(self.model.identity(decode_head(call)))
        if known is None or known.done:
            with pytest.raises(LookupError, match="not under way"):
                self.ledger.forget(call)
            return
        self.ledger.forget(call)
        self.model.forget(decode_head(call))

    @rule(caller=st.sampled_from(CALLERS))
    def release(self, caller: dict[str, Any]) -> None:
        assert self.ledger.knows_caller(caller["parent"]) == (caller["parent"] in self.model.callers)
        self.ledger.release_caller(caller["parent"])
        self.model.release(caller["parent"])

    @rule(root=st.sampled_from([SESSION, JOB, PROCESS, identity("nobody")]))
    def release_root(self, root: bytes) -> None:
        assert self.ledger.knows_root(root) == any(
            c.root == root and not c.inside for c in self.model.callers.values()
        )
        self.ledger.release_root(root)
        self.model.release_root(root)

    @rule()
    def crash_after_a_snapshot(self) -> None:
        dump = self.ledger.dump()
        self.ledger = Ledger(KEY, reply_bound_bytes=25, reply_bound_calls=6)
        self.ledger.load(dump)
        assert self.ledger.dump() == dump
        self.model.reload()
        self.model.counts = dict.fromkeys(self.model.counts, 0)

    @rule()
    def begin_history(self) -> None:
        self.ledger.begin_history(self.model.history + 1)
        self.model.begin_history(self.model.history + 1)

    @invariant()
    def counts_agree(self) -> None:
        assert self.ledger.counters() == self.model.counters()
        assert len(self.ledger) == len(self.model.calls)


Comparison.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
test_any_calls_in_any_order = Comparison.TestCase


# --- one by one


def test_a_call_runs_once_and_is_answered_from_the_record() -> None:
    ledger = Ledger(KEY)
    assert ledger.accept(head(), 7) == (Outcome.NEW, 0, None, 0)
    assert ledger.accept(head(), 7) == (Outcome.IN_PROGRESS, 0, None, 0)
    ledger.finish(head(), 3, b"reply", 41)
    assert ledger.accept(head(), 7) == (Outcome.RECORDED, 3, b"reply", 41)
    assert ledger.counters()["duplicates"] == 2


def test_a_known_call_with_other_arguments_changes_nothing() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1), digest=1)
    before = ledger.dump()
    assert outcome(ledger, head(TASK, 1, attempts=(5,), acked=9), digest=2) == Outcome.MISMATCH
    assert outcome(ledger, head(TASK, 1, call_id=identity("another")), digest=1) == Outcome.MISMATCH
    assert ledger.dump() == before


def test_a_retry_of_the_application_is_a_call_of_its_own() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1), b"first")
    run(ledger, head(TASK, 1, retry=1), b"second", digest=9)
    assert ledger.accept(head(TASK, 1), 1)[2] == b"first"
    assert ledger.accept(head(TASK, 1, retry=1), 9)[2] == b"second"


def test_a_newer_attempt_gets_the_records_and_an_older_one_is_refused() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1, attempts=(0, 1)))
    assert outcome(ledger, head(TASK, 1, attempts=(1, 0))) == Outcome.RECORDED
    for older in [(0, 1), (0, 9), (1,), ()]:
        assert outcome(ledger, head(TASK, 1, attempts=older)) == Outcome.STALE_ATTEMPT
        assert outcome(ledger, head(TASK, 2, attempts=older)) == Outcome.STALE_ATTEMPT
        assert outcome(ledger, head(TASK, 2, attempts=older), mutating=False) == Outcome.STALE_ATTEMPT
    assert outcome(ledger, head(TASK, 2, attempts=(1, 0))) == Outcome.NEW


@pytest.mark.parametrize(("root", "kind"), [(SESSION, 0), (PROCESS, 2)])
def test_a_root_that_nobody_runs_again_forgets_what_it_acknowledges(root: bytes, kind: int) -> None:
    ledger = Ledger(KEY)
    for n in range(1, 5):
        run(ledger, head(root, n, root=root, root_kind=kind, acked=n))
        assert len(ledger) == 1
    assert outcome(ledger, head(root, 2, root=root, root_kind=kind)) == Outcome.EXPIRED
    assert outcome(ledger, head(root, 4, root=root, root_kind=kind)) == Outcome.RECORDED


@pytest.mark.parametrize(
    "caller", [{"parent": TASK}, {"parent": JOB, "root": JOB, "root_kind": 1}], ids=["task", "job"]
)
def test_a_caller_that_may_be_executed_again_keeps_what_it_acknowledges(caller: dict[str, Any]) -> None:
    ledger = Ledger(KEY)
    for n in range(1, 5):
        run(ledger, head(n=n, acked=n, **caller), b"%d" % n)
    again = [ledger.accept(head(n=n, **caller), 1)[2] for n in range(1, 5)]
    assert again == [b"1", b"2", b"3", b"4"]


def test_beyond_the_bound_the_oldest_acknowledged_replies_go_and_leave_their_identity() -> None:
    ledger = Ledger(KEY, reply_bound_calls=3)
    for n in range(1, 6):
        run(ledger, head(TASK, n, acked=n))
    assert [outcome(ledger, head(TASK, n)) for n in range(1, 6)] == [Outcome.EXPIRED] * 2 + [
        Outcome.RECORDED
    ] * 3
    assert outcome(ledger, head(TASK, 1), digest=99) == Outcome.EXPIRED
    assert ledger.counters()["expired"] == 2


def test_the_bound_is_of_bytes_too() -> None:
    ledger = Ledger(KEY, reply_bound_bytes=100)
    for n in range(1, 6):
        run(ledger, head(TASK, n, acked=n), bytes(40))
    assert ledger.counters()["reply_bytes"] == 80
    assert [outcome(ledger, head(TASK, n)) for n in (3, 4)] == [Outcome.EXPIRED, Outcome.RECORDED]


def test_replies_without_acknowledgement_hold_their_caller_back_and_nobody_else() -> None:
    ledger = Ledger(KEY, reply_bound_calls=2)
    for n in (1, 2):
        run(ledger, head(TASK, n))
    assert outcome(ledger, head(TASK, 3)) == Outcome.HELD_BACK
    assert outcome(ledger, head(TASK, 1)) == Outcome.RECORDED
    run(ledger, head(OTHER_TASK, 1))  # owes nothing: one call is let in
    assert outcome(ledger, head(OTHER_TASK, 2)) == Outcome.HELD_BACK
    assert outcome(ledger, head(OTHER_TASK, 2, acked=2)) == Outcome.NEW
    assert outcome(ledger, head(TASK, 3, acked=3)) == Outcome.NEW
    assert ledger.counters()["held_back"] == 2


def test_a_release_makes_room() -> None:
    ledger = Ledger(KEY, reply_bound_calls=2)
    run(ledger, head(TASK, 1))
    run(ledger, head(OTHER_TASK, 1))
    assert outcome(ledger, head(OTHER_TASK, 2)) == Outcome.HELD_BACK
    ledger.release_caller(TASK)
    assert outcome(ledger, head(OTHER_TASK, 2)) == Outcome.NEW


def test_the_reply_that_has_just_come_stays_however_large_it_is() -> None:
    ledger = Ledger(KEY, reply_bound_bytes=10)
    run(ledger, keyed("a"), bytes(8))
    run(ledger, keyed("b"), bytes(100))
    assert outcome(ledger, keyed("a")) == Outcome.EXPIRED
    assert outcome(ledger, keyed("b")) == Outcome.RECORDED


def test_calls_by_key_belong_to_nobody_and_stay_known() -> None:
    ledger = Ledger(KEY, reply_bound_calls=4)
    for name in map(str, range(1000)):
        run(ledger, keyed(name, attempts=(9,)))
    ledger.release_root(SESSION)
    assert {outcome(ledger, keyed(str(n), attempts=(0,))) for n in range(996)} == {Outcome.EXPIRED}
    assert outcome(ledger, keyed("3"), digest=2) == Outcome.MISMATCH
    assert outcome(ledger, keyed("999")) == Outcome.RECORDED
    assert ledger.counters()["expired"] == 996


def test_a_call_that_did_not_run_may_come_again() -> None:
    ledger = Ledger(KEY)
    for call in (head(TASK, 1), keyed("a")):
        assert outcome(ledger, call, digest=1) == Outcome.NEW
        ledger.forget(call)
        assert outcome(ledger, call, digest=2) == Outcome.NEW


def test_a_released_caller_goes_when_its_calls_under_way_have_ended() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1))
    assert outcome(ledger, head(TASK, 2)) == Outcome.NEW
    ledger.release_caller(TASK)
    assert outcome(ledger, head(TASK, 2)) == Outcome.IN_PROGRESS
    assert ledger.counters()["callers"] == 1
    ledger.finish(head(TASK, 2), 0, b"", 2)
    assert ledger.counters()["callers"] == 0 and len(ledger) == 0


def test_a_released_caller_begins_nothing_more() -> None:
    ledger = Ledger(KEY)
    assert outcome(ledger, head(TASK, 1)) == Outcome.NEW
    ledger.release_caller(TASK)
    assert outcome(ledger, head(TASK, 2)) == Outcome.EXPIRED
    ledger.finish(head(TASK, 1), 0, b"one", 1)
    assert ledger.counters()["callers"] == 0


def test_a_late_copy_of_a_call_of_a_released_caller_does_not_run() -> None:
    """An earlier execution died with the call in its ring; the caller was executed again, and released."""
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1, attempts=(1,)))
    ledger.release_caller(TASK)
    assert len(ledger) == 0 and ledger.counters()["callers"] == 0
    for _ in range(2):
        assert outcome(ledger, head(TASK, 1, attempts=(0,))) == Outcome.EXPIRED
        assert outcome(ledger, head(TASK, 1, attempts=(1,))) == Outcome.EXPIRED
        dump = ledger.dump()
        ledger = Ledger(KEY)
        ledger.load(dump)
    assert outcome(ledger, head(OTHER_TASK, 1)) == Outcome.NEW


def test_names_of_released_callers_go_with_their_root_and_the_process_that_could_hear_them() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1, attempts=(1,)))
    ledger.release_root(SESSION)
    assert outcome(ledger, head(TASK, 1, attempts=(0,))) == Outcome.EXPIRED
    dump = ledger.dump()
    assert dump == Ledger(KEY).dump()


def test_a_call_under_way_when_its_caller_is_released_is_not_kept_by_replay() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1, attempts=(1,)))
    ledger.release_caller(TASK)
    ledger.replay(head(TASK, 2, attempts=(1,)), 1, 0, b"late", 2)
    assert len(ledger) == 0 and outcome(ledger, head(TASK, 2, attempts=(1,))) == Outcome.EXPIRED


def test_the_end_of_a_root_spares_callers_inside_of_methods() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1, chain=[identity("other actor")]))
    ledger.release_root(SESSION)
    assert not ledger.knows_root(SESSION)
    assert outcome(ledger, head(TASK, 1, chain=[identity("other actor")])) == Outcome.RECORDED
    dump = ledger.dump()
    ledger = Ledger(KEY)
    ledger.load(dump)
    ledger.release_root(SESSION)
    assert ledger.knows_caller(TASK)
    ledger.release_caller(TASK)
    assert not ledger.knows_caller(TASK)


def test_a_call_in_the_queue_is_stale_when_a_newer_attempt_has_come() -> None:
    ledger = Ledger(KEY)
    for n in (1, 2):
        assert outcome(ledger, head(TASK, n)) == Outcome.NEW
    assert not ledger.stale(head(TASK, 1))
    assert outcome(ledger, head(TASK, 1, attempts=(1,))) == Outcome.IN_PROGRESS
    assert not ledger.stale(head(TASK, 1)) and ledger.stale(head(TASK, 2))
    assert outcome(ledger, head(TASK, 2, attempts=(1,))) == Outcome.IN_PROGRESS
    assert not ledger.stale(head(TASK, 2))


def test_a_newer_attempt_that_was_seen_refuses_the_older_after_a_crash() -> None:
    ledger = Ledger(KEY)
    ledger.see(head(TASK, 1, attempts=(1,)))
    ledger.replay(head(TASK, 1, attempts=(0,)), 1, 0, b"", 1)
    assert outcome(ledger, head(TASK, 2, attempts=(0,))) == Outcome.STALE_ATTEMPT
    assert outcome(ledger, head(TASK, 1, attempts=(1,))) == Outcome.RECORDED


def test_a_root_that_gave_up_waiting_for_a_call_does_not_make_it_run_again() -> None:
    ledger = Ledger(KEY)
    assert outcome(ledger, head(n=1)) == Outcome.NEW
    assert outcome(ledger, head(n=2, acked=2), mutating=False) == Outcome.NEW
    assert outcome(ledger, head(n=1)) == Outcome.IN_PROGRESS
    ledger.finish(head(n=1), 0, b"nobody waits", 1)
    assert len(ledger) == 0
    assert outcome(ledger, head(n=1)) == Outcome.EXPIRED


def test_a_root_is_released_with_all_its_callers() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(TASK, 1))
    run(ledger, head(SESSION, 1))
    run(ledger, head(JOB, 1, root=JOB, root_kind=1))
    ledger.release_root(SESSION)
    assert ledger.counters()["callers"] == 1 and ledger.knows_caller(JOB)


def test_a_chain_that_comes_back_is_refused_unless_it_only_reads() -> None:
    ledger = Ledger(KEY)
    assert outcome(ledger, head(TASK, 1, chain=[TASK, KEY])) == Outcome.CYCLE
    assert outcome(ledger, head(TASK, 1, chain=[TASK, KEY]), mutating=False) == Outcome.NEW
    assert outcome(ledger, head(TASK, 1, chain=[TASK])) == Outcome.NEW


def test_a_read_is_not_entered_but_tells_of_its_caller() -> None:
    ledger = Ledger(KEY)
    assert outcome(ledger, head(), mutating=False) == Outcome.NEW
    assert ledger.counters()["callers"] == 0
    run(ledger, head(n=1))
    assert outcome(ledger, head(n=2, acked=2), mutating=False) == Outcome.NEW
    assert len(ledger) == 0


def test_calls_of_a_history_that_was_given_up_are_refused() -> None:
    ledger = Ledger(KEY, 3)
    run(ledger, head(TASK, 1, history=3))
    ledger.begin_history(4)
    assert ledger.history == 4 and len(ledger) == 1, "what the ledger has is in the state that was restored"
    assert outcome(ledger, head(TASK, 1, history=3)) == Outcome.ROLLED_BACK
    assert outcome(ledger, head(TASK, 1, history=3), mutating=False) == Outcome.ROLLED_BACK
    assert outcome(ledger, head(TASK, 1)) == Outcome.RECORDED
    with pytest.raises(ValueError, match="above the present one, 4"):
        ledger.begin_history(4)


def test_acknowledgements_of_calls_that_come_out_of_order() -> None:
    ledger = Ledger(KEY)
    for n in (5, 2, 9, 1, 7):
        assert outcome(ledger, head(n=n)) == Outcome.NEW
    for n in (9, 1, 5, 2):
        ledger.finish(head(n=n), 0, b"x", n)
    assert outcome(ledger, head(n=8, acked=8)) == Outcome.NEW
    assert len(ledger) == 3  # 7, under way though its caller gave up; 8; 9
    ledger.finish(head(n=7), 0, b"x", 10)
    assert len(ledger) == 2
    assert outcome(ledger, head(n=9)) == Outcome.RECORDED


def test_what_a_journal_has_is_entered_whatever_its_caller_has_done_since() -> None:
    ledger = Ledger(KEY, reply_bound_calls=1)
    ledger.replay(head(TASK, 2, attempts=(1,)), 1, 0, b"two", 5)
    ledger.replay(head(TASK, 1, attempts=(0,)), 1, 0, b"one", 6)
    ledger.replay(head(TASK, 3, attempts=(1,)), 1, 0, None, 7)
    assert ledger.accept(head(TASK, 1, attempts=(1,)), 1) == (Outcome.RECORDED, 0, b"one", 6)
    assert outcome(ledger, head(TASK, 1, attempts=(0,))) == Outcome.STALE_ATTEMPT
    assert outcome(ledger, head(TASK, 3, attempts=(1,))) == Outcome.IN_PROGRESS
    ledger.replay(head(TASK, 3, attempts=(1,)), 1, 2, b"three", 8)
    assert ledger.accept(head(TASK, 3, attempts=(2,)), 1) == (Outcome.RECORDED, 2, b"three", 8)


def test_a_journal_that_contradicts_itself_is_refused() -> None:
    ledger = Ledger(KEY)
    ledger.replay(head(TASK, 1), 1, 0, b"one", 5)
    ledger.replay(head(TASK, 2), 1, 0, None, 6)
    before = ledger.dump()
    for call, digest, reply in [(1, 1, b"one"), (1, 1, None), (2, 2, b"two"), (2, 1, None)]:
        with pytest.raises(ValueError, match="recorded twice"):
            ledger.replay(head(TASK, call), digest, 0, reply, 7)
    assert ledger.dump() == before


@pytest.mark.parametrize(
    "give",
    [
        lambda ledger: ledger.accept(b"short", 1),
        lambda ledger: ledger.finish(head() + b"x", 0, b"", 1),
        lambda ledger: ledger.replay(head()[:-1], 1, 0, b"", 1),
        lambda ledger: ledger.forget(b""),
    ],
)
def test_bytes_that_are_no_head_are_refused(give: Any) -> None:
    with pytest.raises(CallHeadError):
        give(Ledger(KEY))


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Ledger(b"short")
    with pytest.raises(ValueError, match="reply bounds"):
        Ledger(KEY, reply_bound_calls=0)
    with pytest.raises(ValueError, match="16 bytes"):
        Ledger(KEY).release_caller("x" * 16)  # type: ignore[arg-type]


def test_calls_by_key_have_no_attempts() -> None:
    ledger = Ledger(KEY)
    run(ledger, keyed("a", attempts=(2,)), b"a")
    run(ledger, keyed("b", attempts=(1,)), b"b")
    assert outcome(ledger, keyed("a", attempts=(0,))) == Outcome.RECORDED
    assert outcome(ledger, keyed("b", attempts=())) == Outcome.RECORDED


def test_what_a_call_acknowledges_makes_room_for_it() -> None:
    ledger = Ledger(KEY, reply_bound_calls=1)
    run(ledger, head(TASK, 1))
    assert outcome(ledger, head(TASK, 2, acked=1)) == Outcome.HELD_BACK
    assert outcome(ledger, head(TASK, 2, acked=2)) == Outcome.NEW





def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_million_calls_of_short_lived_callers_leave_nothing() -> None:
    gate = Gate(NullJournal(), KEY, 0, 1)
    churn(gate, 100_000, 1000, 10, 100, False)
    before = resident_bytes()
    churn(gate, 1_000_000, 1000, 10, 100, False)  # a hundred generations of 1,000 callers
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # which keeps freed memory for some time
        assert resident_bytes() - before < 4 << 20
    assert gate.ledger.counters()["callers"] == 0 and len(gate.ledger) == 0
    assert gate.ledger.dump() == Ledger(KEY).dump()
    assert gate.journal.append(b"") == 1_100_001


def test_a_caller_of_many_calls_costs_what_its_open_ones_do() -> None:
    gate = Gate(NullJournal(), KEY, 0, 1)
    churn(gate, 300_000, 1, 1_000_000, 100, True)
    assert gate.ledger.counters()["calls"] == 1
    assert len(gate.ledger.dump()) < 250


def test_expired_numbers_of_a_caller_are_a_range() -> None:
    gate = Gate(NullJournal(), KEY, 0, 1, reply_bound_calls=10)
    churn(gate, 300_000, 1, 1_000_000, 100, False)
    counters = gate.ledger.counters()
    assert (counters["calls"], counters["expired"]) == (10, 299_990)
    assert len(gate.ledger.dump()) < 1000
