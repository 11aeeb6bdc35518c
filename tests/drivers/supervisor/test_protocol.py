"""Frames and fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.supervisor.protocol import Frames, Garbled, fields, frame, number, parse, text

VALUES = st.binary().filter(lambda data: b"\0" not in data)
MESSAGES = st.dictionaries(st.from_regex(r"\A[a-z_]{1,9}\Z"), st.lists(VALUES, min_size=1, max_size=4), max_size=5)


@given(MESSAGES)
def test_what_is_written_is_read(message: dict[str, list[bytes]]) -> None:
    assert parse(fields(**message)) == message
    assert parse(fields(**message) + bytes(100)) == message


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(1, 50), max_size=20))
def test_a_stream_is_cut_into_the_same_messages_however_it_arrives(
    messages: list[dict[str, list[bytes]]], cuts: list[int]
) -> None:
    stream = b"".join(frame(**each) for each in messages)
    reader = Frames()
    found = []
    for cut in cuts:
        found += reader.feed(stream[:cut])
        stream = stream[cut:]
    found += reader.feed(stream)
    assert found == messages


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_garbled(data: bytes) -> None:
    for message in Frames().feed(data):
        for key in message:
            text(message, key)
            try:
                number(message, key)
            except Garbled:
                continue


def test_values_have_defaults() -> None:
    message = parse(fields(a=1, b="ü", c=[b"1", b"2"], d=b""))
    assert (number(message, "a"), text(message, "b"), message["c"], text(message, "d")) == (1, "ü", [b"1", b"2"], "")
    assert (number(message, "none", 7), text(message, "none", "x")) == (7, "x")
    with pytest.raises(Garbled, match="b is"):
        number(message, "b")
