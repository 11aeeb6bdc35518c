from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.docker.stats.clock import (
    LAG_NS,
    MARGIN_NS,
    SLEW,
    TOLERANCE_NS,
    WINDOW_NS,
    EngineClock,
    is_never,
    unix_ns,
)
from cameleer.errors import RecoverableError

MS = 1_000_000
SECOND = 1000 * MS
ENGINE = 1_700_000_000 * SECOND
"""What the engine's clock says when ours says 0."""


def test_times_are_read_to_the_nanosecond() -> None:
    assert unix_ns("2024-03-05T10:11:12.123456789Z") == 1_709_633_472_123_456_789
    assert unix_ns("1970-01-01T00:00:00Z") == 0
    assert unix_ns("1970-01-01T00:00:00.5Z") == 500_000_000
    assert unix_ns("1970-01-01T00:00:00.0000000019Z") == 1
    assert unix_ns("2024-03-05T11:11:12.1+01:00") == unix_ns("2024-03-05T10:11:12.1Z")
    assert unix_ns("2024-03-04T22:41:12-11:30") == unix_ns("2024-03-05T10:11:12Z")
    assert unix_ns("0001-01-01T00:00:00Z") == -62_135_596_800 * SECOND


@given(st.datetimes(timezones=st.just(UTC)), st.integers(0, 999_999_999))
def test_any_time_is_what_the_calendar_says(moment: datetime, fraction: int) -> None:
    whole = moment.replace(microsecond=0)
    text = f"{whole.replace(tzinfo=None).isoformat()}.{fraction:09}Z"
    assert unix_ns(text) == int((whole - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * SECOND + fraction


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2024-03-05",
        "2024-13-05T10:11:12Z",
        "2024-02-30T10:11:12Z",
        "2024-03-05T24:11:12Z",
        "2024-03-05T10:11:12",
        "2024-03-05T10:61:12Z",
        "2024-03-05T10:11:12.Z",
        "٢٠٢٤-03-05T10:11:12Z",
        "0000-01-01T00:00:00Z",
    ],
)
def test_what_is_no_time_is_an_error(text: str) -> None:
    with pytest.raises(RecoverableError, match="the engine's time"):
        unix_ns(text)


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_an_error(text: str) -> None:
    with suppress(RecoverableError):
        assert isinstance(unix_ns(text), int)


def test_the_year_1_and_nothing_mean_never() -> None:
    assert is_never("0001-01-01T00:00:00Z")
    assert is_never("")
    assert not is_never("2024-03-05T10:11:12Z")


def test_the_first_reading_is_true_about_when_it_arrived() -> None:
    assert EngineClock().at_ns(ENGINE, received_ns=SECOND) == SECOND - MARGIN_NS


@given(
    st.lists(st.tuples(st.integers(900 * MS, 1100 * MS), st.integers(0, MARGIN_NS + 200 * MS)), min_size=1, max_size=50)
)
def test_time_between_readings_is_the_engines_own_however_late_they_arrive(steps: list[tuple[int, int]]) -> None:
    """The first arrives at once, the others when they can."""
    clock = EngineClock()
    read, start = ENGINE, clock.at_ns(ENGINE, received_ns=0)
    for step, delay in steps:
        read += step
        assert clock.at_ns(read, received_ns=read - ENGINE + delay, after_ns=read - step) - start == read - ENGINE


@given(
    st.integers(-(1 << 62), 1 << 62),
    st.lists(st.tuples(st.integers(0, 10 * SECOND), st.integers(-10 * SECOND, 10 * SECOND)), max_size=30),
)
def test_no_reading_lies_in_the_future(engine: int, steps: list[tuple[int, int]]) -> None:
    clock, now = EngineClock(), 0
    for step, jump in steps:
        now += step
        engine += step + jump
        assert clock.at_ns(engine, received_ns=now) <= now


def test_a_first_reading_that_came_late_is_corrected_once() -> None:
    clock = EngineClock()
    clock.at_ns(ENGINE, received_ns=100 * MS)  # 100 ms after it was read
    second = clock.at_ns(ENGINE + SECOND, received_ns=SECOND + 2 * MS)
    assert second == SECOND + 2 * MS - MARGIN_NS
    third = clock.at_ns(ENGINE + 2 * SECOND, received_ns=2 * SECOND)  # 2 ms quicker: within the margin
    assert third - second == SECOND


def test_a_clock_that_was_set_forward_is_followed() -> None:
    clock = EngineClock()
    first = clock.at_ns(ENGINE, received_ns=0)
    second = clock.at_ns(ENGINE + 3601 * SECOND, received_ns=SECOND)
    third = clock.at_ns(ENGINE + 3602 * SECOND, received_ns=2 * SECOND)
    assert (second - first, third - second) == (SECOND, SECOND)


@pytest.mark.parametrize("back", [3600, 5])
def test_a_clock_that_was_set_back_is_followed(back: int) -> None:
    clock = EngineClock()
    first = clock.at_ns(ENGINE, received_ns=0)
    second = clock.at_ns(ENGINE + (1 - back) * SECOND, received_ns=SECOND, after_ns=ENGINE)
    assert second - first == SECOND


def test_a_reading_is_not_much_older_than_the_question() -> None:
    """So a clock set back by less than the interval is noticed, too."""
    clock = EngineClock()
    clock.at_ns(ENGINE, received_ns=0)
    asked, received = 10 * SECOND, 10 * SECOND + 300 * MS
    read = ENGINE + received - 6 * SECOND
    assert clock.at_ns(read, received_ns=received, asked_ns=asked, after_ns=ENGINE) == received - MARGIN_NS


def test_a_reading_a_little_older_than_the_question_is_believed() -> None:
    clock = EngineClock()
    first = clock.at_ns(ENGINE, received_ns=0)
    asked = received = 10 * SECOND
    age = TOLERANCE_NS - MARGIN_NS
    assert clock.at_ns(ENGINE + received - age, received_ns=received, asked_ns=asked) - first == received - age


@given(st.integers(20, 150))
def test_a_clock_that_runs_slow_is_followed_without_a_jump(parts_per_million: int) -> None:
    clock, last = EngineClock(), None
    for second in range(1, 3600):
        now = second * SECOND
        at = clock.at_ns(ENGINE + now - now * parts_per_million // 1_000_000, received_ns=now, asked_ns=now - 900 * MS)
        assert last is None or abs(at - last - SECOND) <= WINDOW_NS // SLEW + MS
        last = at
    assert last is not None
    assert now - last < LAG_NS + MS + 2 * WINDOW_NS * parts_per_million // 1_000_000


@given(st.integers(20, 200))
def test_a_clock_that_runs_fast_is_followed_without_a_jump(parts_per_million: int) -> None:
    clock, last = EngineClock(), None
    for second in range(1, 600):
        now = second * SECOND
        at = clock.at_ns(ENGINE + now + now * parts_per_million // 1_000_000, received_ns=now)
        assert last is None or abs(at - last - SECOND) <= MARGIN_NS + MS
        last = at
    assert last is not None
    assert now - last <= MARGIN_NS
