"""The decisions: options, keys, lineage, scheduler."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._core.segscan import first_nonzero
from ftray.checkpoint import (
    Checkpointable,
    CheckpointOptionError,
    NoSessionError,
    UnsupportedStoreError,
    engine,
    readonly,
)
from ftray.checkpoint.actor import options_of, readonly_names
from ftray.checkpoint.host import ActorIdentity
from ftray.checkpoint.keys import from_file_name, key_of, to_file_name
from ftray.checkpoint.lineage import SnapshotName, counted, doomed, parse_id
from ftray.checkpoint.options import restart_defaults, validate
from ftray.checkpoint.scheduler import CAPTURE, STARVED, SaveScheduler
from ftray.checkpoint.stores import connect, resolve_url

N = SnapshotName


class TestOptions:
    def test_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FTRAY_CHECKPOINT_STORE", raising=False)
        monkeypatch.setenv("XDG_STATE_HOME", "/state")

        class A(Checkpointable):
            pass

        options = options_of(A)
        assert options.store == "/state/ftray/checkpoints"
        assert (options.every, options.interval_s, options.keep, options.restore) == (100, None, 2, "auto")
        monkeypatch.setenv("XDG_STATE_HOME", "")
        monkeypatch.setenv("HOME", "/home/someone")
        assert options_of(A).store == "/home/someone/.local/state/ftray/checkpoints"
        monkeypatch.setenv("FTRAY_CHECKPOINT_STORE", "file:///named")
        assert options_of(A).store == "file:///named"

    def test_an_interval_alone_means_no_counting(self) -> None:
        class A(Checkpointable, interval_s=5):
            pass

        class B(Checkpointable, interval_s=5, every=7):
            pass

        assert (options_of(A).every, options_of(A).interval_s) == (None, 5.0)
        assert options_of(B).every == 7

    def test_nothing_given_means_inherit(self) -> None:
        class A(Checkpointable, store="/a", every=7, keep=4):
            pass

        class B(A):
            pass

        class C(B, keep=3):
            pass

        assert (options_of(B).store, options_of(B).every, options_of(B).keep) == ("/a", 7, 4)
        assert (options_of(C).store, options_of(C).every, options_of(C).keep) == ("/a", 7, 3)

    def test_a_class_pickled_by_value_keeps_its_options(self, tmp_path: Path) -> None:
        class A(Checkpointable, store="/a", every=7):
            @readonly
            def look(self) -> None: ...

        class B(A, keep=5):
            pass

        program = (
            "import sys, pickle; from ftray.checkpoint.actor import options_of, readonly_names;"
            "B = pickle.loads(sys.stdin.buffer.read()); print(*options_of(B)[:4], *readonly_names(B))"
        )
        elsewhere = subprocess.run(
            [sys.executable, "-c", program],
            input=cloudpickle.dumps(B),
            capture_output=True,
            check=True,
            cwd=tmp_path,
        )
        assert elsewhere.stdout.decode().split() == ["/a", "7", "None", "5", "look"]

    def test_paths_may_be_path_objects(self, tmp_path: Path) -> None:
        class A(Checkpointable, store=tmp_path):
            pass

        assert options_of(A).store == str(tmp_path)
        assert cloudpickle.loads(cloudpickle.dumps(A)).__checkpoint_options__ == {"store": str(tmp_path)}

    def test_mixins_get_their_own_keywords(self) -> None:
        class Mixin:
            def __init_subclass__(cls, *, colour: str = "none", **other: object) -> None:
                super().__init_subclass__(**other)
                cls.colour = colour  # type: ignore[attr-defined]

        class A(Checkpointable, Mixin, every=3, colour="red"):
            pass

        assert A.colour == "red" and options_of(A).every == 3  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("given_options", "named"),
        [
            ({"every": 0}, "every=0"),
            ({"every": True}, "every=True"),
            ({"every": 1.5}, "every=1.5"),
            ({"interval_s": 0}, "interval_s=0"),
            ({"interval_s": float("inf")}, "interval_s=inf"),
            ({"interval_s": "1"}, "interval_s='1'"),
            ({"save_share": 0}, "save_share=0.*more than 0, at most 1"),
            ({"save_share": True}, "save_share=True"),
            ({"keep": 1}, "keep=1"),
            ({"restore": "maybe"}, "'auto', 'never', 'require'"),
            ({"checkpoint_version": 0}, "checkpoint_version=0"),
            ({"checkpoint_key": ""}, "checkpoint_key=''"),
            ({"checkpoint_key": 3}, "checkpoint_key=3"),
            ({"durability": "node"}, "'process', 'power'"),
            ({"store": 3}, "store=3"),
            ({"store": ""}, "store=''"),
            ({"formerly": [1]}, "formerly"),
            ({"evry": 3}, "evry.*every"),
            ({"exactly_once": 1}, "exactly_once=1.*True or False"),
            ({"after": "nothing"}, "'nothing' is not one.*incr|'nothing' is not one.*none"),
            ({"after": [3]}, "after"),
            ({"code_version": 3}, "code_version=3.*exactly_once=True"),
            ({"takeover": True}, "takeover=True.*exactly_once=True"),
            ({"exactly_once": True, "code_version": -1}, "code_version=-1"),
            ({"exactly_once": True, "code_version": 1 << 63}, "code_version"),
            ({"exactly_once": True, "takeover": "yes"}, "takeover='yes'"),
            ({"exactly_once": True, "verify": None}, "verify=None"),
            ({"exactly_once": True, "reply_bound_calls": 0}, "reply_bound_calls=0"),
            ({"exactly_once": True, "reply_bound_bytes": 0}, "reply_bound_bytes=0"),
        ],
    )
    def test_what_is_wrong_is_named(self, given_options: dict[str, object], named: str) -> None:
        with pytest.raises(CheckpointOptionError, match=named):
            type("A", (Checkpointable,), {}, **given_options)

        class Fine(Checkpointable):
            pass

        with pytest.raises(CheckpointOptionError, match=named):
            engine.spec_of(Fine, given_options)

    def test_exactly_once_has_defaults_of_its_own(self) -> None:
        plain, once = validate({}), validate({"exactly_once": True})
        assert (plain.every, plain.durability) == (100, None)
        assert (once.every, once.durability, once.exactly_once) == (1000, "process", True)
        assert validate({"exactly_once": True, "interval_s": 3}).every is None
        assert validate({"exactly_once": True, "every": None}).every is None
        assert validate({"exactly_once": True, "durability": "power"}).durability == "power"
        assert validate({"exactly_once": False}) == plain

    def test_exactly_once_restarts_without_bound_unless_told(self) -> None:
        assert restart_defaults({"exactly_once": True}) == {"max_restarts": -1, "max_task_retries": -1}
        assert (
            restart_defaults({"exactly_once": False}) == restart_defaults({}) == restart_defaults(None) == {}
        )

    def test_verifying_is_switched_on_for_a_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for value, expected in (("1", True), ("0", False), ("", False)):
            monkeypatch.setenv("FTRAY_CHECKPOINT_VERIFY", value)
            assert validate({"exactly_once": True}).verify is expected
            assert validate({}).verify is expected
        monkeypatch.setenv("FTRAY_CHECKPOINT_VERIFY", "no")
        with pytest.raises(CheckpointOptionError, match="FTRAY_CHECKPOINT_VERIFY='no' is not valid"):
            validate({"exactly_once": True})

    @pytest.mark.parametrize(
        "url", ["ftp://host/x", "kv://", "s3://", "actor://", "memory://", "file://host/x", "file://x"]
    )
    def test_stores_that_are_not_there(self, url: str) -> None:
        with pytest.raises(UnsupportedStoreError, match="file:///absolute/path"):
            type("A", (Checkpointable,), {}, store=url)

    def test_urls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/me")
        assert resolve_url("a b") == f"file://{tmp_path}/a%20b"
        assert resolve_url("~/x") == "file:///home/me/x"
        assert resolve_url("file:///a%20b/../c") == "file:///c"
        assert resolve_url("file://localhost/x") == "file:///x"
        assert connect("file:///a%25/%C3%BC")._root == "/a%/ü"  # type: ignore[attr-defined]
        assert resolve_url(connect("/tmp/ü%?#").url) == connect("/tmp/ü%?#").url
        with pytest.raises(UnsupportedStoreError, match="%"):
            resolve_url("file:///a%zz")

    def test_the_specification_is_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class A(Checkpointable, store="here"):
            pass

        monkeypatch.chdir(tmp_path)
        assert engine.spec_of(A, {"checkpoint_key": "k"}) == {
            "store": f"file://{tmp_path}/here",
            "checkpoint_key": "k",
        }
        assert engine.spec_of(int) is None
        with pytest.raises(CheckpointOptionError, match="not Checkpointable"):
            engine.spec_of(int, {"checkpoint_key": "k"})

    def test_readonly_is_lost_by_an_override(self) -> None:
        class A(Checkpointable):
            @readonly
            def a(self) -> None: ...
            @readonly
            def b(self) -> None: ...
            @staticmethod
            @readonly
            def c() -> None: ...

        class B(A):
            def a(self) -> None: ...

        assert readonly_names(A) == {"a", "b", "c"} and readonly_names(B) == {"b", "c"}

    def test_an_object_that_no_engine_runs(self) -> None:
        class A(Checkpointable):
            pass

        with pytest.raises(NoSessionError, match="not a running actor"):
            A().checkpoint()


class TestKeys:
    def test_kinds(self) -> None:
        named = ActorIdentity("ns", "name", "id", "C")
        assert key_of(named, None) == ("ns/name", False)
        assert key_of(named, "mine") == ("mine", False)
        assert key_of(named._replace(name=""), None) == ("_unnamed/C-id", True)

    @given(st.text(min_size=1, max_size=60))
    def test_file_names_are_reversible_and_plain(self, key: str) -> None:
        try:
            name = to_file_name(key)
        except CheckpointOptionError:
            return
        assert from_file_name(name) == key
        assert "/" not in name and not name.startswith(".") and name.isascii()

    @given(st.text(max_size=30))
    def test_other_names_are_nobodys(self, name: str) -> None:
        key = from_file_name(name)
        assert key is None or to_file_name(key) == name


class TestLineage:
    def test_ids(self) -> None:
        assert parse_id(N(3, 17).id) == N(3, 17)
        for wrong in ("", "3", "-3", "3-", "a-1", "1-2-3", "٣-1"):
            with pytest.raises(CheckpointOptionError, match="epoch-sequence"):
                parse_id(wrong)

    def test_a_late_file_of_a_stale_epoch_does_not_count(self) -> None:
        names = [N(1, 1), N(1, 2), N(1, 3), N(2, 3)]
        assert counted(names, 2, [N(1, 1), N(1, 2)]) == [N(1, 1), N(1, 2), N(2, 3)]
        assert counted(names, 0, []) == names
        assert counted(names, 3, []) == []

    def test_retention(self) -> None:
        names = [N(1, 1), N(1, 2), N(1, 3), N(2, 3), N(2, 4)]
        present = counted(names, 2, [N(1, 2)])
        assert doomed(names, present, 2) == [N(1, 1), N(1, 2), N(1, 3)]
        assert doomed(names, present, 3) == [N(1, 1)]
        assert doomed(names, present, 4) == []

    @given(st.sets(st.tuples(st.integers(1, 4), st.integers(1, 6)).map(lambda t: N(*t))), st.data())
    def test_never_fewer_than_keep_remain(self, names: set[SnapshotName], data: st.DataObject) -> None:
        line = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
        present = counted(names, data.draw(st.integers(0, 5)), line)
        keep = data.draw(st.integers(2, 4))
        gone = set(doomed(names, present, keep))
        left = [n for n in present if n not in gone]
        assert left == present[-keep:] and gone <= names


class TestScheduler:
    def test_a_want_waits_for_the_save_in_flight(self) -> None:
        s = SaveScheduler(0.0, None)
        assert s.want("every", 0.0) == (CAPTURE,)
        assert s.started() == "every"
        assert s.want("request", 1.0) == () and s.want("every", 1.0) == ()
        assert s.ended(True, 2.0) == (CAPTURE,)
        assert s.started() == "request"
        assert s.ended(True, 3.0) == () and s.deadline_s is None

    def test_intervals_skip_what_has_not_changed(self) -> None:
        s = SaveScheduler(0.0, 10.0)
        assert s.deadline_s == 10.0
        assert s.timer(10.0, dirty=False) == () and s.deadline_s == 20.0
        assert s.timer(20.0, dirty=True) == (CAPTURE,) and s.wanted == "interval"

    def test_failures_are_retried_with_back_off(self) -> None:
        s = SaveScheduler(0.0, None, retry_first_s=1.0, retry_max_s=5.0)
        now, waits = 0.0, []
        for _ in range(5):
            s.want("x", now)
            s.started()
            assert s.ended(False, now) == ()
            assert s.deadline_s is not None
            waits.append(s.deadline_s - now)
            now = s.deadline_s
            assert s.timer(now, dirty=False) == (CAPTURE,) and s.wanted == "retry"
        assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
        s.started()
        s.ended(True, now)
        assert s.failures == 0 and s.deadline_s is None

    def test_starving_is_told_once(self) -> None:
        s = SaveScheduler(0.0, None, starve_s=60.0)
        s.want("every", 1.0)
        assert s.timer(60.0, True) == () and s.timer(61.0, True) == (STARVED,) and s.timer(200.0, True) == ()
        assert s.may_capture

    def test_illegal_steps_are_refused(self) -> None:
        s = SaveScheduler(0.0, None)
        with pytest.raises(AssertionError):
            s.started()
        with pytest.raises(AssertionError):
            s.ended(True, 0.0)

    @pytest.mark.parametrize("seed", range(20))
    def test_no_want_is_ever_forgotten(self, seed: int) -> None:
        """Random events; then the store heals, and everything wanted must become saved."""
        rng = random.Random(seed)
        s = SaveScheduler(0.0, rng.choice([None, 3.0]))
        now, wants, covered, in_capture = 0.0, 0, 0, 0
        for step in range(2000):
            now += rng.random()
            healing = step > 1500
            event = rng.choice(["timer", "end", "gap"] if healing else ["want", "timer", "end", "gap"])
            if event == "want":
                wants += 1
                s.want("w", now)
            elif event == "timer" and s.deadline_s is not None:
                now = max(now, s.deadline_s)
                s.timer(now, dirty=False)
            elif event == "end" and s.in_flight:
                ok = healing or rng.random() < 0.5
                s.ended(ok, now)
                covered = in_capture if ok else covered
            elif event == "gap" and s.may_capture:
                s.started()
                in_capture = wants
            assert not (s.in_flight and s.may_capture), f"seed {seed}"
        assert covered == wants and s.wanted is None and not s.failures, f"seed {seed}"


@given(st.binary(max_size=40), st.integers(0, 80_000), st.binary(max_size=40), st.integers(0, 90_000))
def test_the_first_byte_that_is_not_zero_is_found(before: bytes, zeros: int, behind: bytes, at: int) -> None:
    data = before + bytes(zeros) + behind + bytes(zeros // 3)
    wanted = next((i for i in range(at, len(data)) if data[i]), None) if any(data[at:]) else None
    assert first_nonzero(data, at) == wanted
