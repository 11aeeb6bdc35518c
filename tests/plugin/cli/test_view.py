from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.cli.view import HEIGHT, Style, View, clock, graph
from cameleer.config import Resources
from cameleer.usage import CpuUsage, IoUsage, MemoryUsage, ProcessUsage, TaskResourceUsage

SECOND = 1_000_000_000
PLAIN = Style(colour=False, unicode=True)
SGR = re.compile(r"\x1b\[[0-9;]*m")


def reading(at: int, percent: float | None, memory: int | None) -> TaskResourceUsage:
    return TaskResourceUsage(
        at_ns=at * SECOND,
        taken_at_ns=at * SECOND,
        window_ns=SECOND if percent is not None else None,
        cpu=CpuUsage(total_ns=3 * at * (at + 1) // 2 * SECOND // 100, percent=percent),
        memory=MemoryUsage(pss_bytes=memory, measure="pss"),
        processes=ProcessUsage(processes=3, threads=8),
        io=IoUsage(read_bytes=0, write_bytes=4096),
    )


def view(limits: Resources | None = None, command: tuple[str, ...] = ("make", "-j4")) -> View:
    made = View(command, limits or Resources(), "raw_exec", 0)
    for second in range(30):
        made.add(reading(second, None if second == 0 else 3.0 * second, (10 + second) << 20))
    return made


def test_the_view_at_eighty_columns() -> None:
    assert view().frame(42 * SECOND, 80, PLAIN) == [
        "── make -j4 ───────────────────────────────────────────────────────────── 0:42 ─",
        "cpu          87.0 %  ▁▁▁▁▂▂▂▂▃▃▃▃▄▄▄▄▅▅▅▅▆▆▆▆▇▇▇▇▇                   peak 87.0 %",
        "memory     39.0 MiB  ▃▃▃▃▄▄▄▄▄▅▅▅▅▅▆▆▆▆▆▇▇▇▇▇█████            peak 39.0 MiB, PSS",
        "tree    3 processes, 8 threads, read 0 B, written 4.0 KiB, raw_exec",
    ]


def test_limits_are_shown_and_fill_the_graph() -> None:
    frame = view(Resources(cpu_quota_cores=2, memory_bytes=400 << 20)).frame(0, 100, PLAIN)
    assert "limit 200 %" in frame[1]
    assert "limit 400.0 MiB" in frame[2]
    assert "█" not in frame[1] + frame[2]


@given(st.integers(1, 200), st.booleans(), st.booleans(), st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_no_line_is_wider_than_the_terminal(columns: int, colour: bool, unicode: bool, command: list[str]) -> None:
    from unicodedata import combining, east_asian_width

    for line in view(command=tuple(command)).frame(7 * SECOND, columns, Style(colour, unicode)):
        plain = SGR.sub("", line)
        wide = sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in plain)
        assert wide <= columns
        assert plain.isprintable()


def test_forty_columns_keep_the_values_and_give_up_the_notes() -> None:
    frame = view().frame(42 * SECOND, 40, PLAIN)
    assert len(frame) == HEIGHT
    assert "87.0 %" in frame[1]
    assert "39.0 MiB" in frame[2]
    assert all(len(line) <= 40 for line in frame)


def test_without_colours_there_is_no_escape_sequence_and_without_unicode_only_ascii() -> None:
    frame = view(command=("größe", "日本")).frame(0, 80, Style(colour=False, unicode=False))
    assert all(line.isascii() and line.isprintable() for line in frame)


def test_colours_change_nothing_but_colours() -> None:
    coloured = view().frame(0, 80, Style(colour=True, unicode=True))
    assert [SGR.sub("", line) for line in coloured] == view().frame(0, 80, PLAIN)


def test_before_the_first_reading_nothing_is_claimed() -> None:
    frame = View(["x"], Resources(), "raw_exec", 0).frame(0, 80, PLAIN)
    assert "0 B" not in "".join(frame)
    assert "%" not in "".join(frame)


def test_memory_that_cannot_be_read_is_called_not_measured() -> None:
    made = View(["x"], Resources(), "raw_exec", 0)
    made.add(reading(1, 50.0, None))
    assert "not measured" in made.frame(0, 80, PLAIN)[2]


def test_a_window_shorter_than_the_clock_tick_draws_nothing() -> None:
    made = View(["x"], Resources(), "raw_exec", 0)
    made.add(TaskResourceUsage(at_ns=1, taken_at_ns=1, window_ns=50_000_000, cpu=CpuUsage(percent=200.0)))
    assert "200" not in made.frame(0, 80, PLAIN)[1]


def test_the_line_for_dumb_terminals_is_plain_ascii() -> None:
    line = view().line(42 * SECOND)
    assert line == "0:42, cpu 87.0 %, memory 39.0 MiB, peak 39.0 MiB, PSS"
    assert line.isascii()


@given(st.lists(st.floats(0, 1e12), max_size=50), st.floats(1, 1e12), st.integers(1, 60))
def test_a_graph_is_as_wide_as_asked(history: list[float], top: float, width: int) -> None:
    assert len(graph(history, top, width, PLAIN)) == width


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59, "0:59"), (3599, "59:59"), (3723, "1:02:03")])
def test_the_clock(seconds: int, shown: str) -> None:
    assert clock(seconds * SECOND) == shown
