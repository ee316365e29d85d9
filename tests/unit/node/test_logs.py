"""Cutting output into labelled lines, and collapsing equal ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ftray._node.logs import MAX_LINE_BYTES, Chunk, LineBuffer, LineCollapser


class TestLineBuffer:
    def test_whole_lines_only(self) -> None:
        buffer = LineBuffer()
        assert buffer.feed(b"one\ntwo\nthr") == [Chunk("", b"one\ntwo\n")]
        assert buffer.feed(b"ee") == []
        assert buffer.feed(b"\n") == [Chunk("", b"three\n")]

    def test_the_unfinished_line_comes_at_the_end(self) -> None:
        buffer = LineBuffer()
        buffer.feed(b"no newline")
        assert buffer.finish() == [Chunk("", b"no newline\n")]
        assert buffer.finish() == []

    def test_a_label_holds_from_its_line_on(self) -> None:
        buffer = LineBuffer()
        chunks = buffer.feed(b"a\n\x1ef\x1e\nb\n\x1eg(actor)\x1e\nc\n")
        assert chunks == [Chunk("", b"a\n"), Chunk("f", b"b\n"), Chunk("g(actor)", b"c\n")]
        assert buffer.feed(b"d\n") == [Chunk("g(actor)", b"d\n")]

    def test_a_marker_inside_a_line_is_text(self) -> None:
        assert LineBuffer().feed(b"x\x1ey\x1e\n") == [Chunk("", b"x\x1ey\x1e\n")]

    def test_a_line_without_end_comes_in_pieces_and_is_not_kept(self) -> None:
        buffer = LineBuffer()
        out = b""
        for _ in range(50):
            out += b"".join(c.text for c in buffer.feed(b"x" * 10_000))
            assert len(buffer._partial) <= MAX_LINE_BYTES
        assert out.replace(b"\n", b"").count(b"x") + len(buffer._partial) == 500_000

    def test_the_tail_is_what_was_written_last(self) -> None:
        buffer = LineBuffer()
        buffer.feed(b"".join(b"%d\n" % n for n in range(100)))
        assert buffer.tail().splitlines() == [str(n) for n in range(80, 100)]

    @given(
        st.lists(st.sampled_from([b"a", b"\n", b"\x1en\x1e\n", b"\x1e", b"text\n"]), max_size=30), st.data()
    )
    def test_any_cut_gives_the_same_text(self, parts: list[bytes], data: st.DataObject) -> None:
        whole = b"".join(parts)

        def collect(pieces: list[bytes]) -> list[tuple[str, bytes]]:
            buffer = LineBuffer()
            chunks = [c for piece in pieces for c in buffer.feed(piece)] + buffer.finish()
            return [(c.label, line) for c in chunks for line in c.text.splitlines(keepends=True)]

        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert collect(pieces) == collect([whole])


class TestLineCollapser:
    def test_the_first_comes_at_once_the_others_as_a_count(self) -> None:
        collapser = LineCollapser(window_s=5.0)
        assert collapser.line("(a) ", "hello", 0.0) == ["(a) hello"]
        assert collapser.line("(b) ", "hello", 1.0) == []
        assert collapser.line("(c) ", "hello", 2.0) == []
        assert collapser.next_flush_s() == 5.0
        assert collapser.flush_due(4.9) == []
        assert collapser.flush_due(5.0) == ["(c) hello [repeated 2x across processes]"]
        assert collapser.line("(b) ", "hello", 5.1) == ["(b) hello"]

    def test_one_process_that_repeats_itself_is_printed_each_time(self) -> None:
        collapser = LineCollapser()
        assert [collapser.line("(a) ", "tick", t) for t in (0.0, 1.0)] == [["(a) tick"], ["(a) tick"]]

    def test_empty_lines_are_not_collapsed(self) -> None:
        collapser = LineCollapser()
        assert [collapser.line(source, "", 0.0) for source in ("(a) ", "(b) ")] == [["(a) "], ["(b) "]]

    def test_what_is_remembered_is_bounded_and_pushed_out_with_its_count(self) -> None:
        collapser = LineCollapser(max_lines=2)
        collapser.line("(a) ", "x", 0.0)
        collapser.line("(b) ", "x", 0.0)
        collapser.line("(a) ", "y", 0.0)
        assert collapser.line("(a) ", "z", 0.0) == ["(b) x [repeated 1x across processes]", "(a) z"]

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["a ", "b "]), st.sampled_from(["x", "y", "z"]), st.sampled_from([0.0, 3.0])
            ),
            max_size=40,
        )
    )
    def test_every_line_is_printed_or_counted(self, events: list[tuple[str, str, float]]) -> None:
        collapser = LineCollapser(window_s=5.0, max_lines=2)
        now_s, out = 0.0, []
        for source, text, pause_s in events:
            now_s += pause_s
            out += collapser.line(source, text, now_s)
        out += collapser.flush()
        counted = sum(
            int(line.split("repeated ")[1].split("x")[0]) if "repeated" in line else 1 for line in out
        )
        assert counted == len(events)
