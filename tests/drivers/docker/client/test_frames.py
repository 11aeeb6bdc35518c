"""Streams taken apart however they are cut, and a log made into what the container wrote."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.docker.client.frames import Frames, merged
from cameleer.drivers.docker.streams.logs import PART, LogReader, Unnoted
from cameleer.drivers.docker.streams.position import Delivered, Position
from cameleer.errors import RecoverableError

SECOND_NS = 1_000_000_000
NOW_NS = 1_700_000_000 * SECOND_NS
STREAM = st.sampled_from([1, 2])


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def joined(pieces: list[tuple[int, bytes]]) -> dict[int, bytes]:
    return {stream: b"".join(data for which, data in pieces if which == stream) for stream in (1, 2)}


@given(st.lists(st.tuples(STREAM, st.binary(max_size=20))), st.lists(st.integers(0, 1000)))
def test_streams_are_the_same_however_their_bytes_are_cut(written: list[tuple[int, bytes]], places: list[int]) -> None:
    data = b"".join(frame(*each) for each in written)
    some, whole = Frames(), Frames(whole=True)
    found, complete = [], []
    for chunk in cut(data, places):
        found += merged(some.feed(chunk))
        complete += whole.feed(chunk)
    assert joined(found) == joined(written)
    assert complete == written


def test_the_beginning_of_a_frame_is_handed_over_at_once() -> None:
    assert Frames().feed(frame(1, b"prompt")[:11]) == [(1, b"pro")]


@pytest.mark.parametrize("header", [b"\x09\0\0\0\0\0\0\1", b"\x01\1\0\0\0\0\0\1", b"\x01\0\0\0\xff\0\0\1"])
def test_what_is_no_frame_is_refused(header: bytes) -> None:
    with pytest.raises(RecoverableError, match="makes no sense"):
        Frames().feed(header + b"x")


def test_an_error_of_the_engine_is_logged_and_is_no_output(caplog: pytest.LogCaptureFixture) -> None:
    assert Frames().feed(frame(3, b"cannot read the log") + frame(1, b"x")) == [(1, b"x")]
    assert "cannot read the log" in caplog.text


def stamped(stream: int, data: bytes, at_ns: int = NOW_NS) -> bytes:
    from datetime import UTC, datetime

    text = datetime.fromtimestamp(at_ns // SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return frame(stream, f"{text}.{at_ns % SECOND_NS:09d}Z ".encode() + data)


def reader(*counts: int, first_ns: int = NOW_NS, last_ns: int = NOW_NS, tty: bool = False) -> LogReader:
    position = Position(first_ns=first_ns, last_ns=last_ns, exact=Delivered(list(counts)))
    return LogReader(position, json=False, tty=tty, tolerance_ns=2 * SECOND_NS, ended_ns=0, task_id="t")


@given(
    st.lists(st.tuples(STREAM, st.binary(min_size=1, max_size=9).map(lambda line: line.replace(b"\n", b"") + b"\n"))),
    st.lists(st.integers(0, 1000)),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_log_goes_on_after_as_many_bytes_as_were_delivered(
    lines: list[tuple[int, bytes]], places: list[int], first: float, second: float
) -> None:
    whole = joined(lines)
    counts = [int(len(whole[1]) * first), int(len(whole[2]) * second)]
    found = []
    log = reader(*counts)
    for chunk in cut(b"".join(stamped(*line) for line in lines), places):
        found += log.feed(chunk)
    assert joined(found) == {1: whole[1][counts[0] :], 2: whole[2][counts[1] :]}


def test_a_terminal_s_log_has_neither_frames_nor_times() -> None:
    log = reader(3, 0, tty=True)
    assert [log.feed(b"ab"), log.feed(b"cde"), log.feed(b"f")] == [[], [(1, b"de")], [(1, b"f")]]


def test_a_lost_end_of_a_long_line_is_put_back_when_another_follows() -> None:
    log = reader(0, 0)
    parts = [b"x" * PART, b"x" * 10, b"next\n", b"y" * PART, b"", b"unfinished"]
    found = [log.feed(stamped(1, part)) for part in parts]
    text = joined([piece for pieces in found for piece in pieces])[1]
    assert text == b"x" * (PART + 10) + b"\nnext\n" + b"y" * PART + b"\nunfinished"


def test_what_was_written_long_after_the_last_delivery_is_new_whatever_the_count_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = reader(100, 0)
    assert log.feed(stamped(1, b"old\n") + stamped(1, b"new\n", NOW_NS + 10 * SECOND_NS)) == [(1, b"new\n")]
    assert "lacks some of what was delivered" in caplog.text


def test_a_log_without_its_beginning_goes_on_by_time(caplog: pytest.LogCaptureFixture) -> None:
    log = reader(10**6, 0, last_ns=NOW_NS + 60 * SECOND_NS)
    old, new = (stamped(1, text, NOW_NS + seconds * SECOND_NS) for text, seconds in ((b"old\n", 50), (b"new\n", 61)))
    assert log.feed(old + new) == [(1, b"new\n")]
    assert "thrown the beginning of the log away" in caplog.text


def test_a_log_without_times_is_refused() -> None:
    with pytest.raises(RecoverableError, match="has no time"):
        reader(0, 0).feed(frame(1, b"what?"))


@given(st.binary(min_size=1, max_size=50), st.integers(0, 50), st.lists(st.integers(0, 100)))
def test_what_a_file_has_already_is_left_out(text: bytes, written: int, places: list[int]) -> None:
    tail = text[:written]
    unnoted = Unnoted(1, tail, json=False)
    found, had = [], b""
    for chunk in cut(text, places):
        pieces, more = unnoted.without([(2, b"other"), (1, chunk)])
        found += pieces
        had += more
    found += unnoted.rest()
    assert (joined(found)[1], had) == (text[len(tail) :], tail)


@given(st.binary(min_size=2, max_size=50))
def test_what_a_file_has_from_others_is_not_taken_for_ours(text: bytes) -> None:
    unnoted = Unnoted(1, text[:-1] + bytes([text[-1] ^ 1]), json=False)
    pieces, had = unnoted.without([(1, text)])
    assert (joined(pieces + unnoted.rest())[1], had) == (text, b"")


# -- the record --------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_left(tmp_path: Path) -> None:
    position = Position.open(tmp_path / "new" / "record")
    position.delivered(1, bytes(10))
    position.delivered(2, bytes(20))
    position.about_to_write(2, 300, 40)
    position.close()
    position.close()
    again = Position.open(tmp_path / "new" / "record")
    assert (again.exact.counts, again.stream, again.size, again.length) == ([10, 20], 2, 300, 40)
    assert again.first_ns <= again.last_ns
    again.close()
    assert (tmp_path / "new" / "record").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", [b"", b"short", b"x" * 112])
def test_what_is_no_record_is_begun_anew(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "record").write_bytes(text)
    position = Position.open(tmp_path / "record")
    assert position.exact.counts == [0, 0]
    position.close()


def test_a_record_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cameleer.drivers.docker.streams.position import Position\n"
        "position = Position.open(Path(sys.argv[1])); print(flush=True)\n"
        "while True: position.delivered(1, b'x'); position.delivered(2, b'x')"
    )
    counts = [0, 0]
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "record"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, 9)
        process.wait()
        process.stdout.close()
        position = Position.open(tmp_path / "record")
        out, err = (now - before for now, before in zip(position.exact.counts, counts, strict=True))
        assert out - err in (0, 1)
        assert err >= 0
        counts = position.exact.counts
        position.close()


def test_nothing_is_noted_without_a_path(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        position = Position.open(None)
        position.about_to_write(1, 0, 5)
        position.delivered(1, bytes(5))
        position.close()
    assert not position.kept
    assert position.exact.counts == [5, 0]
