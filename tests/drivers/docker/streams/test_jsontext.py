"""What a real engine's log makes of bytes that are no text, and what we think that it does."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from engine import Engine, needs_engine
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.docker.streams.jsontext import PART, JsonText

PIECES = st.sampled_from([b"\n", b"a", b"\xff", b"\xe2", b"\x82", b"\xac", "€".encode(), b"\xed\xa0\x80", b"\xf0\x9f"])
TEXT = "ä€😀".encode()
LINES = b"".join(
    [
        b"plain\n\xff\xfe\n\xe2\x82\n\xed\xa0\x80\xc0\xaf\xf0\x9f\x98\n",
        *(b"." * (PART - less) + TEXT + b"\n" for less in range(11)),
        b"." * PART + b"\n" + TEXT * 4000 + b"\n" + b"\xff" * (2 * PART) + b"end",
    ]
)


@given(st.lists(PIECES, max_size=40), st.integers(min_value=1, max_value=7))
def test_however_it_is_cut_the_same_comes_out(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces) + b"\n"
    text = JsonText()
    cut = b"".join(text.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert cut == JsonText().feed(data)
    assert cut.decode().replace("\ufffd", "") == data.decode(errors="ignore")


@pytest.mark.root
@needs_engine
@pytest.mark.parametrize("size", [1000, 65536])
def test_it_is_what_the_engine_hands_back(engine: Engine, tmp_path: Path, size: int) -> None:
    (tmp_path / "text").write_bytes(base64.b64encode(LINES))
    script = "base64 -d /text"
    container = engine.out("create", "--network=none", "--log-driver=json-file", "busybox:test", "sh", "-c", script)
    try:
        engine.cli("cp", str(tmp_path / "text"), f"{container}:/text")
        engine.cli("start", container)
        engine.cli("wait", container)
        text = JsonText()
        assert (
            b"".join(text.feed(LINES[at : at + size]) for at in range(0, len(LINES), size))
            == engine.cli("logs", container).stdout
        )
    finally:
        engine.cli("rm", "--force", container)
