"""What a store says of a call whose actor is gone, and what it must not say while somebody holds the key."""

from __future__ import annotations

import pytest

from ftray._core.identity import derive_callee_key
from ftray._core.records import decode_head, encode_head
from ftray.checkpoint import CheckpointCorruptedError, PoisonCallError, outcomes
from ftray.checkpoint.codec import ToolkitCodec
from ftray.checkpoint.testing import crash
from tests.unit.checkpoint.once_support import KEY, Lives, hooks, memory

CODEC = ToolkitCodec()


def ask(lives, head, **more):
    return outcomes.of_store(lives.store, KEY, head, CODEC, **more)


def ended(lives):
    crash(lives.session)
    return lives


@pytest.fixture
def lives():
    return Lives(every=3).start()


def made(lives, method, *args, key=None):
    """Make a call and send it; returns its head."""
    call = lives.caller.call(KEY, method, *args)
    try:
        lives.send(call)
    except ValueError:
        pass
    return call.head


def test_committed_with_its_reply_from_journal_and_snapshot(lives):
    heads = [made(lives, "incr") for _ in range(7)]
    ended(lives)
    assert ask(lives, heads[6])[:3] == ("committed", True, 7)
    # Those that its caller has acknowledged are known without their replies.
    assert [ask(lives, head).state for head in heads] == ["committed"] * 7
    assert not ask(lives, heads[0]).kept


def test_an_error_is_a_reply(lives):
    head = made(lives, "fail")
    found = ask(ended(lives), head)
    assert found.state == "committed" and isinstance(found.error, ValueError) and found.value is None


def test_not_committed_only_when_nobody_holds_the_key(lives):
    head = lives.caller.call(KEY, "incr").head
    found = ask(lives, head)
    assert found.state == "unknown" and "held by a Tally" in found.reason
    found = ask(ended(lives), head)
    assert found.state == "not committed" and found.reason


def test_a_call_that_has_begun_is_unknown(lives):
    call = lives.caller.call(KEY, "run", None)

    def stop(tally):
        tally.record(lambda: 1)
        raise KeyboardInterrupt

    hooks.append(stop)
    with pytest.raises(KeyboardInterrupt):
        lives.send(call)
    found = ask(lives, call.head)
    assert found.state == "unknown" and "has begun" in found.reason


def test_a_caller_that_was_forgotten(lives):
    head = made(lives, "incr")
    told = decode_head(head)
    lives.session.exactly_once.release([told.parent], [])
    lives.session.exactly_once.wait(lives.session.exactly_once.last_position)
    ended(lives)
    assert ask(lives, head, own=False).state == "unknown"


def test_a_tombstone_is_no_call_that_never_ran(lives):
    told = decode_head(made(lives, "incr"))
    again = encode_head(
        root_kind=0, root=told.root, parent=told.parent, call_id=told.call_id, n=told.n, attempts=(1,)
    )
    once = lives.session.exactly_once
    once.ledger.see(again)
    once.release([told.parent], [])
    assert once.ledger.look(again)[0] == "unknown"
    assert once.outcome(again).state == "unknown"


def test_nothing_under_the_key():
    head = outcomes.keyed_head("x", derive_callee_key(KEY))
    found = outcomes.of_store(memory(), KEY, head, CODEC)
    assert found.state == "unknown" and "nothing under" in found.reason


def test_a_call_that_was_given_up_is_not_committed():
    found = outcomes.failed(PoisonCallError("died in it"))
    assert found.state == "not committed" and isinstance(found.error, PoisonCallError)


def test_a_key_that_changes_hands_while_it_is_read(lives, monkeypatch):
    """A record that an incarnation wrote after its key was claimed says nothing: the next one may cut it."""
    head = made(lives, "incr")
    real = outcomes._look

    def claimed_meanwhile(store, key, head):
        found = real(store, key, head)
        store.claim(key, store.scan(key).newest_epoch + 1, b"somebody")
        return found

    monkeypatch.setattr(outcomes, "_look", claimed_meanwhile)
    found = ask(lives, head)
    assert found.state == "unknown" and "changes just now" in found.reason


def test_a_snapshot_that_was_replaced_while_it_was_read(lives, monkeypatch):
    head = made(lives, "incr")
    real, times = outcomes._look, []

    def gone_once(store, key, head):
        times.append(1)
        if len(times) == 1:
            raise FileNotFoundError("retired")
        return real(store, key, head)

    monkeypatch.setattr(outcomes, "_look", gone_once)
    assert ask(lives, head).state == "committed" and len(times) == 2


def test_a_damaged_key_is_unknown_and_says_why(lives, monkeypatch):
    head = made(lives, "incr")
    ended(lives)

    def damaged(store, key, head):
        raise CheckpointCorruptedError("the journal is damaged at position 1")

    monkeypatch.setattr(outcomes, "_look", damaged)
    found = ask(lives, head)
    assert found.state == "unknown" and "damaged at position 1" in found.reason
