"""Segments and recovery: what any damage of the bytes makes of a journal. Pure."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray._core import journal as core
from ftray.checkpoint import CheckpointCorruptedError, CheckpointFormatError, blobs, recovery, segments
from ftray.checkpoint.segments import CLOSED, END, MARK, SegmentHeader, encode_header, encode_record, scan
from ftray.checkpoint.stores import life
from ftray.checkpoint.stores.local import LocalStore

from . import make_golden_journal as golden
from . import second_reader
from .journal_suite import KEY, begin, fill, payload, upto

GOLDEN = Path(__file__).parent / "golden"
BOOT, OTHER = b"b" * 16, b"o" * 16


def build(
    first: int,
    last: int,
    *,
    epoch: int = 1,
    number: int = 1,
    durability: str = "power",
    group: int = 4,
    size: int = 16384,
    boot: bytes = BOOT,
    tail: int = 0,
) -> bytes:
    """A segment as the writer makes it: `group` records are synced at a time, the last group is not."""
    header = SegmentHeader(
        "k", epoch, number, first if number == 1 else 0, durability, size, bytes([epoch, number] * 8), boot
    )
    data = encode_header(header)
    for position in range(first, last + 1):
        synced = first - 1 + (position - first) // group * group
        data += encode_record(header.seed, position, [payload(position)], synced=synced)
    if tail:
        synced = last if tail in (MARK, CLOSED) else first - 1 + (last - first) // group * group
        data += encode_record(header.seed, last, [], synced=synced, kind=tail)
    return data.ljust(size, b"\0")


def judge(*datas: bytes, after: int = 0, boot: bytes = BOOT) -> tuple[list[int], recovery.Chosen]:
    """Positions that count, each held against its payload."""
    by_id: dict[tuple[int, int], bytes] = {}
    epochs: dict[int, list[segments.Scan | recovery.Unread]] = {}
    for data in datas:
        scanned = scan(data)
        by_id[scanned.header.epoch, scanned.header.number] = data
        epochs.setdefault(scanned.header.epoch, []).append(scanned)
    chosen = recovery.judge(epochs, boot, after, {})
    for epoch, number, record in chosen.records:
        assert segments.payload_of(by_id[epoch, number], record) == payload(record.position)
    return [r.position for _, _, r in chosen.records], chosen


def offsets(data: bytes) -> dict[int, segments.Record]:
    return {r.position: r for r in scan(data).data}


def flip(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def zero_from(data: bytes, at: int) -> bytes:
    return data[:at].ljust(len(data), b"\0")


class TestTails:
    def test_a_whole_segment(self) -> None:
        positions, chosen = judge(build(1, 20))
        assert positions == upto(20) and chosen.notes == chosen.lost == []

    def test_an_unfinished_batch_is_cut_wherever_it_broke(self) -> None:
        data = build(1, 20)  # 17 to 20 were never said to be durable
        for position in (17, 18, 19, 20):
            broken = flip(data, offsets(data)[position].start)
            positions, chosen = judge(broken, boot=OTHER)
            assert positions == upto(position - 1) and len(chosen.notes) == 1 and not chosen.lost

    def test_damage_of_what_was_durable_raises(self) -> None:
        data = build(1, 20)
        for position in range(1, 17):
            with pytest.raises(CheckpointCorruptedError, match=f"position {position} .*durable"):
                judge(flip(data, offsets(data)[position].start))

    def test_a_mark_makes_the_last_batch_known(self) -> None:
        data = build(1, 20, tail=MARK)
        with pytest.raises(CheckpointCorruptedError, match="position 19"):
            judge(flip(data, offsets(data)[19].offset + 9))

    def test_in_process_mode_only_the_last_record_can_be_torn(self) -> None:
        data = build(1, 20, durability="process", group=100)
        positions, chosen = judge(flip(data, offsets(data)[20].start))
        assert positions == upto(19) and len(chosen.notes) == 1 and not chosen.lost
        with pytest.raises(CheckpointCorruptedError, match="position 20 follows"):
            judge(flip(data, offsets(data)[7].start))

    def test_a_new_boot_in_process_mode_starts_and_says_what_is_lost(self) -> None:
        data = build(1, 20, durability="process", group=6)
        positions, chosen = judge(flip(data, offsets(data)[19].start), boot=OTHER)
        assert positions == upto(18)
        assert len(chosen.lost) == 1 and "position 18" in chosen.lost[0] and "position 20" in chosen.lost[0]
        with pytest.raises(CheckpointCorruptedError, match="position 12"):
            judge(flip(data, offsets(data)[12].start), boot=OTHER)
        positions, chosen = judge(data, boot=OTHER)
        assert positions == upto(20) and len(chosen.lost) == 1, "what may have followed is not known"
        positions, chosen = judge(build(1, 20, durability="process", tail=CLOSED), boot=OTHER)
        assert positions == upto(20) and not chosen.lost

    def test_a_short_file(self) -> None:
        data = build(1, 20)
        for cut in (5000, len(data) - 1, 4096):
            with pytest.raises(CheckpointCorruptedError, match="bytes where"):
                judge(data[:cut])
        process = build(1, 20, durability="process", group=100)
        with pytest.raises(CheckpointCorruptedError, match="bytes where"):
            judge(process[:5000])
        positions, chosen = judge(process[:5000], boot=OTHER)
        assert positions == upto(positions[-1]) and chosen.lost

    def test_either_copy_of_the_header_is_enough(self) -> None:
        data = build(1, 5)
        for at in (0, 9, 20, 50, 76):
            assert judge(flip(data, at))[0] == judge(flip(data, 2048 + at))[0] == upto(5)
            with pytest.raises(CheckpointFormatError):
                scan(flip(flip(data, at), 2048 + at))


class TestReusedBlocks:
    def test_old_records_are_none_of_ours(self) -> None:
        """The rest of the segment holds what another segment, or this one in an earlier life, had there."""
        for other in (build(1, 60, epoch=2), build(1, 60, number=2), build(1, 60, epoch=1)):
            mine = bytearray(build(1, 5))
            if scan(other).header.segment_id == scan(bytes(mine)).header.segment_id:
                header = scan(other).header._replace(segment_id=b"an earlier life.")
                other = encode_header(header) + b"".join(
                    encode_record(header.seed, p, [payload(p)]) for p in upto(60)
                )
                other = other.ljust(16384, b"\0")
            end = scan(bytes(mine)).records[-1].next_offset
            mine[end:] = other[end:]
            positions, chosen = judge(bytes(mine))
            assert positions == upto(5) and len(chosen.notes) == 1


class TestChains:
    def test_segments_follow_each_other(self) -> None:
        first, second = build(1, 20, tail=END), build(21, 30, number=2)
        assert judge(first, second)[0] == upto(30)
        assert judge(first, second, after=25)[0] == upto(30, 26)
        assert judge(second, after=22)[0] == upto(30, 23)

    def test_a_missing_segment(self) -> None:
        first, second, third = (
            build(1, 9, tail=END),
            build(10, 19, number=2, tail=END),
            build(20, 25, number=3),
        )
        with pytest.raises(CheckpointCorruptedError, match="segment 2 is missing|position 10"):
            judge(first, third)
        with pytest.raises(CheckpointCorruptedError, match="another one follows"):
            judge(first, second)
        with pytest.raises(CheckpointCorruptedError, match="gap"):
            judge(second, third, after=3)
        lost = [build(1, 9, tail=END, durability="process", group=99, boot=OTHER)]
        positions, chosen = judge(*lost)
        assert positions == upto(9) and "missing" in chosen.lost[0]

    def test_a_segment_that_lost_its_end(self) -> None:
        first, second = build(1, 20, tail=END), build(21, 30, number=2)
        first = zero_from(first, offsets(first)[18].offset)
        with pytest.raises(CheckpointCorruptedError, match="position 18"):
            judge(first, second)

    def test_an_epoch_cuts_those_before_it(self) -> None:
        old, new = build(1, 30), build(21, 25, epoch=2)
        assert judge(old, new)[0] == upto(25)
        damaged = flip(old, offsets(old)[22].start)
        assert judge(damaged, new)[0] == upto(25), "what does not count may be damaged"
        assert judge(old, build(21, 20, epoch=2))[0] == upto(20)
        assert judge(old, build(11, 12, epoch=5), build(21, 22, epoch=3))[0] == upto(12)

    def test_gaps_between_epochs(self) -> None:
        old, new = build(1, 10), build(15, 20, epoch=2)
        assert judge(old, new, after=14)[0] == upto(20, 15) and judge(old, new, after=17)[0] == upto(20, 18)
        for after in (0, 9, 10, 13):
            with pytest.raises(CheckpointCorruptedError, match="gap"):
                judge(old, new, after=after)
        with pytest.raises(CheckpointCorruptedError, match="gap"):
            judge(old, build(15, 14, epoch=2), after=5)

    def test_what_is_not_known_to_be_durable(self) -> None:
        chosen = recovery.judge({1: [scan(build(1, 20))]}, BOOT, 0, {1: 17})
        assert [r.position for _, _, r in chosen.records] == upto(17)


class TestUnread:
    @staticmethod
    def unread(
        durability: str, *, blank: bool, header: bool = True, same_boot: bool = False
    ) -> recovery.Unread:
        return recovery.Unread(2, 1, durability, "zeros", header, blank, same_boot)

    @pytest.mark.parametrize("durability", ["process", "power"])
    def test_an_epoch_that_a_loss_of_power_took_whole(self, durability: str) -> None:
        epochs = {1: [scan(build(1, 9))], 2: [self.unread(durability, blank=True)]}
        chosen = recovery.judge(epochs, OTHER, 0, {})
        assert chosen.last_position == 9
        assert bool(chosen.lost) == (durability == "process") and bool(chosen.notes) == (
            durability == "power"
        )

    def test_damage(self) -> None:
        for bad in (
            self.unread("power", blank=False),
            self.unread("process", blank=False, header=False),
            self.unread("power", blank=True, same_boot=True),
            self.unread("process", blank=True, same_boot=True),
        ):
            with pytest.raises(CheckpointCorruptedError):
                recovery.judge({1: [scan(build(1, 9))], 2: [bad]}, OTHER, 0, {})


def _all_records(data: bytes) -> list[segments.Record]:
    scanned = scan(data)
    return [*scanned.records, *scanned.beyond]


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_any_damage_gives_a_prefix_or_an_error(data: st.DataObject) -> None:
    """Never a wrong record, and never fewer than what was durable, in the durability that promises it."""
    durability = data.draw(st.sampled_from(["process", "power"]))
    boot = data.draw(st.sampled_from([BOOT, OTHER]))
    group = data.draw(st.integers(1, 8))
    split = data.draw(st.integers(1, 24))
    parts = [
        build(1, split, durability=durability, group=group, tail=END, size=8192),
        build(split + 1, 25, number=2, durability=durability, group=group, size=8192),
    ]
    which = data.draw(st.integers(0, 1))
    raw = parts[which]
    used = scan(raw).records[-1].next_offset + 40 if scan(raw).records else 4200
    kind = data.draw(st.sampled_from(["flip", "zero", "cut", "garbage", "copy"]))
    at = data.draw(st.integers(0, used))
    if kind == "flip":
        raw = flip(raw, at, data.draw(st.integers(0, 7)))
    elif kind == "zero":
        end = data.draw(st.integers(at, used))
        raw = raw[:at] + bytes(end - at) + raw[end:]
    elif kind == "cut":
        raw = raw[:at]
    elif kind == "garbage":
        noise = random.Random(at).randbytes(data.draw(st.integers(1, 300)))
        raw = raw[:at] + noise + raw[at + len(noise) :]
    else:
        source = data.draw(st.integers(4096, used))
        piece = raw[source : source + data.draw(st.integers(8, 400))]
        raw = raw[:at] + piece + raw[at + len(piece) :]
    parts[which] = raw
    try:
        positions, chosen = judge(*parts, boot=boot)
    except (CheckpointCorruptedError, CheckpointFormatError):
        return
    assert positions == upto(len(positions))
    left = [r for part in parts for r in _all_records(part)]
    assert len(positions) >= max((r.synced for r in left), default=0), "it was known to be durable"
    if durability == "process" and boot == BOOT:
        assert len(positions) >= max((r.position for r in left), default=0), "it was complete"
    if durability == "process" and boot == OTHER and len(positions) < 25:
        assert chosen.lost


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=12), st.integers(0, 5000))
@settings(max_examples=100, deadline=None)
def test_any_prefix_of_the_bytes_gives_a_prefix_of_the_records(payloads: list[bytes], cut: int) -> None:
    header = SegmentHeader("k", 1, 1, 1, "process", 16384, bytes(16), BOOT)
    data = encode_header(header)
    for position, content in enumerate(payloads, 1):
        data += encode_record(header.seed, position, [content])
    scanned = scan(data[: 4096 + cut].ljust(16384, b"\0"))
    got = [segments.payload_of(data, r) for r in scanned.records]
    assert got == payloads[: len(got)]
    assert (
        len(got) == len(payloads)
        or scanned.records == []
        or scanned.records[-1].next_offset <= 4096 + cut + 8
    )


class TestFormat:
    def test_the_golden_files_are_read(self) -> None:
        data = (GOLDEN / "journal-v1.power").read_bytes()
        assert data == golden.segment()
        scanned = scan(data)
        assert scanned.header == golden.HEADER and scanned.ended and scanned.synced == 43
        assert [(r.position, segments.payload_of(data, r)) for r in scanned.data] == golden.RECORDS
        said = life.decode((GOLDEN / "life-v1.live").read_bytes())
        assert said is not None and (said.epoch, said.deaths()) == (3, (bytes(range(32, 48)), 2))
        assert blobs.decode((GOLDEN / "blob-v1").read_bytes()) == b"large " + bytes(range(256))

    def test_a_second_reader_agrees(self, tmp_path: Path) -> None:
        data = (GOLDEN / "journal-v1.power").read_bytes()
        assert second_reader.header(data)["key"] == golden.KEY
        assert [(p, x) for kind, p, x in second_reader.records(data) if kind == 1] == golden.RECORDS
        for durability in ("process", "power"):
            store = LocalStore(str(tmp_path / durability))
            _, journal = begin(store, durability)
            fill(journal, 1, 100)
            journal.close(30)
            (path,) = (tmp_path / durability).glob("*/journal-*")
            found = list(second_reader.records(path.read_bytes()))
            assert [(p, x) for kind, p, x in found if kind == 1] == [(p, payload(p)) for p in upto(100)]
            assert found[-1][0] == CLOSED
            header = second_reader.header(path.read_bytes())
            assert (header["key"], header["epoch"], header["first"]) == (KEY, 1, 1)
            assert header["size"] == path.stat().st_size and header["durability"] == durability

    def test_the_cores_checksum_is_that_of_zlib(self) -> None:
        generator = random.Random(7)
        for size in (0, 1, 7, 8, 9, 63, 64, 1000):
            data = generator.randbytes(size)
            assert core.crc32(data) == zlib.crc32(data) and core.crc32(data, 77) == zlib.crc32(data, 77)

    def test_what_cannot_be_written(self) -> None:
        with pytest.raises(ValueError, match="kind 1"):
            encode_record(0, 1, [b""])
        with pytest.raises(ValueError, match="kind 2"):
            encode_record(0, 1, [b"x"], kind=MARK)
        with pytest.raises(ValueError, match="does not fit"):
            encode_header(golden.HEADER._replace(key="k" * 2000))

    def test_versions_and_modes_to_come(self) -> None:
        whole = golden.segment()
        for at, what in ((8, "version"), (10, "durability")):
            copy = bytearray(whole[: 76 + len(golden.KEY.encode())])
            copy[at] = 9
            changed = bytes(copy) + zlib.crc32(bytes(copy)).to_bytes(4, "little")
            with pytest.raises(CheckpointFormatError, match=what):
                scan(changed.ljust(2048, b"\0") * 2 + whole[4096:])
