"""What is new in a log, wherever the delivery stopped."""

from __future__ import annotations

import time

import pytest
from fake_engine import frame
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.docker.streams.jsontext import JsonText
from cameleer.drivers.docker.streams.logs import LogReader
from cameleer.drivers.docker.streams.position import Position

START_S = 1_700_000_000
PIECES = st.tuples(
    st.sampled_from([1, 2]), st.sampled_from([b"\n", b"a", b"bc", "ä".encode(), b"\xff", b"e\nf", b"g\n"])
)


def stamped(at_s: int, text: bytes) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z ", time.gmtime(at_s)).encode() + text


def logged(pieces: list[tuple[int, bytes]], pause_s: int) -> list[bytes]:
    """As the engine logs pieces that come ``pause_s`` apart: a line when it ends, the rest at the end."""
    found, held = [], {1: b"", 2: b""}
    for number, (stream, data) in enumerate(pieces):
        *lines, held[stream] = (held[stream] + data).split(b"\n")
        found += [frame(stream, stamped(START_S + number * pause_s, JsonText().feed(line + b"\n"))) for line in lines]
    for stream, rest in held.items():
        if rest:
            text = JsonText().feed(rest + b"\n")[:-1]
            found.append(frame(stream, stamped(START_S + len(pieces) * pause_s, text)))
    return found


@given(st.lists(PIECES, max_size=30), st.integers(min_value=0, max_value=30), st.sampled_from([0, 1, 10]))
@pytest.mark.parametrize("near", [True, False])
def test_the_rest_comes_without_gap_or_repeat(
    near: bool, pieces: list[tuple[int, bytes]], before: int, pause_s: int
) -> None:
    position = Position()
    for number, (stream, data) in enumerate(pieces[:before]):
        had_lines = position.first_ns
        position.delivered(stream, data)
        position.last_ns = (START_S + number * pause_s) * 1_000_000_000
        position.first_ns = had_lines or (position.last_ns if position.first_ns else 0)
    reader = LogReader(
        position,
        json=True,
        tty=False,
        tolerance_ns=2_000_000_000 if near else 300_000_000_000,
        ended_ns=position.last_ns if near else 0,
        task_id="t",
    )
    new = {1: b"", 2: b""}
    for chunk in logged(pieces, pause_s):
        for stream, data in reader.feed(chunk):
            new[stream] += data
    for stream, data in new.items():
        rest = b"".join(piece for its, piece in pieces[before:] if its == stream)
        assert data == JsonText().feed(rest + b"\n")[:-1]
