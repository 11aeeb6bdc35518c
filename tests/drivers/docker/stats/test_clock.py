from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cameleer.drivers.docker.stats.clock import (
    RENEW_NS,
    SLEW,
    TOLERANCE_NS,
    EngineClock,
    Times,
    is_never,
    system_ns,
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


def test_an_engine_says_what_time_it_has() -> None:
    assert system_ns({"SystemTime": "1970-01-01T01:00:01.5+01:00"}) == 1_500 * MS
    for info in ({}, [], None, {"SystemTime": 5}, {"SystemTime": "now"}, {"SystemTime": "0001-01-01T00:00:00Z"}):
        assert system_ns(info) is None


class Engine:
    """An engine, its clock, and one of its containers, measured by us.

    :ivar ahead_ns: how far its clock is ahead of ours.
    """

    def __init__(self, ahead_ns: int = ENGINE) -> None:
        self.ahead_ns = ahead_ns
        self.clock = EngineClock()
        self.times = Times(self.clock)
        self.asked = 0

    def tell(self, now_ns: int, there_ns: int = 0, back_ns: int = 0) -> None:
        """It is asked for its time, and has it; that takes so long there and back."""
        self.asked += 1
        received_ns = now_ns + there_ns + back_ns
        self.clock.told(now_ns + there_ns + self.ahead_ns, asked_ns=now_ns, received_ns=received_ns)

    def read(self, now_ns: int, late_ns: int = 0, asked_ns: int | None = None) -> int | None:
        """It reads the container now; that is handled so late. It is asked for its time where that must be."""
        read_ns, received_ns = now_ns + self.ahead_ns, now_ns + late_ns
        fits = self.clock.fits(read_ns, received_ns=received_ns, asked_ns=asked_ns)
        if not fits or not self.times.is_newer(read_ns) or self.clock.is_due(received_ns):
            self.tell(received_ns, MS, MS)
        return self.times.at_ns(read_ns, received_ns=received_ns)


late = st.integers(0, 5 * SECOND) | st.sampled_from([0, MS, 100 * MS, SECOND])


@given(late, late, st.lists(st.tuples(st.integers(900 * MS, 10 * SECOND), late, late), min_size=1, max_size=50))
def test_time_between_readings_is_the_engines_own_however_late_answers_are_handled(
    there: int, back: int, steps: list[tuple[int, int, int]]
) -> None:
    """The first reading, and what the engine said of its time, included."""
    engine = Engine()
    engine.tell(0, there, back)
    now = begun = there + back
    first = engine.read(now, steps[0][2])
    assert first is not None
    for step, before, delay in steps:
        now += step
        at = engine.read(now, delay, asked_ns=now - before)
        assert at is not None
        assert at - first == now - begun
        assert now - there <= at <= now
    assert engine.asked <= 1 + now // RENEW_NS


@given(st.lists(st.tuples(st.integers(900 * MS, 10 * SECOND), late, late, late), min_size=1, max_size=50))
def test_what_becomes_known_of_the_clock_changes_no_rate(steps: list[tuple[int, int, int, int]]) -> None:
    engine = Engine()
    engine.tell(0, 5 * SECOND, 5 * SECOND)
    now, last = 10 * SECOND, None
    for step, delay, there, back in steps:
        now += step
        at = engine.read(now, delay)
        assert at is not None
        assert at <= now
        assert last is None or abs(at - last - step) <= step / SLEW
        last = at
        engine.tell(now, there, back)
    assert engine.clock.times_set == 0


@given(
    st.integers(-(1 << 62), 1 << 62),
    st.lists(st.tuples(st.integers(0, 10 * SECOND), st.integers(-10 * SECOND, 10 * SECOND), late), max_size=30),
)
def test_no_reading_lies_in_the_future_or_before_the_last_whatever_the_clock_does(
    ahead: int, steps: list[tuple[int, int, int]]
) -> None:
    engine, now, last = Engine(ahead), 0, None
    for step, jump, delay in steps:
        now += step
        engine.ahead_ns += jump
        at = engine.read(now, delay)
        assert at is None or at <= now + delay
        assert at is None or last is None or at > last
        last = last if at is None else at


def test_a_clock_known_late_is_corrected_little_by_little() -> None:
    engine = Engine()
    engine.tell(0, 1300 * MS)  # we were busy before we sent the question
    first = engine.read(2 * SECOND)
    assert first == 700 * MS
    engine.tell(2 * SECOND, MS, MS)
    last = first
    for second in range(3, 300):
        at = engine.read(second * SECOND)
        assert at is not None
        assert SECOND <= at - last <= SECOND + SECOND // SLEW
        last = at
    assert last == 299 * SECOND - MS


@pytest.mark.parametrize("step", [3600, 5, 1, -1, -5, -3600])
@pytest.mark.parametrize("interval", [1, 10])
def test_a_clock_that_was_set_is_followed(step: int, interval: int) -> None:
    engine = Engine()
    engine.tell(0, MS, MS)
    first = engine.read(interval * SECOND, MS, asked_ns=interval * SECOND - 900 * MS)
    engine.ahead_ns += step * SECOND
    second, third = (
        engine.read(turn * interval * SECOND, MS, asked_ns=turn * interval * SECOND - 100 * MS) for turn in (2, 3)
    )
    assert first is not None
    assert second is not None
    assert third is not None
    assert second - first == pytest.approx(interval * SECOND, abs=2 * MS)
    assert third - second == interval * SECOND
    assert engine.asked == 2


def test_a_reading_is_not_much_older_than_the_question() -> None:
    """So a clock set back by less than the interval is noticed, too."""
    engine = Engine()
    engine.tell(0)
    assert engine.clock.fits(ENGINE + 10 * SECOND - TOLERANCE_NS, received_ns=11 * SECOND, asked_ns=10 * SECOND)
    assert not engine.clock.fits(ENGINE + 9 * SECOND, received_ns=11 * SECOND, asked_ns=10 * SECOND)
    assert engine.clock.fits(ENGINE + 9 * SECOND, received_ns=11 * SECOND)


def test_after_the_clock_was_set_a_reading_too_near_to_the_last_is_left_out() -> None:
    engine = Engine()
    engine.tell(0)
    engine.read(SECOND)
    engine.ahead_ns -= 10 * SECOND
    engine.tell(SECOND, 900 * MS)  # so a reading may be taken for so much older than it is
    assert engine.times.at_ns(engine.ahead_ns + 2 * SECOND, received_ns=2 * SECOND) is None
    assert engine.times.at_ns(engine.ahead_ns + 3 * SECOND, received_ns=3 * SECOND) == 2100 * MS


@settings(deadline=None, max_examples=50)
@given(st.integers(-500, 500))
def test_a_clock_that_runs_apart_is_followed_without_a_jump(parts_per_million: int) -> None:
    engine, last = Engine(), None
    engine.tell(0, MS, MS)
    for second in range(1, 3600):
        now = second * SECOND
        engine.ahead_ns = ENGINE + now * parts_per_million // 1_000_000
        at = engine.read(now, MS, asked_ns=now - 900 * MS)
        assert at is not None
        assert at <= now + MS
        assert last is None or at - last == pytest.approx(SECOND, rel=0.01)
        last = at
        assert now - at <= 10 * MS + RENEW_NS * 500 // 1_000_000
    assert engine.asked < 20
    assert engine.clock.times_set == 0
