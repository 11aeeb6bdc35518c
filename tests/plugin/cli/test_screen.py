from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.cli.screen import Above, Beside

ROWS, COLUMNS, HEIGHT = 12, 40, 4
FRAME = ["view one", "view two", "view three", "view four"]
PIECES = [
    b"text ",
    b"\r\n",
    "größe 日本 ".encode(),
    b"\x1b[31mred\x1b[0m",
    b"\x1b[2J",
    b"\x1b[r",
    b"\x1b[1;5r",
    b"\x1b[99;1H",
    b"\x1b[12;3Hlow",
    b"\x1b[999d",
    b"\x1b7",
    b"\x1b8",
    b"\x1b[J",
    b"\x1b]0;a title\x07",
    b"\x1b]2;another\x1b\\",
    b"\x1bc",
    b"\x1b[?1049h",
    b"\x1b[?1049l",
    b"\x1b[?25l",
    b"\x1b(B",
    b"\x1b[K",
    b"\x1b[!p",
]


class Terminal:
    """A screen with a view at its bottom."""

    def __init__(self, drawing: ModuleType) -> None:
        self.screen: Any = drawing.Screen(ROWS, COLUMNS)
        self.above = Above(ROWS, HEIGHT)
        self.screen.feed(self.above.begin())
        self.draw()

    def draw(self) -> None:
        self.screen.feed(self.above.draw(FRAME))

    def write(self, data: bytes) -> None:
        self.screen.feed(self.above.feed(data))
        if self.above.spoilt and not self.above.busy:
            self.draw()

    def view(self) -> list[str]:
        return list(self.screen.text()[-HEIGHT:])


@pytest.fixture
def terminal(drawing: ModuleType) -> Terminal:
    return Terminal(drawing)


def test_output_scrolls_above_the_view(terminal: Terminal) -> None:
    for number in range(50):
        terminal.write(f"line {number}\r\n".encode())
    assert terminal.view() == FRAME
    assert terminal.screen.text()[: ROWS - HEIGHT] == [f"line {number}" for number in range(43, 50)] + [""]
    assert terminal.screen.scrolled[-1] == "line 42"


def test_drawing_leaves_the_cursor_where_the_task_had_it(terminal: Terminal) -> None:
    terminal.write(b"before ")
    terminal.draw()
    terminal.write(b"after")
    assert terminal.screen.text()[0] == "before after"


def test_a_task_that_addresses_rows_below_its_own_stays_above_the_view(terminal: Terminal) -> None:
    terminal.write(b"\x1b[999;1Hbottom line")
    assert terminal.view() == FRAME
    assert terminal.screen.text()[ROWS - HEIGHT - 1] == "bottom line"


def test_a_task_that_erases_the_screen_or_resets_the_terminal_does_not_lose_the_view(terminal: Terminal) -> None:
    for sequence in (b"\x1b[2J", b"\x1bc", b"\x1b[r", b"\x1b[H\x1b[J", b"\x1b[?1049h", b"\x1b[!p"):
        terminal.write(sequence + b"x\r\n" * 30)
        assert terminal.view() == FRAME, sequence


def test_the_view_waits_for_the_end_of_an_escape_sequence(terminal: Terminal) -> None:
    terminal.write(b"\x1b[3")
    assert terminal.above.busy
    terminal.write(b"1mred")
    assert not terminal.above.busy
    assert terminal.screen.text()[0] == "red"


def test_the_view_waits_while_the_task_holds_the_saved_cursor(terminal: Terminal) -> None:
    terminal.write(b"here\x1b7\x1b[5;1Hthere")
    assert terminal.above.busy
    terminal.write(b"\x1b8 again")
    assert not terminal.above.busy
    assert terminal.screen.text()[0] == "here again"


def test_the_view_does_not_wait_for_ever(terminal: Terminal) -> None:
    terminal.write(b"\x1b7\x1b[")
    assert terminal.above.release() == b"\x1b["
    assert not terminal.above.busy


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.data())
def test_where_the_output_is_cut_makes_no_difference(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces) + b"."
    whole = Above(ROWS, HEIGHT)
    expected = whole.feed(stream)
    cut = Above(ROWS, HEIGHT)
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    parts = [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]
    assert b"".join(cut.feed(part) for part in parts) == expected


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40))
def test_whatever_the_task_writes_the_view_comes_back(drawing: ModuleType, pieces: list[bytes]) -> None:
    terminal = Terminal(drawing)
    for piece in pieces:
        terminal.write(piece)
    terminal.screen.feed(terminal.above.release())
    terminal.draw()
    assert terminal.view() == FRAME


@given(st.binary(max_size=200))
def test_no_byte_is_lost_or_invented_without_escape_sequences(data: bytes) -> None:
    data = data.replace(b"\x1b", b"")
    above = Above(ROWS, HEIGHT)
    assert above.feed(data) + above.release() == data


def test_the_end_wipes_the_view_and_frees_the_whole_terminal(terminal: Terminal) -> None:
    terminal.write(b"done\r\n")
    terminal.screen.feed(terminal.above.end() + b"$ ")
    assert terminal.screen.text()[:2] == ["done", "$"]
    assert terminal.view() == [""] * HEIGHT
    assert (terminal.screen.top, terminal.screen.bottom) == (0, ROWS - 1)


def test_beside_the_task_the_view_is_redrawn_in_place_and_begins_anew_when_told(drawing: ModuleType) -> None:
    screen, beside = drawing.Screen(ROWS, COLUMNS), Beside()
    screen.feed(beside.draw(["one", "two"]))
    screen.feed(beside.draw(["uno", "due"]))
    assert screen.text()[:3] == ["uno", "due", ""]
    beside.leave()
    screen.feed(b"Password: \r\n" + beside.draw(["one", "two"]))
    assert screen.text()[:5] == ["uno", "due", "Password:", "one", "two"]
