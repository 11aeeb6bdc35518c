from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.cli import units
from cameleer.errors import ConfigError

SUFFIXES = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


@given(st.integers(0, 10**9), st.sampled_from(sorted(SUFFIXES)), st.sampled_from(["", "b", "B", "iB", "ib"]))
def test_a_size_is_its_number_times_a_power_of_1024(number: int, letter: str, ending: str) -> None:
    ending = ending if letter else ending.replace("i", "")
    for text in (f"{number}{letter}{ending}", f"{number}{letter.upper()}{ending}", f" {number} {letter}{ending} "):
        assert units.parse_size(text) == number << SUFFIXES[letter]


@given(st.integers(0, 999), st.text("0123456789", min_size=1, max_size=12))
def test_a_fraction_of_a_size_is_exact_and_rounded_down(whole: int, fraction: str) -> None:
    exact = ((whole * 10 ** len(fraction) + int(fraction)) << 30) // 10 ** len(fraction)
    assert units.parse_size(f"{whole}.{fraction}g") == exact


@given(st.text(max_size=12))
def test_a_text_is_a_size_or_an_error_that_shows_what_one_looks_like(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert units.parse_size(text) >= 0


@pytest.mark.parametrize(
    "text", ["", "g", "1.g", ".", "1..5m", "-1", "1e3", "1 2k", "0x10", "1kib2", "1ib", "٣k", "9" * 99]
)
def test_nothing_else_is_a_size(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 512m"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("2m", 120),
        ("2 min", 120),
        ("1h", 3600),
        ("1d", 86400),
        ("20us", 2e-5),
    ],
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1.2.3", "-1", "nan", "inf", "1e3", "5 parsecs", "1h30"])
def test_nothing_else_is_a_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="duration"):
        units.parse_duration(text)


@given(st.integers(0, 2**60))
def test_a_shown_size_is_within_half_a_step_of_the_truth(value: int) -> None:
    number, unit = units.size(value).split(" ")
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(float(number.replace(",", "")) * factor - value) <= factor * 0.0501


@pytest.mark.parametrize(
    ("value_ns", "shown"),
    [
        (None, "not measured"),
        (0, "0 ms"),
        (1_234_567, "1.2 ms"),
        (53_000_000, "53.0 ms"),
        (3_021_000_000, "3.02 s"),
        (59_999_000_000, "1 min 00 s"),
        (3_723_000_000_000, "1 h 02 min 03 s"),
    ],
)
def test_a_time_has_a_unit_that_suits_it(value_ns: int | None, shown: str) -> None:
    assert units.seconds(value_ns) == shown


@given(st.lists(st.text(), max_size=5))
def test_a_shown_command_never_moves_the_cursor(words: list[str]) -> None:
    assert units.shown(words).isprintable()


def test_a_shown_command_can_be_pasted_into_a_shell() -> None:
    assert units.shown(["sh", "-c", "echo it's $HOME", ""]) == """sh -c 'echo it'"'"'s $HOME' ''"""


def test_a_long_command_is_cut() -> None:
    assert units.shown(["x" * 50], 10) == "xxxxxxxxx…"
